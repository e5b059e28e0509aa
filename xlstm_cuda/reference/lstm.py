"""The classical LSTM cell, gate order i, f, g, o as in torch.nn.LSTM, with one recurrent matrix per head."""

from __future__ import annotations

import torch
from torch import Tensor

from .._states import LSTMState
from ._scan import Gates, State, scan, state_or_zeros, step


def lstm(
    x: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    *,
    initial_state: LSTMState | None = None,
    return_state: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reversed_heads: int = 0,
) -> Tensor | tuple[Tensor, LSTMState]:
    """LSTM over a sequence: h (B, S, H, D) in x's dtype, and with return_state the final LSTMState.

    x (B, S, 4, H, D): input part of the gate pre-activations, order i, f, g, o; R (4, H, D, D); b (4, H, D).
    lengths (B,): h is 0 from there on, the final state is the one before.
    reset (B, S) bool: the state is emptied before that token.
    reversed_heads: the last so many heads go from a row's last token to its first.
    """
    h, state = scan(cell, x, R, b, state_or_zeros(initial_state, x, num_states=2), lengths, reset, reversed_heads)
    return (h, LSTMState(*state)) if return_state else h


def lstm_step(x: Tensor, R: Tensor, b: Tensor | None, state: LSTMState) -> tuple[Tensor, LSTMState]:
    """One token: x (B, 4, H, D) -> h (B, H, D) in x's dtype, and the next state."""
    after = step(cell, x, R, b, state_or_zeros(state, x, num_states=2))
    return after[0].to(x.dtype), LSTMState(*after)


def cell(gates: Gates, state: State) -> State:
    i, f, g, o = gates
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
