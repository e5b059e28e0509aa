"""Meetings of threads (csrc/cpu/team.h), alone: more threads than cores, threads that are late, many meetings."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

COMPILER = os.environ.get("CXX", "c++")


@pytest.fixture(scope="module", params=["plain", "thread"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """team.cpp, as it is and with ThreadSanitizer, which sees a thread that reads too early but reads right."""
    if not shutil.which(COMPILER):
        pytest.skip(f"no {COMPILER}")
    program = tmp_path_factory.mktemp("team") / request.param
    flags = ["-std=c++20", "-O1", "-pthread", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "tests/kernels/team.cpp", ROOT / "csrc/cpu/team.cpp"]
    sanitizer = [] if request.param == "plain" else ["-g", "-fsanitize=thread"]
    made = subprocess.run([COMPILER, *flags, *sanitizer, *sources, "-o", program], capture_output=True, text=True)
    if sanitizer and (made.returncode or not starts(program)):
        pytest.skip("ThreadSanitizer does not run here")
    assert made.returncode == 0, made.stderr
    return program


def starts(program: Path) -> bool:
    """Some kernels place memory where ThreadSanitizer has its own."""
    return subprocess.run([program, "1", "1", "0"], capture_output=True).returncode == 0


# Two on a core cannot spin for each other; five do not find a core each.
@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (1, 5), (2, 5)])
def test_threads_meet(program: Path, cores: int, threads: int) -> None:
    done = subprocess.run([program, str(cores), str(threads), "2000"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
