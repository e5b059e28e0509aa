"""The time loop shared by the recurrent cells (sLSTM and LSTM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._dtypes import accumulation_dtype, rounded, zeroed

State = tuple[Tensor, ...]  # h first, each (B, H, D)
Gates = tuple[Tensor, ...]  # the four pre-activations, each (B, H, D)
Cell = Callable[[Gates, State], State]  # pre-activations, state before -> state after; element by element


def step(cell: Cell, x: Tensor, R: Tensor, b: Tensor | None, state: State) -> State:
    """One token: x (B, 4, H, D), R (4, H, D, D) and b (4, H, D); the state in A, its h rounded to T."""
    compute = state[0].dtype
    raw = x.to(compute) + torch.einsum("ghij,bhj->bghi", R.to(compute), state[0])
    if b is not None:
        raw = raw + b.to(compute)
    h, *rest = cell(raw.unbind(1), state)
    return rounded(h, x.dtype), *rest


def scan(
    cell: Cell,
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: State,
    lengths: Tensor | None,
    reset: Tensor | None,
    reversed_heads: int,
) -> tuple[Tensor, State]:
    """All tokens of x (B, S, 4, H, D): h (B, S, H, D) in x's dtype, and the final state."""
    if not reversed_heads:
        return _forward(cell, x, R, b, state, lengths, reset)
    cut = x.shape[3] - reversed_heads
    first = _forward(
        cell, x[..., :cut, :], R[:, :cut], _heads(b, slice(cut)), _parts(state, slice(cut)), lengths, reset
    )
    last = slice(cut, None)
    turned = None if reset is None else turn(reset, lengths)
    tail = turn(x[..., last, :], lengths), R[:, last], _heads(b, last), _parts(state, last)
    h, final = _forward(cell, *tail, lengths, turned)
    joined = tuple(torch.cat(parts, 1) for parts in zip(first[1], final, strict=True))
    return torch.cat([first[0], turn(h, lengths)], 2), joined


def turn(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, S, ...) backwards in time; with lengths (B,) the tokens of each row, while its padding stays."""
    if lengths is None:
        return x.flip(1)
    t, end = torch.arange(x.shape[1], device=x.device), lengths[:, None]
    index = torch.where(t < end, end - 1 - t, t)
    return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand_as(x))


def _parts(state: State, heads: slice) -> State:
    return tuple(s[:, heads] for s in state)


def _heads(b: Tensor | None, heads: slice) -> Tensor | None:
    return None if b is None else b[:, heads]


def _forward(
    cell: Cell, x: Tensor, R: Tensor, b: Tensor | None, state: State, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, State]:
    compute = state[0].dtype
    R, b = R.to(compute), None if b is None else b.to(compute)  # here, so that their gradients add up in A
    outputs = []
    for t in range(x.shape[1]):
        x_t = x[:, t]
        before = state if reset is None else tuple(zeroed(s, reset[:, t]) for s in state)
        if lengths is None:
            state = step(cell, x_t, R, b, before)
            outputs.append(state[0])
        else:
            past = lengths <= t
            after = step(cell, zeroed(x_t, past), R, b, before)  # padding may hold NaN
            outputs.append(zeroed(after[0], past))
            past = past.view(-1, 1, 1)
            state = tuple(torch.where(past, old, new) for old, new in zip(state, after, strict=True))
    h = torch.stack(outputs, dim=1).to(x.dtype) if outputs else x.select(2, 0).clone()
    return h, state


def state_or_zeros(initial_state: State | None, x: Tensor, num_states: int) -> State:
    """The state before the first token, in A: `initial_state`, or zeros. x (B, ..., 4, H, D)."""
    compute = accumulation_dtype(x.dtype)
    if initial_state is None:
        zeros = torch.zeros(x.shape[0], *x.shape[-2:], dtype=compute, device=x.device)
        return (zeros,) * num_states
    h, *rest = (s.to(compute) for s in initial_state)
    return rounded(h, x.dtype), *rest
