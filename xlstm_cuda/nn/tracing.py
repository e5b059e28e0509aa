"""Modules under torch.fx: leaves, as torch.nn.LSTM is."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def leaf_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The call of a module as one node of the graph that is traced, or None where none of the arguments is traced.

    torch.fx makes leaves of torch.nn's own modules only; so ours record their calls themselves.
    """
    for x in (*args, *kwargs.values()):
        if isinstance(x, Proxy):
            return x.tracer.create_proxy("call_module", _path(x.tracer, module), args, kwargs)
    return None


def _path(tracer: Any, module: nn.Module) -> str:
    """The module's name in what is traced. Raises TypeError where that is the module itself."""
    if module is tracer.root:
        raise TypeError(
            f"{type(module).__name__}: for torch.fx the module is a leaf, one node of a graph: trace a module that has "
            "it inside"
        )
    return str(tracer.path_of_module(module))
