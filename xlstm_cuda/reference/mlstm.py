"""mLSTM (arXiv 2405.04517, section 2.3): the public function in its three forms, and the step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from .._states import MLSTMState
from . import _mlstm_forms as forms
from ._dtypes import accumulation_dtype
from ._mlstm_forms import M_MIN, Form, Options, Tokens, concatenated


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    initial_state: MLSTMState | None = None,
    return_state: bool = False,
    input_gate: str = "exp",
    normalize: bool = True,
    scale: float | None = None,
    eps: float = 1e-6,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int | None = None,
    norm_grad: bool = True,
    form: Form = forms.recurrent,
) -> Tensor | tuple[Tensor, MLSTMState]:
    """mLSTM over a sequence: h (B, H, S, Dv) in q's dtype, and with return_state the final MLSTMState.

    q, k (B, H, S, Dqk), v (B, H, S, Dv), gate pre-activations i, f (B, H, S). input_gate: "exp" or "sigmoid".
    cu_seqlens (N+1,): N sequences packed in one row (B = 1), N states in and out.
    reset (B, S) bool: the state is emptied before that token. chunk_size counts in the chunkwise form only.
    Raises ValueError for an exponential input gate without normalisation.
    """
    if input_gate == "exp" and not normalize:
        raise ValueError('mlstm: normalize=False needs input_gate="sigmoid"')
    options = Options(input_gate == "sigmoid", normalize, eps, norm_grad, chunk_size or 64)
    compute = accumulation_dtype(q.dtype)
    tokens = Tokens(*(a.to(compute) for a in (q, k, v, i, f)))
    tokens = tokens._replace(q=tokens.q * (q.shape[-1] ** -0.5 if scale is None else scale))
    state = _state_or_zeros(initial_state, q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1, tokens, options)
    if q.shape[2] == 0:
        h = tokens.v.clone()
    elif cu_seqlens is None:
        h, state = form(tokens, state, reset, options)
    else:
        h, state = _packed(form, tokens, state, reset, options, cu_seqlens.tolist())
    h = h.to(q.dtype)
    return (h, state) if return_state else h


mlstm_recurrent = partial(mlstm, form=forms.recurrent)
mlstm_parallel = partial(mlstm, form=forms.parallel)
mlstm_chunkwise = partial(mlstm, form=forms.chunkwise)


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState,
    *,
    inplace: bool = False,
    out: MLSTMState | None = None,
    slots: Tensor | None = None,
    input_gate: str = "exp",
    normalize: bool = True,
    scale: float | None = None,
    eps: float = 1e-6,
    norm_grad: bool = True,
    form: Form = forms.recurrent,
) -> tuple[Tensor, MLSTMState]:
    """A few tokens from `state`: h and the next state, which with inplace is `state` itself, overwritten, or with
    `out` that one.

    q, k (B, H, Dqk), v (B, H, Dv), i, f (B, H) -> h (B, H, Dv); or S tokens at dim 2 of all of them.
    slots (B,): row b reads and writes row slots[b] of the state; the other rows stay as they are.
    """
    one = q.ndim == 3
    tokens = (a.unsqueeze(2) if one else a for a in (q, k, v, i, f))
    rows = None if slots is None else slots.long()
    result = mlstm(
        *tokens,
        initial_state=state if rows is None else MLSTMState(*(s[rows] for s in state)),
        return_state=True,
        input_gate=input_gate,
        normalize=normalize,
        scale=scale,
        eps=eps,
        norm_grad=norm_grad,
        form=form,
    )
    h, after = cast("tuple[Tensor, MLSTMState]", result)
    if inplace or out is not None:
        target = state if out is None else out
        with _overwriting(target):
            for old, new in zip(target, after, strict=True):
                old[... if rows is None else rows] = new.to(old.dtype)
        after = target
    elif rows is not None:
        after = MLSTMState(*(old.to(new.dtype).index_copy(0, rows, new) for old, new in zip(state, after, strict=True)))
    return h.squeeze(2) if one else h, after


def _overwriting(state: MLSTMState) -> AbstractContextManager[Any]:
    """Tensors made under inference_mode can be written in it only."""
    made_there = not torch.compiler.is_compiling() and any(s.is_inference() for s in state)
    return torch.inference_mode() if made_there else nullcontext()


def _state_or_zeros(initial_state: MLSTMState | None, rows: int, tokens: Tokens, options: Options) -> MLSTMState:
    """The state before the first token, in A: `initial_state`, or zeros."""
    q, v = tokens.q, tokens.v
    if initial_state is None:
        shape = (rows, q.shape[1])
        return MLSTMState(
            q.new_zeros(*shape, q.shape[-1], v.shape[-1]), q.new_zeros(*shape, q.shape[-1]), q.new_zeros(shape)
        )
    C, n, m = (s.to(q.dtype) for s in initial_state)
    return MLSTMState(C, n, m if options.sigmoid_gate else m.clamp(min=M_MIN))


def _packed(
    form: Form, tokens: Tokens, state: MLSTMState, reset: Tensor | None, options: Options, bounds: list[int]
) -> tuple[Tensor, MLSTMState]:
    """The sequences bounds[n]:bounds[n + 1] of one row, each with its own row of the state."""
    outputs, finals = [], []
    for row, (begin, end) in enumerate(pairwise(bounds)):
        final = MLSTMState(*(s[row : row + 1] for s in state))
        if begin < end:
            part = Tokens(*(a[:, :, begin:end] for a in tokens))
            h, final = form(part, final, None if reset is None else reset[:, begin:end], options)
            outputs.append(h)
        finals.append(final)
    return torch.cat(outputs, dim=2), concatenated(finals)
