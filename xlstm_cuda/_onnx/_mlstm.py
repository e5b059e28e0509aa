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
from ._scan import dense, scan

MOST = 512  # tokens of a chunk, as on a CPU
NOTHING = -1e35  # the logarithm of a closed gate: finite, also as a sum over a chunk, and far below M_MIN


def _form(
    tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options, one: bool = False
) -> tuple[Tensor, MLSTMState]:
    """A form of the reference. one: all tokens are one chunk; so are fewer than a chunk has, where that is known."""
    batch, heads, seqlen, _ = tokens.q.shape
    length = min(options.chunk_size, MOST)
    inputs = [_rows(x) for x in tokens]
    inputs[3] = (log_sigmoid(inputs[3]) if options.sigmoid_gate else inputs[3]).clamp(min=NOTHING)
    inputs[4] = log_sigmoid(inputs[4]).clamp(min=NOTHING)
    if reset is not None:
        inputs.append(_rows(reset[:, None].expand(batch, heads, seqlen).to(inputs[4].dtype)))
    before = MLSTMState(*map(_rows, state))
    if one or (isinstance(seqlen, int) and seqlen <= length):
        h, after = _chunk(inputs, before, options)
    else:
        h, after = _chunks(inputs, before, options, length)
    return h.unflatten(0, (batch, heads)), MLSTMState(*(s.unflatten(0, (batch, heads)) for s in after))


mlstm = partial(reference.mlstm, form=_form)
mlstm_step = partial(reference.mlstm_step, form=partial(_form, one=True))


def _rows(x: Tensor) -> Tensor:
    """(B, H, ...) -> (G, ...)."""
    return dense(x).flatten(0, 1)


def _chunks(inputs: list[Tensor], state: MLSTMState, options: Options, length: int) -> tuple[Tensor, MLSTMState]:
    fillers = (0.0, 0.0, 0.0, NOTHING, 0.0, 0.0)[: len(inputs)]  # padding writes nothing and forgets nothing

    def body(before: Any, slices: Any, constants: Any) -> tuple[MLSTMState, tuple[Tensor]]:
        h, after = _chunk(slices, MLSTMState(*before), options)
        return after, (h,)

    after, (h,) = scan(body, state, cut(inputs, fillers, length), [])
    return joined(h, inputs[2]), MLSTMState(*after)


def _chunk(inputs: Any, state: MLSTMState, options: Options) -> tuple[Tensor, MLSTMState]:
    """h (G, L, Dv) of the L tokens that follow `state`, and the state after them.

    inputs: q, k, v (G, L, ...), logarithms of the gates and resets as ones and zeros (G, L), if there are any.
    """
    q, k, v, log_i, log_f, *marks = inputs
    C, n, m = state
    log_w, alive = _log_weights(log_i, log_f, torch.zeros_like(m) if options.sigmoid_gate else m, *marks)
    stabiliser = torch.zeros_like(log_f) if options.sigmoid_gate else log_w.amax(-1).clamp(min=M_MIN)
    weights = torch.exp(log_w - stabiliser[..., None])
    carry, weights = weights[..., 0], weights[..., 1:]
    if alive is not None:
        carry = carry * alive
    scores = torch.bmm(q, k.mT) * weights
    numerator = torch.bmm(scores, v) + carry[..., None] * torch.bmm(q, C)
    r = scores.sum(-1) + carry * torch.bmm(q, n[..., None]).squeeze(-1)
    k, carry = weights[:, -1, :, None] * k, carry[:, -1]
    if not options.sigmoid_gate:
        m = stabiliser[:, -1]
    elif alive is not None:
        m = m.masked_fill(alive[:, -1] == 0, 0)
    after = MLSTMState(carry[:, None, None] * C + torch.bmm(k.mT, v), carry[:, None] * n + k.sum(1), m)
    return normalised(numerator, r, stabiliser, options), after


def _log_weights(log_i: Tensor, log_f: Tensor, m: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """(G, L, L + 1): how much of the state, column 0, and of each token is in each token's state; -inf for nothing.

    With resets also (G, L): whether the state before is not forgotten. Where it is, column 0 is the empty state's m.
    Sums, not differences of sums: the logarithms may be huge.
    """
    length = log_f.shape[1]
    ones = torch.ones(length, length + 1, dtype=log_f.dtype, device=log_f.device)
    seen = ones[:, 1:].tril()  # [t, r]: token r is not after t
    after = ones.tril()  # [r, s]: token r is after what column s has
    hidden = ones.triu(2) > 0  # [t, s]: column s is after token t
    alive = None
    sources = log_i[:, None, :].expand(-1, length, -1)
    carried = m[:, None].expand(-1, length)
    seen = seen.expand(log_f.shape[0], -1, -1)
    if reset is not None:
        document = (reset[:, None, :] * seen).sum(-1)  # resets up to each token
        others = (document[:, :, None] - document[:, None, :]).abs().clamp(max=1)
        alive = 1 - document.clamp(max=1)
        seen, carried = seen * (1 - others), carried * alive
        sources = sources.masked_fill(others > 0, -torch.inf)
    decay = torch.bmm(seen, log_f[..., None] * after)
    log_w = (decay + torch.cat([carried[..., None], sources], -1)).masked_fill(hidden, -torch.inf)
    return log_w, alive
