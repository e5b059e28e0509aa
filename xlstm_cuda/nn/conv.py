"""Causal depthwise convolution over time, with its last inputs as a state."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .config import require


class CausalConv1d(nn.Module):
    """y[t] = bias + sum_j weight[j] x[t - K + 1 + j], every feature by itself. K = kernel_size >= 1.

    K multiply-adds on (B, S, F), at least in float32: a convolution primitive would want (B, F, S), and that transposed
    layout would slow down all that follows.
    """

    def __init__(self, features: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, features, kernel_size, groups=features)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, S, F), state (B, K - 1, F), the inputs before x, None: zeros -> (y (B, S, F), the next state)."""
        batch, seqlen, features = x.shape
        shape = (batch, self.conv.kernel_size[0] - 1, features)
        if state is None:
            state = x.new_zeros(shape)
        require(state.shape == shape, f"conv state must have shape {shape}, got {tuple(state.shape)}")
        window = torch.cat([state.to(x.dtype), x], dim=1)  # (B, K - 1 + S, F)
        following = window[:, seqlen:].clone()  # a view would keep the whole window alive
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.conv.weight.to(dtype), cast(Tensor, self.conv.bias).to(dtype)
        y = bias.expand(x.shape)
        for j, tap in enumerate(weight[:, 0].unbind(1)):
            y = torch.addcmul(y, window[:, j : j + seqlen], tap)
        return y.to(x.dtype), following

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()
