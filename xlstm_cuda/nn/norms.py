"""Layer norms whose parameter is the weight minus one, so that weight decay pulls the weight towards one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from .._children import is_ordinary
from ..functional._tokens import as_tokens


class LayerNorm(nn.Module):
    """(..., D) -> (..., D); the parameter `weight` (D,) holds the weight minus one, `bias` (D,) is None as a rule."""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), 1 + self.weight, self.bias, self.eps)

    def reset_parameters(self) -> None:
        zero_(self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"


class MultiHeadLayerNorm(nn.Module):
    """(..., H, D) -> (..., H D), each head normalised by itself.

    `weight` (H D,) is None or one less, `bias` (H D,) None as a rule.
    """

    def __init__(self, dim: int, weight: bool = True, eps: float = 1e-5, bias: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim)) if weight else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None and self.bias is None:
            return F.layer_norm(x, x.shape[-1:], eps=self.eps).flatten(-2)
        x = x.to(widest(x.dtype, self.weight, self.bias))
        return by_head(x, self.weight, self.bias, eps=self.eps, weight_offset=1.0)

    def gated(self, h: Tensor, skip: Tensor, skip_weight: Tensor, gate: Tensor) -> Tensor:
        """(self(h) + skip_weight skip) silu(gate) in one pass: h (B, S, H, D), skip, gate (B, S, H D) of one dtype."""
        return functional.multihead_norm_gate(
            h, self.weight, self.bias, gate=gate, skip=skip, skip_weight=skip_weight, eps=self.eps, weight_offset=1.0
        )

    def reset_parameters(self) -> None:
        zero_(self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.dim}, weight={self.weight is not None}, eps={self.eps}"


def zero_(*parameters: Tensor | None) -> None:
    """Fills those that there are with zeros, in place."""
    for parameter in parameters:
        if parameter is not None:
            nn.init.zeros_(parameter)


def by_head(
    x: Tensor, weight: Tensor | None, bias: Tensor | None = None, *, gate: Tensor | None = None, **options: Any
) -> Tensor:
    """functional.multihead_norm_gate for any leading dimensions: x (..., H, D), gate (..., H D) -> (..., H D)."""
    shape = (*x.shape[:-2], x.shape[-2] * x.shape[-1])
    if not all(t is None or is_ordinary(t) for t in (x, weight, bias, gate)):
        options["backend"] = "reference"  # tensors of other classes know few functions
    gate = None if gate is None else as_tokens(gate)
    return functional.multihead_norm_gate(as_tokens(x, 4), weight, bias, gate=gate, **options).view(shape)


def widest(dtype: torch.dtype, *tensors: Tensor | None) -> torch.dtype:
    """What `dtype` and those of the tensors are promoted to."""
    for x in tensors:
        dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
    return dtype
