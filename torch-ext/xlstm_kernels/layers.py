"""Layers that take the `forward` of others: no constructor, no members, no other methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import functional


class mLSTM(nn.Module):
    """The cell of an mLSTM: `mlstm` of q, k, v (B, H, S, D) and gates i, f (B, H, S) -> h (B, H, S, D)."""

    can_torch_compile: bool = True
    has_backward: bool = True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, **options: Any) -> Any:
        return functional.mlstm(q, k, v, i, f, **options)


class sLSTM(nn.Module):
    """The cell of an sLSTM: `slstm` of x (B, S, 4, H, D), R (4, H, D, D) and b (4, H, D) -> h (B, S, H, D)."""

    can_torch_compile: bool = True
    has_backward: bool = True

    def forward(self, x: Tensor, R: Tensor, b: Tensor | None = None, **options: Any) -> Any:
        return functional.slstm(x, R, b, **options)


class LSTM(nn.Module):
    """The cell of an LSTM: `lstm` of x (B, S, 4, H, D), R (4, H, D, D) and b (4, H, D) -> h (B, S, H, D)."""

    can_torch_compile: bool = True
    has_backward: bool = True

    def forward(self, x: Tensor, R: Tensor, b: Tensor | None = None, **options: Any) -> Any:
        return functional.lstm(x, R, b, **options)


class SiluAndMul(nn.Module):
    """x (..., 2 F) -> silu(first half) times the second half (..., F)."""

    can_torch_compile: bool = True
    has_backward: bool = True

    def forward(self, x: Tensor) -> Tensor:
        return functional.gated_activation(x, activation="silu")


class CausalConv1d(nn.Module):
    """y[t] = bias + sum_j weight[j] x[t - K + 1 + j] of x (B, S, F), by weight (F, 1, K) and bias (F,) or None."""

    weight: Tensor
    bias: Tensor | None
    can_torch_compile: bool = True
    has_backward: bool = True

    def forward(self, x: Tensor) -> Tensor:
        y = functional.causal_conv1d(x, torch.squeeze(self.weight, 1), self.bias)
        assert isinstance(y, Tensor)
        return y
