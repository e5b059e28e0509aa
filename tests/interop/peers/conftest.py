"""Tests against the packages that ours replaces, each skipped where its package is not installed (make peers).

PEERS_WITHOUT=name,...: these packages are hidden, as if they were not installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

HIDDEN = set(filter(None, os.environ.get("PEERS_WITHOUT", "").split(",")))


class Finder(PathFinder):
    """Python's own finder of modules and distributions, blind for the hidden packages."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *args: Any, **kwargs: Any) -> Any:
        found = importlib.metadata.MetadataPathFinder.find_distributions(*args, **kwargs)
        return (distribution for distribution in found if distribution.metadata["Name"] not in HIDDEN)


if HIDDEN:
    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
