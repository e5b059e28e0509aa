"""Former names of modules: under them import finds the modules themselves, no copies.

A pickle names classes by module, so that pickles of before a move load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType

_PRESENT: dict[str, str] = {}  # names of packages, by their former ones


def moved(former: str, present: str) -> None:
    """Called by the file of the former name: it, and all that is below it, is the package `present`."""
    if not _PRESENT:
        sys.meta_path.insert(0, _Finder())
    _PRESENT[former] = present
    sys.modules[former] = import_module(present)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        present = _present(fullname)
        return spec_from_loader(fullname, self) if present and _exists(present) else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(str(_present(module.__name__)))  # import takes it from there


def _exists(name: str) -> bool:
    """Whether there is such a module. Imports nothing: Python asks with a lock in hand that every import needs."""
    package, *parts = name.split(".")
    path: Sequence[str] | None = sys.modules[package].__path__
    for part in parts:
        package = f"{package}.{part}"
        spec = PathFinder.find_spec(package, path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def _present(fullname: str) -> str | None:
    for former, present in _PRESENT.items():
        if fullname.startswith(f"{former}."):
            return present + fullname.removeprefix(former)
    return None
