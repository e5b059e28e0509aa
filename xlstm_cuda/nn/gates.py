"""The linear map of gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _autocast


class GateLinear(nn.Linear):
    """A linear map in float32 at least, whatever the dtype of x and weights, and under autocast.

    Its results are exponents: in bfloat16 a pre-activation of 10 would be off by up to 3 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with _autocast.disabled(x.device.type):
            return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


def joined_gates(igate: nn.Linear, fgate: nn.Linear, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps of the concatenated inputs, without concatenating them: i, f (B, H, S), float32 at least.

    inputs: each (B, S, F). Rows of tokens, and contiguous weights of each input: gradients are then products of
    matrices as they lie in memory.
    """
    weight = torch.cat([igate.weight, fgate.weight]).to(inputs[0].dtype)  # (2H, F of all inputs)
    bias = torch.cat([igate.bias, fgate.bias])
    dtype = torch.promote_types(bias.dtype, torch.float32)
    gates = bias.to(dtype)
    for x, w in zip(inputs, torch.unflatten(weight, 1, (len(inputs), -1)).transpose(0, 1).contiguous(), strict=True):
        gates = gates + F.linear(x.flatten(0, 1), w).to(dtype)
    i, f = gates.view(*inputs[0].shape[:2], bias.shape[0]).mT.contiguous().chunk(2, dim=1)
    return i, f
