"""The compiled extension as a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.paths import ROOT
from xlstm_cuda import _C

FOLDERS = [ROOT, Path(torch.__file__).parent]


@pytest.mark.parametrize("folder", FOLDERS, ids=["sources", "torch"])
def test_holds_no_path_of_the_machine_that_built_it(folder: Path) -> None:
    assert os.fsencode(f"{folder}/") not in Path(_C.__file__).read_bytes()
