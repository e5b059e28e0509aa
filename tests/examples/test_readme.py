"""Every Python block of README.md runs."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[int, str]]:
    """Line number in the README and source of each block."""
    text = README.read_text()
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in BLOCK.finditer(text)]


def test_there_are_blocks():
    assert len(blocks()) >= 6


@pytest.mark.parametrize(("line", "source"), blocks(), ids=[f"line{line}" for line, _ in blocks()])
def test_block(line, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * (line - 1) + source, str(README), "exec"), {"__name__": "readme"})
