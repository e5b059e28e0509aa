"""mlstm chunk by chunk: products of matrices inside, one `Scan` over the chunks (arXiv 2503.14376)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._states import MLSTMState
from ..reference._mlstm_forms import M_MIN, Options, Tokens, normalised
from ._chunks import cut, joined
from ._gates import log_sigmoid
from ._scan import scan

MOST = 512  # tokens of a chunk, as on a CPU
NOTHING = -1e35  # the logarithm of a closed gate: finite, also as a sum over a chunk, and far below M_MIN


def _in_chunks(tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options) -> tuple[Tensor, MLSTMState]:
    """A form of the reference. Fewer tokens than a chunk has, where that is known, are a chunk."""
    length, seqlen = min(options.chunk_size, MOST), tokens.q.shape[2]
    if isinstance(seqlen, int) and seqlen <= length:
        return _one_chunk(tokens, state, reset, options)
    log_i, log_f = _logarithms(tokens, options)
    inputs = [cut(x, length) for x in (tokens.q, tokens.k, tokens.v)]
    inputs += [cut(log_i, length, filler=NOTHING), cut(log_f, length)]  # padding writes and forgets nothing
    if reset is not None:
        inputs.append(cut(reset[:, None].to(log_f.dtype), length))

    def body(before: Any, slices: Any, constants: Any) -> tuple[MLSTMState, tuple[Tensor]]:
        h, after = _chunk(*slices[:5], slices[5] if reset is not None else None, MLSTMState(*before), options)
        return after, (h,)

    final, (h,) = scan(body, state, inputs, [])
    return joined(h, tokens.v), MLSTMState(*final)


def _one_chunk(tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options) -> tuple[Tensor, MLSTMState]:
    marks = None if reset is None else reset[:, None].to(tokens.f.dtype)
    return _chunk(tokens.q, tokens.k, tokens.v, *_logarithms(tokens, options), marks, state, options)


mlstm = partial(reference.mlstm, form=_in_chunks)
mlstm_step = partial(reference.mlstm_step, form=_one_chunk)


def _logarithms(tokens: Tokens, options: Options) -> tuple[Tensor, Tensor]:
    log_i = log_sigmoid(tokens.i) if options.sigmoid_gate else tokens.i
    return log_i.clamp(min=NOTHING), log_sigmoid(tokens.f).clamp(min=NOTHING)


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, log_i: Tensor, log_f: Tensor, reset: Tensor | None, state: MLSTMState,
    options: Options,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """h (B, H, L, Dv) of the L tokens that follow `state`, and the state after them.

    log_i, log_f (B, H, L) finite, reset (B, 1, L) of ones and zeros. Column 0 of the (L, L + 1) weights is the state's,
    the others are the tokens'.
    """
    C, n, m = state
    length = log_f.shape[-1]
    ones = torch.ones(length, length + 1, dtype=log_f.dtype, device=log_f.device)
    seen, after = ones[:, 1:].tril(), ones.tril()  # [t, r]: token r comes no later; [r, s]: it forgets column s
    visible = ones.tril(1) > 0  # [t, s]
    if reset is not None:
        document = (reset[..., None, :] * seen).sum(-1)  # (B, 1, L): resets up to each token
        first = document == 0
        others = document[..., :, None] != document[..., None, :]
        seen = seen.masked_fill(others, 0)
        visible = visible & ~torch.cat([torch.zeros_like(others[..., :1]), others], -1)
    written = torch.zeros_like(m) if options.sigmoid_gate else m
    carried = written[..., None, None].expand(*log_f.shape, 1)
    if reset is not None:
        carried = carried.masked_fill(~first[..., None], 0)
    sources = torch.cat([carried, log_i[..., None, :].expand(*log_f.shape, length)], -1)
    log_w = (seen @ (log_f[..., None] * after) + sources).masked_fill(~visible, -torch.inf)
    if options.sigmoid_gate:
        stabiliser = torch.zeros_like(log_f)
    else:
        stabiliser = log_w.amax(-1).clamp(min=M_MIN)
    weights = torch.exp(log_w - stabiliser[..., None])
    carry, weights = weights[..., :1], weights[..., 1:]
    if reset is not None:
        carry = carry * first[..., None]
    scores = q @ k.mT * weights
    numerator = scores @ v + carry * (q @ C)
    r = scores.sum(-1) + (carry * (q @ n[..., None])).squeeze(-1)
    k = weights[..., -1, :, None] * k
    carry = carry[..., -1, :]
    if not options.sigmoid_gate:
        m = stabiliser[..., -1]
    elif reset is not None:
        m = m * first[..., -1]
    state = MLSTMState(carry[..., None] * C + k.mT @ v, carry * n + k.sum(-2), m)
    return normalised(numerator, r, stabiliser, options), state
