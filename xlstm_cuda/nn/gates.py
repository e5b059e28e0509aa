"""The linear map of gates, and their cap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _autocast, _onnx, functional
from .._backend import in_onnx_graph
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


def joined_gates(
    igate: nn.Linear, fgate: nn.Linear, *inputs: Tensor, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Both maps of the concatenated inputs, without concatenating them: i, f (B, H, S), float32 at least.

    inputs: each (B, S, F). cap: of `soft_cap`.
    """
    # Rows of tokens, contiguous weights of each input: then gradients are products of matrices as they lie in memory.
    weight = torch.cat([igate.weight, fgate.weight]).to(inputs[0].dtype)  # (2H, F of all inputs)
    bias = torch.cat([igate.bias, fgate.bias])
    dtype = torch.promote_types(bias.dtype, torch.float32)
    gates = bias.to(dtype)
    for x, w in zip(inputs, torch.unflatten(weight, 1, (len(inputs), -1)).transpose(0, 1).contiguous(), strict=True):
        gates = gates + F.linear(x.flatten(0, 1), w).to(dtype)
    gates = soft_cap(gates, cap)
    gates = gates.view(*inputs[0].shape[:2], bias.shape[0]).mT
    i, f = (_onnx.dense(gates) if in_onnx_graph() else gates.contiguous()).chunk(2, dim=1)
    return i, f
