"""slstm and lstm as one `Scan` over time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._states import LSTMState, SLSTMState
from ..reference._dtypes import rounded
from ..reference._scan import Cell, State, state_or_zeros, turn
from ..reference.lstm import cell as lstm_cell
from ..reference.slstm import cell as slstm_cell
from ._gates import log_sigmoid
from ._scan import dense, scan


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
    h, after = _one(cell, x, R, b, state_or_zeros(state, x, num_states=4))
    return h, SLSTMState(*after)


def lstm_step(x: Tensor, R: Tensor, b: Tensor | None, state: LSTMState) -> tuple[Tensor, LSTMState]:
    """`reference.lstm_step`."""
    h, after = _one(lstm_cell, x, R, b, state_or_zeros(state, x, num_states=2))
    return h, LSTMState(*after)


def _one(cell: Cell, x: Tensor, R: Tensor, b: Tensor | None, state: State) -> tuple[Tensor, State]:
    """One token: x (B, 4, H, D) -> h (B, H, D) in x's dtype, and the state after it."""
    raw = _with_bias(x, b, state[0].dtype).permute(2, 0, 1, 3)  # (H, B, 4, D)
    before = [dense(s.transpose(0, 1)) for s in state]
    after = _advanced(cell, dense(raw).flatten(2), _by_head(R, raw.dtype), before, x.dtype)
    after = tuple(dense(s.transpose(0, 1)) for s in after)
    return after[0].to(x.dtype), after


def _advanced(cell: Cell, raw: Tensor, R: Tensor, before: Sequence[Tensor], dtype: torch.dtype) -> State:
    """The state after one token of raw (H, B, 4 D), R (H, D, 4 D): parts (H, B, D), its h rounded to `dtype`."""
    h, *rest = cell((raw + torch.bmm(before[0], R)).chunk(4, -1), tuple(before))
    return rounded(h, dtype), *rest


def _with_bias(x: Tensor, b: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if b is None else x.to(dtype) + b.to(dtype)


def _by_head(R: Tensor, dtype: torch.dtype) -> Tensor:
    """R (4, H, D, D) -> (H, D from, 4 D to)."""
    return R.to(dtype).permute(1, 3, 0, 2).flatten(2)


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
    raw = _with_bias(x, b, compute)
    if past is not None:
        raw = raw.masked_fill(past[..., None, None, None], 0)  # padding may hold NaN
    raw = dense(_turned(raw, 3, reversed_heads, lengths).permute(1, 3, 0, 2, 4)).flatten(3)  # (S, H, B, 4 D)
    masks = []
    if reset is not None:
        by_head = reset[..., None].expand(*reset.shape, x.shape[3])
        masks.append(_turned(by_head, 2, reversed_heads, lengths).permute(1, 2, 0).unsqueeze(-1))  # (S, H, B, 1)
    if past is not None:
        masks.append(past.T[:, None, :, None])

    def body(before: Any, slices: Any, constants: Any) -> tuple[State, State]:
        raw, *marks = slices
        kept = before if reset is None else [s.masked_fill(marks[0], 0) for s in before]
        after = _advanced(cell, raw, constants[0], kept, dtype)
        if past is not None:
            after = tuple(torch.where(marks[-1], old, new) for old, new in zip(before, after, strict=True))
        return after, (after[0],)

    final, (h,) = scan(body, [s.transpose(0, 1) for s in state], [raw, *masks], [_by_head(R, compute)])
    h = _turned(h.permute(2, 0, 1, 3), 2, reversed_heads, lengths)  # (B, S, H, D)
    if past is not None:
        h = h.masked_fill(past[..., None, None], 0)
    return dense(h.to(dtype)), tuple(dense(s.transpose(0, 1)) for s in final)


def _turned(x: Tensor, dim: int, heads: int, lengths: Tensor | None) -> Tensor:
    """x (B, S, ...), the last `heads` along `dim` backwards in time."""
    if not heads:
        return x
    ahead = x.shape[dim] - heads
    return torch.cat([x.narrow(dim, 0, ahead), turn(x.narrow(dim, ahead, heads), lengths)], dim)
