"""make notices that the package it would run is that of another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of this folder, as far as make looks at it, with the sign that the package was installed from there."""
    for name in ("csrc", "cmake", "tests/simt", "build"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "build" / f".installed{sys.executable.replace('/', '_')}").touch()
    return tmp_path


def make(folder: Path, *goals: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    command = ["make", "-n", f"PYTHON={sys.executable}", *goals]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_package_of_another_folder(copied: Path) -> None:
    result = make(copied, "lint", PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert f"finds xlstm_cuda in {ROOT / 'xlstm_cuda'}, not in this folder" in result.stderr
    assert make(copied, "clean", PYTHONPATH=str(ROOT)).returncode == 0


def test_package_of_this_folder(copied: Path) -> None:
    (copied / "xlstm_cuda").mkdir()
    (copied / "xlstm_cuda" / "__init__.py").touch()
    assert "not in this folder" not in make(copied, "lint", PYTHONPATH=str(copied)).stderr
