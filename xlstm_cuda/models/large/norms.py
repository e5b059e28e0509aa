"""Norms of xLSTMLarge. Unlike those of the block stack, `weight` holds the weight itself.

They are computed in float32 at least and rounded once, to the dtype that x, weight and bias have together. The public
xLSTM code rounds to x's dtype before it applies weight and bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...nn.norms import by_head, widest


class _Norm(nn.Module):
    kind: str  # of functional.multihead_norm_gate
    bias: nn.Parameter | None

    def __init__(self, dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim)) if bias else None)

    def wide(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the output for an input of `dtype`."""
        return widest(dtype, self.weight, self.bias)

    def _by_head(self, x: Tensor, **gate: Any) -> Tensor:
        """(..., H, D) -> (..., H D)."""
        return by_head(x, self.weight, self.bias, norm=self.kind, eps=self.eps, **gate)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(_Norm):
    """(..., D) -> (..., D): divided by the root of the mean square."""

    kind = "rms"

    def forward(self, x: Tensor) -> Tensor:
        return self._by_head(x.to(self.wide(x.dtype)).unsqueeze(-2))


class LargeMultiHeadLayerNorm(_Norm):
    """(..., H, D) -> (..., H D): layer norm, each head by itself."""

    kind = "layer"

    def forward(self, x: Tensor) -> Tensor:
        return self._by_head(x.to(self.wide(x.dtype)))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        """sigmoid(gate) self(x) in one pass and in the dtype of both: x (..., H, D), gate (..., H D)."""
        return self._by_head(x, gate=gate, gate_activation="sigmoid")


MultiHeadLayerNorm = LargeMultiHeadLayerNorm  # its former name, also in pickled models
