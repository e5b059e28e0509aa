"""The causal depthwise convolution over time, one shifted copy of the inputs per tap."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._dtypes import accumulation_dtype


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y (B, S, F) in x's dtype, and with return_state the last K - 1 inputs that a next token would see.

    x (B, S, F), weight (F, K), bias (F,), initial_state (B, K - 1, F): the inputs before x.
    reset (B, S) bool: inputs before that token count as zeros from there on.
    cu_seqlens (N + 1): N sequences in one row, each with its own state (N, K - 1, F).
    """
    if cu_seqlens is None:
        state = _state(x, weight, initial_state, x.shape[0])
        y, final = _convolve(x, weight, bias, activation, state, reset)
    else:
        bounds = cu_seqlens.tolist()
        states = _state(x, weight, initial_state, len(bounds) - 1).split(1)
        pieces = [
            _convolve(x[:, a:b], weight, bias, activation, s, None if reset is None else reset[:, a:b])
            for a, b, s in zip(bounds, bounds[1:], states, strict=False)
        ]
        y = torch.cat([x[:, :0], *(piece for piece, _ in pieces)], 1)
        final = torch.cat([x.new_empty(0, weight.shape[1] - 1, x.shape[2]), *(state for _, state in pieces)])
    return (y, final) if return_state else y


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, activation: str | None, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """x (B, F) or (B, S, F) -> y alike, and the next state, with inplace in the memory of the given one."""
    tokens = x if x.ndim == 3 else x.unsqueeze(1)
    y, after = _convolve(tokens, weight, bias, activation, state.to(x.dtype), None)
    return y.view(x.shape), state.copy_(after) if inplace else after


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """state (B, K - 1, F) -> y (B, S, F) and the next state."""
    compute, seqlen, past = accumulation_dtype(x.dtype), x.shape[1], state.shape[1]
    window = torch.cat([state, x], 1)  # (B, K - 1 + S, F)
    documents = None if reset is None else _documents(reset, past)
    y = x.new_zeros(x.shape, dtype=compute) if bias is None else bias.to(compute).expand(x.shape)
    for j, tap in enumerate(weight.to(compute).unbind(1)):
        inputs = window.narrow(1, j, seqlen)
        if documents is not None:
            inputs = _visible(inputs, documents.narrow(1, j, seqlen), documents.narrow(1, past, seqlen))
        y = y + inputs.to(compute) * tap
    following = window.narrow(1, seqlen, past).clone()  # a view would keep the whole window alive
    if documents is not None:
        following = _visible(following, documents.narrow(1, seqlen, past), documents[:, -1:])
    return (F.silu(y) if activation == "silu" else y).to(x.dtype), following


def _state(x: Tensor, weight: Tensor, state: Tensor | None, rows: int) -> Tensor:
    """The inputs before the first token, in x's dtype."""
    shape = rows, weight.shape[1] - 1, x.shape[2]
    return x.new_zeros(shape) if state is None else state.to(x.dtype)


def _documents(reset: Tensor, before: int) -> Tensor:
    """reset (B, S) -> numbers (B, before + S), equal where no reset lies between: 0 for the inputs of the state."""
    return F.pad(reset.cumsum(1), (before, 0))


def _visible(inputs: Tensor, documents: Tensor, current: Tensor) -> Tensor:
    """inputs (B, S, F), zero where their document (B, S) is not the current one; by selection, which stops NaN too."""
    return inputs.masked_fill((documents != current).unsqueeze(-1), 0)
