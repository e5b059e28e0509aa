"""Other libraries. A file for each: its IMPLEMENTATIONS are what it adds to the benchmarks.

A file imports its library in the functions that call it: benchmarks run where that library is not installed.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ..calls import Implementation


def implementations() -> list[Implementation]:
    """Of every file in this folder, by the names of the files."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    return [impl for module in modules for impl in module.IMPLEMENTATIONS]
