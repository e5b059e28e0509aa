"""setup.py finds the user's torch under every kind of build isolation, or says what to do."""

from __future__ import annotations

import os
import re
import runpy
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytest.importorskip("setuptools")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py as in a build environment without torch, with nothing else on the PATH or in .venv."""
    names = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["find_torch"].__globals__
    names["ROOT"] = tmp_path
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("sys.executable", str(python(tmp_path / "build", None)))
    return names


def python(folder: Path, version: str | None) -> Path:
    """Something called python in folder/bin that prints what FIND_TORCH prints with this torch, or fails."""
    file = folder / "bin" / "python"
    file.parent.mkdir(parents=True)
    answer = f"printf '%s' '{folder}/torch;{version}'" if version else "exit 1"
    file.write_text(f"#!/bin/sh\n{answer}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


PLACES: dict[str, Callable[[Path], dict[str, str]]] = {
    "VIRTUAL_ENV": lambda folder: {"VIRTUAL_ENV": str(folder)},
    "CONDA_PREFIX": lambda folder: {"CONDA_PREFIX": str(folder)},
    "PATH": lambda folder: {"PATH": f"/nowhere{os.pathsep}{folder / 'bin'}"},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_torch_of_the_users_environment(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[Path], dict[str, str]]
) -> None:
    python(tmp_path / "user", "2.11.0+cpu")
    for name, value in place(tmp_path / "user").items():
        monkeypatch.setenv(name, value)
    assert build["find_torch"]() == (f"{tmp_path}/user/torch", "2.11.0+cpu")


def test_torch_of_the_venv_of_this_folder(build: dict[str, Any], tmp_path: Path) -> None:
    python(tmp_path / ".venv", "2.13.0")
    assert build["find_torch"]() == (f"{tmp_path}/.venv/torch", "2.13.0")


def test_torch_hidden_by_pythonpath(build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = python(tmp_path / "pip", "2.12.1")
    file.write_text(file.read_text().replace("\n", '\n[ -z "$PYTHONPATH" ] || exit 1\n', 1))
    monkeypatch.setattr("sys.executable", str(file))
    monkeypatch.setenv("PYTHONPATH", "hides it")
    assert build["find_torch"]() == (f"{tmp_path}/pip/torch", "2.12.1")


def test_an_older_torch_is_passed_over(build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", str(python(tmp_path / "old", "2.9.1").parents[1]))
    with pytest.raises(
        SystemExit, match=rf"found torch 2\.9\.1 of {re.escape(str(tmp_path))}/old/bin/python\. .*--no-build"
    ):
        build["find_torch"]()
    python(tmp_path / ".venv", "2.13.0")
    assert build["find_torch"]()[1] == "2.13.0"


def test_no_torch(build: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"torch >= 2\.11, found none\. .*pip install --no-build-isolation \."):
        build["find_torch"]()
