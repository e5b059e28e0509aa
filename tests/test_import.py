"""What `import xlstm_cuda` brings along and where it refuses, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

MAX_OTHERS = 50  # modules that neither torch has imported nor this package holds


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_brings_few_modules() -> None:
    """torch._dynamo and what it imports take longer than all of torch."""
    printed = run("import sys, torch; before = {*sys.modules}; import xlstm_cuda; print(*{*sys.modules} - before)")
    new = printed.split()
    assert "xlstm_cuda.functional" in new
    assert "torch._dynamo" not in new
    assert len([name for name in new if name.partition(".")[0] != "xlstm_cuda"]) <= MAX_OTHERS
