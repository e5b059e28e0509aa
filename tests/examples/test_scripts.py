"""Every short script of examples/ runs. (train_lm.py has tests of its own.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import ROOT, missing_packages, run_programs

SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name not in ("__init__.py", "train_lm.py"))
SECONDS = 240  # for one that hangs


def test_there_are_scripts() -> None:
    assert {"replace_nn_lstm.py", "truncated_bptt.py", "ddp_fsdp.py", "amp.py"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script: Path, tmp_path: Path) -> None:
    missing = missing_packages(script.read_text())
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    (printed,) = run_programs([script], tmp_path, SECONDS)
    assert printed.strip(), "an example shows something"
