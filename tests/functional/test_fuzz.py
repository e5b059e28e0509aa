"""Random calls: a few thousand that were drawn once, and in `make test-all` a minute of new ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

FUZZ = ROOT / "tests" / "tools" / "fuzz.py"


def run(*options: str) -> str:
    """In a process of its own: a crash is a failure of this test only."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # tests run side by side
    result = subprocess.run([sys.executable, str(FUZZ), *options], capture_output=True, text=True, cwd=ROOT, env=env)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_known_calls() -> None:
    assert run("--first", "0", "--calls", "1500", "--seconds", "240").splitlines()[-1] == "1500 calls"


@pytest.mark.slow
def test_new_calls() -> None:
    run("--seconds", "60")
