"""Fixtures of the tests of bench/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import measure, runner
from bench.cases import SUITES


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Short measurements: the tests are about what is measured, not about times."""
    small = {"WARM_UP_SECONDS": 0.0, "SAMPLE_SECONDS": 0.0, "GEMM_SIZE": 64, "COPY_MEGABYTES": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(measure, name, value)
        yield


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """The results of one run of the suite smoke."""
    path = tmp_path_factory.mktemp("bench") / "smoke.json"
    results = runner.run(SUITES["smoke"], runner.Options(threads=1, repeats=2), strict=False)
    path.write_text(json.dumps(results))
    return path
