"""Causal depthwise convolution over time, with its last inputs as a state."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._children import call, is_plain
from .config import require


class CausalConv1d(nn.Module):
    """y[t] = bias + sum_j weight[j] x[t - K + 1 + j], every feature by itself. K = kernel_size >= 1.

    K multiply-adds on (B, S, F), at least in float32: a convolution primitive would want (B, F, S), and that transposed
    layout would slow down all that follows.
    """

    def __init__(self, features: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.conv = nn.Conv1d(features, features, kernel_size, groups=features)

    def forward(self, x: Tensor, state: Tensor | None = None, *, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, S, F), state (B, K - 1, F), the inputs before x, None: zeros -> (y (B, S, F), the next state).

        reset: bool (B, S): inputs before that token, the state's included, count as zeros from there on.
        """
        batch, seqlen, features = x.shape
        shape = (batch, self.kernel_size - 1, features)
        if state is None:
            state = x.new_zeros(shape)
        require(state.shape == shape, f"conv state must have shape {shape}, got {tuple(state.shape)}")
        window = torch.cat([state.to(x.dtype), x], dim=1)  # (B, K - 1 + S, F)
        documents = None if reset is None else _documents(reset, shape[1])
        following = window[:, seqlen:].clone()  # a view would keep the whole window alive
        if documents is not None:
            following = _visible(following, documents[:, seqlen:], documents[:, -1:])
        if not is_plain(nn.Conv1d, self.conv):
            return self._called(window, documents, seqlen).to(x.dtype), following
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.conv.weight.to(dtype), cast(Tensor, self.conv.bias).to(dtype)
        y = bias.expand(x.shape)
        for j, tap in enumerate(weight[:, 0].unbind(1)):
            past = window[:, j : j + seqlen]
            if documents is not None:
                past = _visible(past, documents[:, j : j + seqlen], documents[:, shape[1] :])
            y = torch.addcmul(y, past, tap)
        return y.to(x.dtype), following

    def _called(self, window: Tensor, documents: Tensor | None, seqlen: int) -> Tensor:
        """The convolution by `conv` itself: of the whole window, or of every token's own where documents hide inputs.

        window (B, K - 1 + S, F), documents (B, K - 1 + S) or None -> (B, S, F).
        """
        if documents is None and seqlen:
            return call(self.conv, window.mT).mT
        kernel = self.kernel_size
        past = F.pad(window, (0, 0, 0, 1)).unfold(1, kernel, 1)[:, :seqlen]  # (B, S, F, K), also for no token
        if documents is not None:
            others = F.pad(documents, (0, 1)).unfold(1, kernel, 1)[:, :seqlen] != documents[:, kernel - 1 :, None]
            past = past.masked_fill(others.unsqueeze(2), 0)
        return call(self.conv, past.flatten(0, 1)).reshape(past.shape[:3])

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()


def _documents(reset: Tensor, before: int) -> Tensor:
    """reset (B, S) -> numbers (B, before + S), equal where no reset lies between: 0 for the inputs of the state."""
    return F.pad(reset.cumsum(1), (before, 0))


def _visible(past: Tensor, documents: Tensor, current: Tensor) -> Tensor:
    """past (B, S, F), zero where its document (B, S) is not the current one; by selection, which also stops NaN."""
    return past.masked_fill((documents != current).unsqueeze(-1), 0)
