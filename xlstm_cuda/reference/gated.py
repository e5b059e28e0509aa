"""The gated activation and the soft cap, as torch has their parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ._dtypes import accumulation_dtype

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "relu^2": lambda x: F.relu(x).square(),
}


def gated_activation(x: Tensor, gate: Tensor | None = None, *, activation: str = "silu") -> Tensor:
    """act(gate) x (..., F) in x's dtype; without a gate x is (..., 2 F), the gate its first half."""
    if gate is None:
        gate, x = x.chunk(2, dim=-1)
    compute = accumulation_dtype(x.dtype)
    return (_ACTIVATIONS[activation](gate.to(compute)) * x.to(compute)).to(x.dtype)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap) in x's dtype."""
    return (cap * torch.tanh(x.to(accumulation_dtype(x.dtype)) / cap)).to(x.dtype)
