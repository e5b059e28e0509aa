"""Whether decode steps of blocks of xLSTMLarge are one op."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[bool]:
    """For each decode step of a block of that module's, from now on, whether it was one op."""
    steps: list[bool] = []
    real = module.block_step

    def counting(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        steps.append(result is not None)
        return result

    monkeypatch.setattr(module, "block_step", counting)
    return steps
