"""Exchange the classes of modules in a built model: parameters, buffers, hooks and configs stay where they are."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

# A model can hold modules of a file only if that file is imported. Ours import theirs at their top, so that patched
# classes are found again by pickle.
_SOURCES = {
    "xlstm.xlstm_block_stack": "cells",
    "xlstm.xlstm_lm_model": "stack",
    "mlstm_kernels.torch.backend_module": "backend",
    "xlstm.xlstm_large.model": "large",
}
_CELLS = {
    "sLSTMCell_vanilla": "sLSTM cell",
    "sLSTMCell_cuda": "sLSTM cell",
    "mLSTMCell": "mLSTM cell",
    "mLSTMBackend": "mLSTMBackend",
}


class PatchReport(NamedTuple):
    """What `patch` or `unpatch` changed: (name of the module in the model, name of its class in their package)."""

    modules: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        if not self.modules:
            return "nothing new"
        cells = Counter(_CELLS[cls] for _, cls in self.modules if cls in _CELLS)
        others = Counter(cls for _, cls in self.modules if cls not in _CELLS)
        return "; ".join(filter(None, (_counted(cells), _counted(others))))


def patch(model: nn.Module) -> PatchReport:
    """Run a built model of the `xlstm` or `mlstm_kernels` package, or what a model holds of them, on these kernels.

    Exchanged are the classes of sLSTM cells ("vanilla" and "cuda"), mLSTM cells and mLSTMBackends, and of the modules
    around them that have to carry states: convolutions, layers, blocks, stacks, xLSTMLMModel. Modules of subclasses
    stay. Parameters, state_dict, hooks and the training flag stay as they are, and so do outputs, up to rounding. What
    a patched model can do besides is told by the classes in `xlstm_cuda.interop.nxai`: any sequence length,
    states in `forward` too (`model(ids, state=None, return_last_state=True)`), pickle, torch.compile.

    A model that is patched already is left alone, new parts of it are patched.

    Raises ValueError where there is nothing to patch, or a cell has an option that these kernels lack (nothing is
    changed then); TypeError for what is no torch.nn.Module; ImportError where neither package is installed.
    """
    _check(model, "patch")
    table = _classes()
    found = [(name, module) for name, module in model.named_modules() if type(module) in table]
    if not found and not any(type(module) in table.values() for module in model.modules()):
        _require_a_package()
        raise ValueError(f"patch: {type(model).__name__} holds no module of xlstm or mlstm_kernels that can be patched")
    for name, module in found:
        check = getattr(table[type(module)], "check_options", None)
        if check is not None:
            check(module, name)
    return _exchange(found, table)


def unpatch(model: nn.Module) -> PatchReport:
    """Give the modules that `patch` changed their own classes back: all is then as it was. Others stay."""
    _check(model, "unpatch")
    table = {patched: original for original, patched in _classes().items()}
    return _exchange([(name, module) for name, module in model.named_modules() if type(module) in table], table)


def _check(model: Any, op: str) -> None:
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{op}: model must be a torch.nn.Module, a model that is built, got {what}")


def _exchange(found: list[tuple[str, nn.Module]], table: dict[type, type]) -> PatchReport:
    names = []
    for name, module in found:
        before, after = type(module), table[type(module)]
        module.__class__ = after
        names.append((name, (before if issubclass(after, before) else after).__name__))
    return PatchReport(tuple(names))


def _classes() -> dict[type, type]:
    """Their classes, of the files that are imported, and those that take their place."""
    table: dict[type, type] = {}
    for theirs, ours in _SOURCES.items():
        if theirs in sys.modules:
            table |= import_module(f"{__package__}.{ours}").PATCHED
    return table


def _require_a_package() -> None:
    if importlib.util.find_spec("xlstm") is None and importlib.util.find_spec("mlstm_kernels") is None:
        raise ImportError("patch needs one of the packages xlstm and mlstm_kernels: pip install xlstm")


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in names.items())
