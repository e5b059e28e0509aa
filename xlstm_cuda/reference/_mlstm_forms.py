"""Three forms of the mLSTM (arXiv 2405.04517, section 2.3) that compute the same function.

recurrent: one token after another, the definition. parallel: all tokens at once through an (S, S) matrix of weights.
chunkwise: the parallel form inside chunks, the recurrent one between them (arXiv 2503.14376).
All tensors have dtype A, q is already scaled, S >= 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from .._states import MLSTMState
from ._dtypes import zeroed

M_MIN = -1e30  # m of a state that holds nothing: finite, so that differences of m are never NaN


class Tokens(NamedTuple):
    """q, k (B, H, S, Dqk), v (B, H, S, Dv), gate pre-activations i, f (B, H, S)."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor


class Options(NamedTuple):
    sigmoid_gate: bool
    normalize: bool
    eps: float
    norm_grad: bool
    chunk_size: int


# (tokens, state before, reset (B, S) or None, options) -> h (B, H, S, Dv), state after
Form = Callable[[Tokens, MLSTMState, Tensor | None, Options], tuple[Tensor, MLSTMState]]


def recurrent(tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options) -> tuple[Tensor, MLSTMState]:
    """Equations 19 to 27, token by token."""
    outputs = []
    for t in range(tokens.q.shape[2]):
        q, k, v, i, f = (a[:, :, t] for a in tokens)
        C, n, m = state if reset is None else (zeroed(s, reset[:, t]) for s in state)
        if options.sigmoid_gate:
            forget, write = torch.sigmoid(f), torch.sigmoid(i)
        else:
            decayed = logsigmoid(f) + m
            m = torch.where(i > decayed, i, decayed).clamp(min=M_MIN)
            forget, write = torch.exp(decayed - m), torch.exp(i - m)
        k = write[..., None] * k
        C = forget[..., None, None] * C + k[..., :, None] * v[..., None, :]
        n = forget[..., None] * n + k
        state = MLSTMState(C, n, m)
        outputs.append(normalised((q[..., None] * C).sum(-2), (q * n).sum(-1), m, options))
    return torch.stack(outputs, dim=2), state


def normalised(numerator: Tensor, r: Tensor, m: Tensor, options: Options) -> Tensor:
    """numerator / (max(|r|, exp(-m)) + eps), with 1 for exp(-m) if the input gate is a sigmoid.

    numerator (..., Dv), r and m (...).
    """
    if not options.normalize:
        return numerator
    if options.sigmoid_gate:
        m = torch.zeros_like(m)
    r = r.abs()
    live = r > torch.exp(-m)
    of_r = 1 / (torch.where(live, r, 1) + options.eps)
    of_m = _inverse_floor(m.masked_fill(live, 0), options.eps)
    inverse = torch.where(live, of_r, of_m)
    if not options.norm_grad:
        # The denominator is a constant in unstabilised units: what of m the numerator is divided by must cancel.
        inverse = inverse.detach() * torch.exp(m - m.detach())
    return numerator * inverse[..., None]


def _inverse_floor(m: Tensor, eps: float) -> Tensor:
    """1 / (exp(-m) + eps), where exp(-m) may exceed the largest number."""
    small = torch.exp(torch.where(m < 0, m, 0))
    return small / (torch.exp(torch.where(m < 0, 0, -m)) + eps * small)


def _split_at_resets(form: Form) -> Form:
    """Teach resets to a form: in each row, every reset starts another sequence with an empty state."""

    def row_form(tokens: Tokens, state: MLSTMState, starts: list[int], options: Options) -> tuple[Tensor, MLSTMState]:
        outputs = []
        for begin, end in zip([0, *starts], [*starts, tokens.q.shape[2]], strict=True):
            if begin in starts:
                state = MLSTMState(*(torch.zeros_like(s) for s in state))
            if begin < end:
                h, state = form(Tokens(*(a[:, :, begin:end] for a in tokens)), state, None, options)
                outputs.append(h)
        return torch.cat(outputs, dim=2), state

    def split_form(
        tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options
    ) -> tuple[Tensor, MLSTMState]:
        if reset is None or not reset.any():
            return form(tokens, state, None, options)
        rows = []
        for b, marks in enumerate(reset):
            row, before = Tokens(*(a[b : b + 1] for a in tokens)), MLSTMState(*(s[b : b + 1] for s in state))
            rows.append(row_form(row, before, marks.nonzero().flatten().tolist(), options))
        return torch.cat([h for h, _ in rows]), concatenated(s for _, s in rows)

    return split_form


@_split_at_resets
def parallel(tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options) -> tuple[Tensor, MLSTMState]:
    q, k, v, i, f = tokens
    log_i, log_f = logsigmoid(i) if options.sigmoid_gate else i, logsigmoid(f)
    log_w, log_decay = _log_weights(log_i, log_f), log_f.cumsum(-1)
    h = normalised(*_attend(q, k, v, log_w, log_decay, state, options), options)
    return h, _absorb(k, v, log_w, log_decay, state, options)


@_split_at_resets
def chunkwise(tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options) -> tuple[Tensor, MLSTMState]:
    """The states between the chunks first, then all tokens of all chunks at once."""
    q, k, v, i, f = tokens
    log_i, log_f = logsigmoid(i) if options.sigmoid_gate else i, logsigmoid(f)
    q, k, v, log_f = (_chunked(a, options.chunk_size) for a in (q, k, v, log_f))  # (B, H, N, L, ...)
    log_i = _chunked(log_i, options.chunk_size, filler=-torch.inf)  # padding writes nothing and forgets nothing
    log_w, log_decay = _log_weights(log_i, log_f), log_f.cumsum(-1)

    entering = []
    for c in range(q.shape[2]):
        entering.append(state)
        state = _absorb(k[:, :, c], v[:, :, c], log_w[:, :, c], log_decay[:, :, c], state, options)
    states = MLSTMState(*(torch.stack(s, dim=2) for s in zip(*entering, strict=True)))  # (B, H, N, ...)
    attended = _attend(q, k, v, log_w, log_decay, states, options)
    numerator, r, m = (a.flatten(2, 3)[:, :, : f.shape[2]] for a in attended)
    return normalised(numerator, r, m, options), state


def _chunked(x: Tensor, chunk: int, filler: float = 0.0) -> Tensor:
    """(B, H, S, ...) -> (B, H, N, L, ...), the last chunk filled up."""
    x = pad(x, (0, 0) * (x.ndim - 3) + (0, -x.shape[2] % chunk), value=filler)
    return x.reshape(*x.shape[:2], x.shape[2] // chunk, chunk, *x.shape[3:])


def _log_weights(log_i: Tensor, log_f: Tensor) -> Tensor:
    """(..., L) -> (..., L, L): [t, s] = log_i[s] + sum of log_f over s < r <= t, -inf where s > t.

    Sums, not differences of sums: log_f may be -inf.
    """
    ones = torch.ones(log_f.shape[-1:] * 2, dtype=torch.bool, device=log_f.device)
    decay = log_f[..., :, None].masked_fill(ones.triu(), 0).cumsum(-2)  # [r, s] before the sum, [t, s] after
    return (decay + log_i[..., None, :]).masked_fill(ones.triu(1), -torch.inf)


def _stabiliser(log_carry: Tensor, log_w: Tensor) -> Tensor:
    """m: the largest of log_carry (...) and log_w (..., L); of equal ones the earliest."""
    return torch.cat([log_carry[..., None], log_w], dim=-1).max(dim=-1).values.clamp(min=M_MIN)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, log_w: Tensor, log_decay: Tensor, state: MLSTMState, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Numerator (..., L, Dv), r and m (..., L) of the L tokens that follow `state`.

    log_w (..., L, L), log_decay (..., L).
    """
    if options.sigmoid_gate:
        log_carry, m = log_decay, torch.zeros_like(log_decay)
    else:
        log_carry = log_decay + state.m[..., None]
        m = _stabiliser(log_carry, log_w)
    carry = torch.exp(log_carry - m)[..., None]  # (..., L, 1)
    scores = q @ k.mT * torch.exp(log_w - m[..., None])
    numerator = scores @ v + carry * (q @ state.C)
    r = scores.sum(-1) + (carry * (q @ state.n[..., None])).squeeze(-1)
    return numerator, r, m


def _absorb(k: Tensor, v: Tensor, log_w: Tensor, log_decay: Tensor, state: MLSTMState, options: Options) -> MLSTMState:
    """The state after the L tokens that follow `state`."""
    C, n, m = state
    log_carry, log_w = log_decay[..., -1], log_w[..., -1, :]
    if not options.sigmoid_gate:
        log_carry = log_carry + m
        m = _stabiliser(log_carry, log_w)
        log_carry, log_w = log_carry - m, log_w - m[..., None]
    carry = torch.exp(log_carry)[..., None]
    k = torch.exp(log_w)[..., None] * k
    return MLSTMState(carry[..., None] * C + k.mT @ v, carry * n + k.sum(-2), m)


def concatenated(states: Iterable[MLSTMState]) -> MLSTMState:
    return MLSTMState(*(torch.cat(s) for s in zip(*states, strict=True)))
