"""docs/: the pictures are what their scripts draw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"


def test_recurrent_picture_is_drawn_by_its_script(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "drawn.svg"
    subprocess.run([sys.executable, DOCS / "kernels" / "draw_recurrent.py", drawn], check=True)
    words = ("product, t + 1", "cells", "wait", "h of t arrives", "buffer 1 of block 0")
    for picture in (drawn, DOCS / "kernels" / "recurrent.svg"):
        text = picture.read_text()
        assert all(word in text for word in words), picture
