"""The host SIMT executor runs right kernels without an alarm and finds the faults injected into wrong ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.simt

BUILD = ROOT / "build" / "simt"
EXECUTABLES = {"plain": "simt_selftest", "race": "simt_selftest_race", "ptx": "simt_selftest_ptx"}
BUILDS = list(EXECUTABLES)
GOLDEN = ROOT / "tests" / "simt" / "golden.json"

# What the plain build cannot see: accesses that happen to come in the right order. The race build must.
RACES_ONLY = {
    "multicast: peer's mbarrier not initialised",
    "wgmma: stage released early",
    "wgmma: no fence.proxy.async",
    "wgmma: no fence.proxy.async after reads",
    "wgmma: no barrier before the TMA store",
    "memory: two blocks write one word",
    "memory: constant memory that the kernel has written",
    "memory: plain read of an atomic counter",
    "barrier: flag without release",
    "barrier: flag without acquire",
    "wrapper: an arrival of copies for a write by their thread",
    "tma: written after the arrival",
    "tma: remote arrivals awaited in the block's scope",
}


def run(build: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the last line's JSON and all output of the self-test."""
    executable = BUILD / EXECUTABLES[build]
    if not executable.exists():
        pytest.skip(f"{executable} is not built: make {'ptx' if build == 'ptx' else 'simt'}")
    result = subprocess.run([executable, *arguments], capture_output=True, text=True, timeout=600)
    output = result.stdout + result.stderr
    last = result.stdout.rstrip().rpartition("\n")[2]
    assert last.startswith("{"), output
    return result.returncode, json.loads(last), output


def check(build: str, seeds: int) -> None:
    status, summary, output = run(build, "--seeds", str(seeds))
    assert status == 0 and summary["failed"] == [], output
    assert summary["build"] == build and summary["seeds"] == seeds
    assert summary["cases"] - summary["faults"] >= 158, "correct kernels are missing"
    assert summary["faults"] >= 76, "faults are missing"
    if build != "plain":
        assert summary["found_every_seed"] == summary["faults"], output
    else:
        assert set(summary["missed"]) <= RACES_ONLY, output


def test_plain_build() -> None:
    check("plain", seeds=8)


@pytest.mark.parametrize("build", ["race", "ptx"])
def test_builds_with_the_race_detector(build: str) -> None:
    check(build, seeds=4)


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_many_seeds(build: str) -> None:
    check(build, seeds=40)


@pytest.mark.parametrize("build", BUILDS)
def test_golden_file_is_current(build: str) -> None:
    """golden.json, which devices compare with, holds what the executor computes now."""
    status, summary, output = run(build, "--golden", "compare", str(GOLDEN))
    assert status == 0, output
    names = {row["case"] for row in json.loads(GOLDEN.read_text())}
    assert summary == {"compared": len(names), "rows": len(names), "different": 0}


def test_a_wrong_golden_file_is_noticed(tmp_path: Path) -> None:
    rows = json.loads(GOLDEN.read_text())
    exact = [row for row in rows if row["hash"]]
    exact[0]["hash"] = "0" * 16
    exact[1]["head"][0] += 1
    wrong = tmp_path / "golden.json"
    wrong.write_text("\n".join(json.dumps(row) for row in rows[:-1]))
    status, summary, output = run("plain", "--golden", "compare", str(wrong))
    assert status != 0 and summary["different"] == 3, output


def test_one_seed_of_one_case() -> None:
    status, summary, _ = run("plain", "--seeds", "1", "--filter", "gemm: correct")
    assert status == 0 and (summary["cases"], summary["faults"]) == (2, 0)


def test_a_filter_that_matches_nothing_fails() -> None:
    status, summary, _ = run("plain", "--filter", "no such case")
    assert status != 0 and summary["cases"] == 0
