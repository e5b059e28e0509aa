"""docs/: the pictures are what their scripts draw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"


WORDS = {
    "recurrent": ("product, t + 1", "cells", "wait", "h of t arrives", "buffer 1 of block 0"),
    "walk": ("producer", "warpgroup 1", "its duty", "P, n of c + 1", "Q, K, V and gates of span c + 2"),
}


@pytest.mark.parametrize("name", WORDS)
def test_pictures_are_drawn_by_their_scripts(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "drawn.svg"
    subprocess.run([sys.executable, DOCS / "kernels" / f"draw_{name}.py", drawn], check=True)
    for picture in (drawn, DOCS / "kernels" / f"{name}.svg"):
        text = picture.read_text()
        assert all(word in text for word in WORDS[name]), picture
