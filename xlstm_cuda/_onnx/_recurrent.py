"""slstm and lstm as one `Scan` over time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._states import LSTMState, SLSTMState
from ..reference._dtypes import rounded
from ..reference._scan import Cell, State, state_or_zeros, step, turn
from ..reference.lstm import cell as lstm_cell
from ..reference.lstm import lstm_step as lstm_step
from ..reference.slstm import cell as slstm_cell
from ._gates import log_sigmoid
from ._scan import scan


def lstm(
    x: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    *,
    initial_state: LSTMState | None = None,
    return_state: bool = False,
    **order: Any,
) -> Tensor | tuple[Tensor, LSTMState]:
    """`reference.lstm`. order: lengths, reset, reversed_heads."""
    h, state = _recurrence(lstm_cell, x, R, b, state_or_zeros(initial_state, x, num_states=2), **order)
    return (h, LSTMState(*state)) if return_state else h


def slstm(
    x: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    *,
    initial_state: SLSTMState | None = None,
    return_state: bool = False,
    forget_gate: str = "sigmoid",
    **order: Any,
) -> Tensor | tuple[Tensor, SLSTMState]:
    """`reference.slstm`. order: lengths, reset, reversed_heads."""
    cell = partial(slstm_cell, forget_gate=forget_gate, log_sigmoid=log_sigmoid)
    h, state = _recurrence(cell, x, R, b, state_or_zeros(initial_state, x, num_states=4), **order)
    return (h, SLSTMState(*state)) if return_state else h


def slstm_step(
    x: Tensor, R: Tensor, b: Tensor | None, state: SLSTMState, *, forget_gate: str = "sigmoid"
) -> tuple[Tensor, SLSTMState]:
    """`reference.slstm_step`."""
    cell = partial(slstm_cell, forget_gate=forget_gate, log_sigmoid=log_sigmoid)
    after = step(cell, x, R, b, state_or_zeros(state, x, num_states=4))
    return after[0].to(x.dtype), SLSTMState(*after)


def _recurrence(
    cell: Cell,
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: State,
    lengths: Tensor | None,
    reset: Tensor | None,
    reversed_heads: int,
) -> tuple[Tensor, State]:
    """x (B, S, 4, H, D) -> h (B, S, H, D) in x's dtype, and the final state. Both directions of time in one `Scan`.

    Heads come first in it: the recurrent part is a product of matrices for each.
    """
    compute, dtype = state[0].dtype, x.dtype
    past = None if lengths is None else torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, S)
    raw = x.to(compute) if b is None else x.to(compute) + b.to(compute)
    if past is not None:
        raw = raw.masked_fill(past[..., None, None, None], 0)  # padding may hold NaN
    raw = _turned(raw, 3, reversed_heads, lengths).permute(1, 3, 0, 2, 4).flatten(3)  # (S, H, B, 4 D)
    weight = R.to(compute).permute(1, 3, 0, 2).flatten(2)  # (H, D from, 4 D to)
    masks = []
    if reset is not None:
        by_head = reset[..., None].expand(*reset.shape, x.shape[3])
        masks.append(_turned(by_head, 2, reversed_heads, lengths).permute(1, 2, 0).unsqueeze(-1))  # (S, H, B, 1)
    if past is not None:
        masks.append(past.T[:, None, :, None])

    def body(before: Any, slices: Any, constants: Any) -> tuple[State, State]:
        raw, *marks = slices
        if reset is not None:
            before = [s.masked_fill(marks[0], 0) for s in before]
        h, *rest = cell((raw + before[0] @ constants[0]).chunk(4, -1), tuple(before))
        after = rounded(h, dtype), *rest
        if past is not None:
            after = tuple(torch.where(marks[-1], old, new) for old, new in zip(before, after, strict=True))
        return after, (after[0],)

    final, (h,) = scan(body, [s.transpose(0, 1) for s in state], [raw, *masks], [weight])
    h = _turned(h.permute(2, 0, 1, 3), 2, reversed_heads, lengths)  # (B, S, H, D)
    if past is not None:
        h = h.masked_fill(past[..., None, None], 0)
    return h.to(dtype), tuple(s.transpose(0, 1) for s in final)


def _turned(x: Tensor, dim: int, heads: int, lengths: Tensor | None) -> Tensor:
    """x (B, S, ...), the last `heads` along `dim` backwards in time."""
    if not heads:
        return x
    ahead = x.shape[dim] - heads
    return torch.cat([x.narrow(dim, 0, ahead), turn(x.narrow(dim, ahead, heads), lengths)], dim)
