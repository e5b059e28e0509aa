"""Whether a step takes the fast path: from the call straight to the op, without the checks in Python."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlstm_cuda import _checks
from xlstm_cuda._backend import default_backend

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_bare(x: Tensor) -> bool:
    """Whether x is no more than a tensor."""
    return type(x) in _PLAIN_TYPES


def is_plain(backend: str | None, inputs: tuple[Tensor | None, ...], state: Any) -> bool:
    """Whether a step may go to the op without the checks in Python, which take longer than a small step.

    So it is for tensors on the CPU that do not require grad, without autocast, tracing or another backend. The ops
    refuse what the checks refuse, before they compute. Where one has raised, the checks only say better what is wrong:
    the call is not computed again.
    """
    on_cpu = backend == "cpu" or (backend is None and default_backend())
    if not on_cpu or not isinstance(state, (tuple, list)) or torch.compiler.is_compiling():
        return False
    every = (*inputs, *state)
    for x in every:
        if x is not None and not (type(x) in _PLAIN_TYPES and x.is_cpu):
            return False
    return not torch.is_autocast_enabled("cpu") and not _checks.needs_grad(*every)
