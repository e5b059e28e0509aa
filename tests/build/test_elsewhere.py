"""tests/tools/elsewhere.py on folders of a few tests: what it counts, how it ends, which tests it repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.tools import elsewhere

CONFTEST = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.support.fresh import *\n"
SEVERAL = """
import os, pytest

def test_environment():
    assert os.environ.get("MKL_CBWR") == "COMPATIBLE"
def test_passes(): pass
def test_is_skipped(): pytest.skip("why not")
def test_simt(): raise AssertionError("left out")
"""
DRAWING = """
import pathlib, random, torch
from hypothesis import given, strategies

def write(name):
    with pathlib.Path(name).open("a") as file:
        print(torch.rand(()).item(), random.random(), file=file)

def test_fresh(fresh_seed): write("fresh")
@given(strategies.integers())
def test_examples(x): pass
def test_plain(): write("plain")
"""
Run = Callable[..., tuple[int, list[list[str]]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Status and table of the environments whose names hold `only`, on a file of tests."""
    monkeypatch.setattr(elsewhere, "ROOT", tmp_path)
    monkeypatch.delenv("MKL_CBWR", raising=False)

    def called(tests: str, *arguments: str) -> tuple[int, list[list[str]]]:
        (tmp_path / "test_few.py").write_text(tests)
        status = elsewhere.main([*arguments, "-n", "0"])
        printed = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
        assert printed[0].split() == ["environment", "passed", "failed", "skipped", "seconds"]
        return status, [line.split() for line in printed[1:]]

    return called


def test_one_that_fails_stops_none(run: Run) -> None:
    status, rows = run(SEVERAL, "--only", "plain", "--only", "CBWR")
    assert status == 1
    assert [row[:4] for row in rows] == [["plain", "1", "1", "1"], ["MKL_CBWR=COMPATIBLE", "2", "0", "1"]]


def test_none_fails(run: Run) -> None:
    status, rows = run(SEVERAL, "--only", "CBWR")
    assert status == 0 and len(rows) == 1


def test_the_rest_goes_to_pytest(run: Run) -> None:
    status, rows = run(SEVERAL, "--only", "plain", "test_few.py::test_passes")
    assert status == 0 and rows[0][:4] == ["plain", "1", "0", "0"]


def test_what_is_no_ordinary_end(run: Run) -> None:
    status, rows = run("1 +", "--only", "plain")
    assert status == 1 and rows[0][:3] == ["plain", "0", "1"]
    status, rows = run(SEVERAL, "--only", "plain", "--no-such-option")
    assert status == 1 and rows[0][5:] == ["pytest", "ended", "with", "status", "4"]


def test_the_tests_that_draw_afresh_are_repeated(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    status, rows = run(DRAWING, "--only", "fresh")
    assert status == 0 and "100" in rows[0] and not (tmp_path / "plain").exists()
    assert len(set((tmp_path / "fresh").read_text().splitlines())) == 50
    run(DRAWING, "--only", "plain")
    run(DRAWING, "--only", "plain")
    assert len(set((tmp_path / "fresh").read_text().splitlines())) == 52
    assert len(set((tmp_path / "plain").read_text().splitlines())) == 1


def test_environment_that_is_not_there(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(SEVERAL, "--only", "nowhere")
    assert "there are plain, " in capsys.readouterr().err
