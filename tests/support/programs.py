"""Programs of the documentation and the examples, each run by an interpreter of its own in an empty folder."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT


def missing_packages(source: str) -> set[str]:
    """What the source imports, anywhere in it, that is not installed."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name for name in {name.partition(".")[0] for name in names} if importlib.util.find_spec(name) is None}


def run_programs(files: Sequence[Path], folder: Path, seconds: float) -> list[str]:
    """Runs the files side by side, each in an empty folder below `folder`; returns what they print.

    AssertionError with the output of one that fails, subprocess.TimeoutExpired for one that takes longer.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    running = []
    for index, file in enumerate(files):
        empty = folder / f"empty{index}"
        empty.mkdir()
        running.append(
            subprocess.Popen(
                [sys.executable, str(file)],
                cwd=empty,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=seconds)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for file, process, text in zip(files, running, printed, strict=True):
        assert process.returncode == 0, f"{file.name} ended with status {process.returncode}:\n{text}"
    return printed
