"""Norms of xLSTMLarge. Unlike those of the block stack, `weight` holds the weight itself.

They reduce in float32 at least, round to x's dtype, and apply weight and bias to that, as the public xLSTM code does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Norm(nn.Module):
    bias: nn.Parameter | None

    def __init__(self, dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim)) if bias else None)

    def _scale(self, x: Tensor) -> Tensor:
        x = x * self.weight
        return x if self.bias is None else x + self.bias

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(_Norm):
    """(..., D) -> (..., D): divided by the root of the mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(F.rms_norm(x, (self.dim,), eps=self.eps).to(x.dtype))  # autocast makes it float32


class LargeMultiHeadLayerNorm(_Norm):
    """(..., H, D) -> (..., H D): layer norm, each head by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(F.layer_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype).flatten(-2))


MultiHeadLayerNorm = LargeMultiHeadLayerNorm  # its former name, also in pickled models
