"""The compiled extension as a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from xlstm_cuda import _C

FOLDERS = [ROOT, Path(torch.__file__).parent]


@pytest.mark.parametrize("folder", FOLDERS, ids=["sources", "torch"])
def test_holds_no_path_of_the_machine_that_built_it(folder: Path) -> None:
    assert os.fsencode(f"{folder}/") not in Path(_C.__file__).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="as nm of Linux prints it")
def test_shows_none_of_its_own_symbols() -> None:
    """The libraries of the executor have the same names. What is weak and of C++'s own library may be seen."""
    table = subprocess.run(["nm", "-D", "--defined-only", _C.__file__], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in table.stdout.splitlines()]
    assert "PyInit__C" in names
    assert not [name for name in names if "xlstm" in name or name.startswith(("cu", "__cu"))]
