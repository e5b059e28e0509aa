"""The forecasting models TiRex (package tirex-ts) and TiRex-2 (package tirex-2) on this library's sLSTM and mLSTM.

    from xlstm_cuda.interop import tirex

    tirex.patch()  # all TiRex models of the process, built or to be built, whatever their backend and device
    tirex.unpatch()

Training works, on every device, and neither flashrnn nor a compiler is needed for it.

TiRex's own cells round inputs, recurrent weights and, after every token, all states to bfloat16; those of TiRex-2 do on
a GPU. Here they are computed in the dtype of the input, states in float32 at least, so that forecasts differ by what
these round; autocast gives bfloat16 where it is wanted.

In a state that is given to a cell, elements with n = 0 are empty; TiRex ignores m only where all n are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["disable", "enable", "patch", "unpatch"]

# The package to install, its name in programs, and the module here that has its methods. patch() imports both.
_PACKAGES = (("tirex-ts (1.4)", "tirex", ".first"), ("tirex-2 (0.4)", "tirex2", ".second"))
_originals: dict[tuple[type, str], Callable[..., Any]] = {}  # methods, while ours are in their place


def patch() -> None:
    """Replaces the recurrences in the models of tirex-ts and of tirex-2, where these are installed.

    mLSTMBackend of mlstm_kernels is one of them: other models that hold one compute here too, with the same results.
    A second call does nothing. ImportError where neither package is there.
    """
    refusals = []
    for package, name, ours in _PACKAGES:
        try:
            import_module(name)
            methods = import_module(ours, __name__).METHODS
        except ImportError as error:
            refusals.append(f"{package}: {error}")
            continue
        for (cls, attribute), method in methods.items():
            if (cls, attribute) not in _originals:
                _originals[cls, attribute] = getattr(cls, attribute)
                setattr(cls, attribute, method)
    if len(refusals) == len(_PACKAGES):
        raise ImportError(f"xlstm_cuda.interop.tirex needs one of the packages {'; '.join(refusals)}")


def unpatch() -> None:
    """Puts the packages' own methods back; does nothing unless patched."""
    for (cls, attribute), method in _originals.items():
        setattr(cls, attribute, method)
    _originals.clear()


def enable() -> None:
    """The former name of `patch`. Deprecated: it keeps working, but new code uses the other."""
    patch()


def disable() -> None:
    """The former name of `unpatch`. Deprecated: it keeps working, but new code uses the other."""
    unpatch()
