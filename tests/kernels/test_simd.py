"""Every SIMD level of the CPU kernels computes the same function, and none of its code can leak into another level."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from xlstm_cuda import _C, info

CASES = Path(__file__).parent / "simd_cases.py"
BUILD = ROOT / "build"


def run_python(*arguments: str, level: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XLSTM_SIMD": level, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("level", _C.build_info()["simd_levels"])
def test_level_against_the_reference(level: str) -> None:
    result = run_python(str(CASES), level=level)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == [level, "ok"]


def test_best_level_is_the_default() -> None:
    levels = info()["CPU SIMD levels"].split(", ")
    assert info()["CPU SIMD level"] == os.environ.get("XLSTM_SIMD", levels[0])


def test_unknown_level_is_one_clear_sentence() -> None:
    # the functions still import (backend='reference' needs no library); the first call says what is wrong
    result = run_python("-c", "import xlstm_cuda; xlstm_cuda.info()", level="sse9")
    assert result.returncode != 0
    assert "XLSTM_SIMD must be one of" in result.stderr and "got sse9" in result.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_level_defines_shared_code() -> None:
    """A weak symbol outside a level's namespace could be linked into code that runs on an older processor."""
    folders = [path for path in BUILD.glob("cmake-*/CMakeFiles/simd_*.dir") if list(path.rglob("*.o"))]
    if not folders:
        pytest.skip("installed without a build folder")
    for folder in folders:
        namespace = folder.name.removesuffix(".dir")
        objects = map(str, folder.rglob("*.o"))
        listing = subprocess.run(["nm", "--defined-only", *objects], capture_output=True, text=True, check=True)
        symbols = [line.split(maxsplit=2) for line in listing.stdout.splitlines() if line.count(" ") >= 2]
        own = (f"3cpu{len(namespace)}{namespace}", "DW.ref.")  # mangled namespace; references to the C++ runtime
        shared = [name for _, kind, name in symbols if kind in "WVTuDB" and not any(part in name for part in own)]
        assert symbols and not shared, shared[:5]
