"""Launches where the CUDA runtime refuses, in C++ with a runtime that does (tests/simt/launch). No device is needed."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.simt

BUILD = ROOT / "build" / "simt"
SOURCE = ROOT / "tests" / "simt" / "launch" / "launch_test.cpp"
CASES = re.findall(r'^    \{"(\w+)", \w+\},$', SOURCE.read_text(), re.MULTILINE)


def run(program: str, *arguments: str) -> str:
    if not (BUILD / program).exists():
        pytest.skip("make simt builds it")
    result = subprocess.run([BUILD / program, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_case_is_run() -> None:
    assert CASES and run("launch_test_0", "--list").split() == CASES


@pytest.mark.parametrize("case", CASES)
def test_launch(case: str) -> None:
    run("launch_test_0", case)


def test_stream_where_torch_has_cuda() -> None:
    run("launch_test_1", "stream")


def test_more_blocks_than_a_grid_has() -> None:
    run("large_grid_test")


def test_every_launcher_counts_its_blocks() -> None:
    """Where a grid is made of a 64-bit number of blocks, that was compared with the largest one before."""
    for source in (ROOT / "csrc" / "cuda").rglob("*.[ch]*"):
        text = source.read_text()
        if re.search(r"grid = dim3\(static_cast<unsigned>", text):
            assert "kMaxGridX" in text, source.relative_to(ROOT)
