"""The linear map of gates, and their cap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _autocast, functional
from .._children import is_computed


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap), x for None; in one pass where there is a function for it."""
    if cap is None:
        return x
    return functional.soft_cap(x, cap) if is_computed(x) else cap * torch.tanh(x / cap)


class GateLinear(nn.Linear):
    """A linear map in float32 at least, whatever the dtype of x and weights, and under autocast.

    Its results are exponents: in bfloat16 a pre-activation of 10 would be off by up to 3 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with _autocast.disabled(x.device.type):
            return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
