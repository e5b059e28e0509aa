"""The CUDA kernels of gated_activation and soft_cap on the executor: planted faults are noticed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.functional.test_gated import check
from tests.support.executor import RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from tests.support.paths import ROOT

pytestmark = pytest.mark.simt

# Fault: calls that show it, as those of test_gated.check. A thread has 16 bytes of a row.
FAULTS: dict[str, list[tuple[Any, ...]]] = {
    "gated_activation_fwd: the last pack of a row is left out": [
        ((2, 3), 5, True, torch.float32, "silu"),
        ((1, 2), 8, False, torch.bfloat16, "relu"),
    ],
    "gated_activation_fwd: whole packs in rows that are not aligned": [((2, 3), 5, True, torch.float32, "silu")],
    "gated_activation_bwd: the last pack of a row is left out": [
        ((2, 3), 5, False, torch.float64, "gelu"),
        ((1, 1), 3, True, torch.float16, "soft_cap"),
    ],
    "gated_activation_bwd: whole packs in rows that are not aligned": [((2, 3), 9, True, torch.bfloat16, "sigmoid")],
    "gated_activation_bwd: dgate is that of x = 1": [((2, 3), 8, True, torch.float32, "silu")],
}
CASES = [(name, call) for name, calls in FAULTS.items() for call in calls]


@needs_race_build
@pytest.mark.parametrize(("mutant", "call"), CASES, ids=str)
def test_fault_is_caught(mutant: str, call: tuple[Any, ...]) -> None:
    assert missed(mutant, partial(check, *call, RACE_EXECUTOR)) == []


def test_every_fault_has_a_case() -> None:
    sources = (ROOT / "csrc" / "cuda" / "gated").glob("*.*")
    assert set().union(*(planted(str(source.relative_to(ROOT))) for source in sources)) == set(FAULTS)
