"""Causal depthwise convolution over time, with its last inputs as a state."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from .._children import call, is_plain
from .config import require


class CausalConv1d(nn.Module):
    """y[t] = bias + sum_j weight[j] x[t - K + 1 + j], every feature by itself. K = kernel_size >= 1.

    By `functional.causal_conv1d`: a convolution primitive would want (B, F, S), and that transposed layout would slow
    down all that follows.
    """

    def __init__(self, features: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.conv = nn.Conv1d(features, features, kernel_size, groups=features)

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, reset: Tensor | None = None, activation: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, S, F), state (B, K - 1, F), the inputs before x, None: zeros -> (y (B, S, F), the next state).

        reset: bool (B, S): inputs before that token, the state's included, count as zeros from there on.
        activation: None or "silu", of y.
        """
        shape = (x.shape[0], self.kernel_size - 1, x.shape[2])
        if state is not None:
            require(state.shape == shape, f"conv state must have shape {shape}, got {tuple(state.shape)}")
        if not is_plain(nn.Conv1d, self.conv):
            y, following = self._by_call(x, x.new_zeros(shape) if state is None else state, reset)
            return F.silu(y) if activation == "silu" else y, following
        weight, bias = self.conv.weight.squeeze(1), self.conv.bias
        options: dict[str, Any] = {"activation": activation, "initial_state": state, "reset": reset}
        convolved = functional.causal_conv1d(x, weight, bias, return_state=True, **options)
        return cast(tuple[Tensor, Tensor], convolved)

    def _by_call(self, x: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        seqlen, before = x.shape[1], state.shape[1]
        window = torch.cat([state.to(x.dtype), x], dim=1)  # (B, K - 1 + S, F)
        documents = None if reset is None else _documents(reset, before)
        following = window[:, seqlen:].clone()  # a view would keep the whole window alive
        if documents is not None:
            following = _visible(following, documents[:, seqlen:], documents[:, -1:])
        return self._called(window, documents, seqlen).to(x.dtype), following

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
