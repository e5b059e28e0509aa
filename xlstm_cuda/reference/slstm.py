"""sLSTM (arXiv 2405.04517, section 2.2) in its plain form with cell c, normaliser n and stabiliser m."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._states import SLSTMState
from ._scan import Gates, State, scan, state_or_zeros, step


def slstm(
    x: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    *,
    initial_state: SLSTMState | None = None,
    return_state: bool = False,
    forget_gate: str = "sigmoid",
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reversed_heads: int = 0,
) -> Tensor | tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence: h (B, S, H, D) in x's dtype, and with return_state the final SLSTMState.

    x (B, S, 4, H, D): input part of the gate pre-activations, order i, f, z, o; R (4, H, D, D); b (4, H, D).
    forget_gate: "sigmoid" or "exp". lengths (B,): h is 0 from there on, the final state is the one before.
    reset (B, S) bool: the state is emptied before that token.
    reversed_heads: the last so many heads go from a row's last token to its first.
    """
    state = state_or_zeros(initial_state, x, num_states=4)
    h, state = scan(partial(cell, forget_gate=forget_gate), x, R, b, state, lengths, reset, reversed_heads)
    return (h, SLSTMState(*state)) if return_state else h


def slstm_step(
    x: Tensor, R: Tensor, b: Tensor | None, state: SLSTMState, *, forget_gate: str = "sigmoid"
) -> tuple[Tensor, SLSTMState]:
    """One token: x (B, 4, H, D) -> h (B, H, D) in x's dtype, and the next state."""
    after = step(partial(cell, forget_gate=forget_gate), x, R, b, state_or_zeros(state, x, num_states=4))
    return after[0].to(x.dtype), SLSTMState(*after)


def cell(gates: Gates, state: State, forget_gate: str, log_sigmoid: Callable[[Tensor], Tensor] = logsigmoid) -> State:
    """Equations 8 to 17, element by element; an element with n = 0 is empty: its c, m and f do not count."""
    i, f, z, o = gates
    empty = state[2] == 0
    c, n, m, f = (s.masked_fill(empty, 0) for s in (*state[1:], f))

    decayed = m + (f if forget_gate == "exp" else log_sigmoid(f))
    decayed = decayed.masked_fill(empty, -torch.inf)
    m = torch.where(i > decayed, i, decayed)
    nothing = m == -torch.inf  # empty, or all forgotten, and nothing written
    m = m.masked_fill(nothing, 0)

    forget, write = torch.exp(decayed - m), torch.exp(i - m)
    c = forget * c + write * torch.tanh(z)
    n = forget * n + write
    h = torch.sigmoid(o) * c / n.masked_fill(nothing, 1)
    return h, c, n, m
