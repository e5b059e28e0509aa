"""mlstm and mlstm_step: from their arguments to the ops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlstm_cuda import _autocast, _checks, _onnx, reference
from xlstm_cuda._autograd import MLSTM
from xlstm_cuda._backend import in_onnx_graph, resolve
from xlstm_cuda._ops import NAMESPACE, accumulate_dtype, library
from xlstm_cuda._states import MLSTMState
from xlstm_cuda._transforms import dense
from xlstm_cuda.functional._calls import computed, exportable
from xlstm_cuda.functional._precision import allow_tf32, in_autocast_dtype
from xlstm_cuda.functional._steps import is_plain


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, MLSTMState]:
    """mLSTM over a sequence, chunkwise (arXiv 2405.04517, equations 19-27; arXiv 2503.14376, section 3).

    With the state C (Dqk, Dv), n (Dqk), m of each batch row and head, empty (all zero) at first:

        m_t = max(logsigmoid(f_t) + m_{t-1}, i_t)
        F_t = exp(logsigmoid(f_t) + m_{t-1} - m_t)        I_t = exp(i_t - m_t)
        C_t = F_t C_{t-1} + I_t k_t v_t^T                 n_t = F_t n_{t-1} + I_t k_t
        h_t = scale C_t^T q_t / (max(|scale n_t q_t|, exp(-m_t)) + eps)

    input_gate="sigmoid": F = sigmoid(f), I = sigmoid(i), and 1 in the place of exp(-m); m is returned as it came.

    Args:
        q, k: queries and keys (B, H, S, Dqk), dtype T.
        v: values (B, H, S, Dv), dtype T.
        i, f: input and forget gate pre-activations (B, H, S).
        initial_state: MLSTMState(C (B, H, Dqk, Dv), n (B, H, Dqk), m (B, H)), or None for the empty state.
        return_state: also return the state after the last token.
        input_gate: "exp" or "sigmoid".
        normalize: False: no denominator, h = scale C^T q. Needs input_gate="sigmoid".
        scale: factor of q; None: Dqk ** -0.5.
        eps: added to the denominator, >= 0.
        cu_seqlens: int32 (N+1,), 0 = cu_seqlens[0] <= ... <= cu_seqlens[N] = S: N sequences packed in one row (B = 1).
            The initial and the returned state have N rows.
        reset: bool (B, S): the state is emptied before that token.
        chunk_size: tokens per chunk, None for the kernel's own choice; changes speed and rounding only. The CPU kernel
            uses at most 512.
        norm_grad: False drops the gradient through the denominator: faster, exact if a scale-invariant norm follows.
            It has neither second derivatives nor forward mode: RuntimeError.
        backend: see help(xlstm_cuda.functional).

    Returns:
        h (B, H, S, Dv) of dtype T, with v's strides where those are dense and the last one is 1. With return_state
        (h, MLSTMState), the state in A.

    Inf and NaN reach only what depends on them: no earlier token, and nothing beyond a reset or a bound of cu_seqlens,
    in neither direction. Where there are some the kernels are slower.

    Saved for backward, per token and head: q, k, v, i, f and h in their dtypes, and one value of dtype A. With bfloat16
    data and float32 gates: 4 Dqk + 4 Dv + 12 bytes. On a CPU such a call takes 8 Dqk + 10 Dv + 4 bytes beside its
    inputs, its backward pass 20 Dqk + 18 Dv: it computes on float32 copies.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    _checks.tensors("mlstm", q=q, k=k, v=v, i=i, f=f)
    _checks.flags("mlstm", return_state=return_state, norm_grad=norm_grad)
    q, k, v = in_autocast_dtype(q, k, v)
    initial_state = _checks.as_state("mlstm", "initial_state", initial_state, MLSTMState)
    _checks.mlstm(q, k, v, i, f, initial_state, cu_seqlens, reset)
    given: dict[str, Any] = {"input_gate": input_gate, "normalize": normalize, "scale": scale, "eps": eps}
    given |= {"chunk_size": chunk_size, "norm_grad": norm_grad}
    options = _options("mlstm", q, **given)
    namespace = resolve("mlstm", backend, q.device, "mlstm_fwd")
    if namespace is None:
        graph = in_onnx_graph(backend)
        if graph:
            _checks.for_onnx("mlstm", cu_seqlens=cu_seqlens)
        with _autocast.disabled(q.device.type):
            h, final = (_onnx if graph else reference).mlstm(
                *(q, k, v, i, f),
                initial_state=initial_state,
                return_state=True,
                cu_seqlens=cu_seqlens,
                reset=reset,
                **given,
            )
    else:
        h, final = _mlstm(namespace, (q, k, v, i, f), initial_state, cu_seqlens, reset, options)
    return (h, final) if return_state else h


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | None,
    *,
    inplace: bool = False,
    out: MLSTMState | None = None,
    slots: Tensor | None = None,
    input_gate: str = "exp",
    normalize: bool = True,
    scale: float | None = None,
    eps: float = 1e-6,
    norm_grad: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, MLSTMState]:
    """One token, or up to 16, of the mLSTM (equations as in `mlstm`), for decoding.

    Args:
        q, k: (B, H, Dqk), or (B, H, S, Dqk) with S <= 16, dtype T.
        v: (B, H, Dv) or (B, H, S, Dv), dtype T.
        i, f: gate pre-activations (B, H) or (B, H, S).
        state: MLSTMState(C (B, H, Dqk, Dv), n (B, H, Dqk), m (B, H)), or None for the empty state.
        inplace: overwrite the state and return it. It must have dtype A, a contiguous last dimension and no overlap in
            memory: the ranges of C, n and m do not meet, or their rows alternate in the pages of one table. No input
            may share its memory, which is not checked. C may be bfloat16 where A is float32: half the memory traffic on
            CUDA (the CPU widens it for each call, with slots all rows of it), rounded after each call. Refused
            (ValueError) where an input or the state requires grad.
        out: a state, of dtype A, to write the new state to and to return: no new memory, and `state` stays. As with
            inplace: contiguous last dimensions, no overlap, no gradients. It may be `state` itself, which is then
            overwritten; else the two must lie apart. Not with inplace or slots.
        slots: int32 (B,), all different: row b reads and writes row slots[b] of a state with N rows; other rows stay.
            On CUDA the values are not checked: where slots[b] is no row of the state, h[b] is NaN and no row changes.
        input_gate, normalize, scale, eps, norm_grad, backend: as in `mlstm`.

    Returns:
        h (B, H, Dv) or (B, H, S, Dv) of dtype T, and the state after the last token, dtype A, all rows of `state`.

    Where gradients are needed the call is `mlstm` from that state, and saves what `mlstm` saves.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    refusal = None
    usual = _is_usual(inplace, out, slots, input_gate, normalize, scale, eps, norm_grad)
    if usual and is_plain(backend, (q, k, v, i, f, slots, *(out or ())), state):
        try:
            return _plain_mlstm_step((q, k, v, i, f), state, inplace, out, slots, input_gate, normalize)  # type: ignore[arg-type]
        except Exception as error:
            refusal = error
    _checks.tensors("mlstm_step", q=q, k=k, v=v, i=i, f=f)
    _checks.flags("mlstm_step", inplace=inplace, norm_grad=norm_grad)
    q, k, v = in_autocast_dtype(q, k, v)
    state = _checks.as_state("mlstm_step", "state", state, MLSTMState)
    out = _checks.as_state("mlstm_step", "out", out, MLSTMState)
    _checks.mlstm_step(q, k, v, i, f, state, slots, inplace=inplace, out=out)
    given: dict[str, Any] = {"input_gate": input_gate, "normalize": normalize, "scale": scale, "eps": eps}
    given |= {"norm_grad": norm_grad}
    options = _options("mlstm_step", q, **given)
    if refusal is not None:
        raise refusal
    if state is None:
        state = _empty_mlstm_state(q, v)
    inputs: tuple[Tensor, ...] = (q, k, v, i, f)
    needs_grad = _checks.needs_grad(*inputs, *state)
    namespace = resolve("mlstm_step", backend, q.device, "mlstm_fwd" if needs_grad else "mlstm_step")
    if namespace is None:
        graph = in_onnx_graph(backend)
        if graph:
            _checks.for_onnx("mlstm_step", inplace=inplace, out=out)
        plain = (_onnx if graph else reference).mlstm_step
        with _autocast.disabled(q.device.type):
            return plain(q, k, v, i, f, state, inplace=inplace, out=out, slots=slots, **given)
    if slots is None and not inplace and out is None:
        h, *after = _next(namespace, options, (*inputs, *state))
        return h, MLSTMState(*after)
    if slots is not None and (needs_grad or (torch.compiler.is_exporting() and not inplace)):
        return _mlstm_step_of_slots(namespace, inputs, state, slots, options)
    return _mlstm_step_in_place(namespace, inputs, state, slots, options, inplace, out)


# Below the arguments.


class MlstmOptions(NamedTuple):
    """What the ops take after their tensors, in the order of their schemas.

    csrc/core/mlstm_chunkwise.h has the same struct, with meanings.
    """

    sigmoid_gate: bool
    normalize: bool
    scale: float
    eps: float
    chunk_size: int = 0  # the kernel's own choice
    allow_tf32: bool = False
    norm_grad: bool = True

    def plain(self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        """rest: C0, n0, m0, or None for each, cu_seqlens, reset. The chunkwise form: memory is linear in S."""
        if not self.norm_grad:
            raise RuntimeError(
                "mlstm: norm_grad=False leaves out a part of the gradient, so that second derivatives and forward-mode "
                "differentiation have no meaning: use norm_grad=True"
            )
        C, n, m, cu_seqlens, reset = rest
        _checks.cu_seqlens_for_all("mlstm", cu_seqlens)
        # The plain form masks resets and need not know where they are, which a batch or a trace hides.
        masked = reset is not None and _checks.hidden(reset)
        form = reference.mlstm_recurrent if masked else reference.mlstm_chunkwise
        h, final = form(
            *(q, k, v, i, f),
            initial_state=None if C is None or n is None or m is None else MLSTMState(C, n, m),
            return_state=True,
            input_gate="sigmoid" if self.sigmoid_gate else "exp",
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
            cu_seqlens=cu_seqlens,
            reset=reset,
            chunk_size=min(64, max(1, q.shape[2])),
        )
        return h, *final


def _options(
    op: str,
    q: Tensor,
    input_gate: str,
    normalize: bool,
    scale: float | None,
    eps: float,
    chunk_size: int | None = None,
    norm_grad: bool = True,
) -> MlstmOptions:
    """Of the ops, from those of the public functions. Raises ValueError."""
    _checks.flags(op, normalize=normalize)
    _checks.choice(op, "input_gate", input_gate, ("exp", "sigmoid"))
    if input_gate == "exp" and not normalize:
        raise ValueError(f"{op}: normalize=False needs input_gate='sigmoid', got 'exp'")
    if scale is not None and not _checks.finite(scale):
        _checks.wrong_value(op, "scale", "be None or a finite number", _checks.shown(scale))
    if not _checks.finite(eps) or eps < 0:
        _checks.wrong_value(op, "eps", "be a finite number >= 0", _checks.shown(eps))
    if chunk_size is not None and not (_checks.whole(chunk_size) and 1 <= chunk_size < 2**31):
        _checks.wrong_value(op, "chunk_size", "be None or an int from 1 to 2**31 - 1", _checks.shown(chunk_size))
    return MlstmOptions(
        sigmoid_gate=input_gate == "sigmoid",
        normalize=normalize,
        scale=float(q.shape[-1] ** -0.5 if scale is None else scale),
        eps=float(eps),
        chunk_size=chunk_size or 0,
        allow_tf32=q.dtype == torch.float32 and allow_tf32(),
        norm_grad=norm_grad,
    )


def _mlstm(
    namespace: str,
    inputs: Sequence[Tensor],
    initial_state: Sequence[Tensor] | None,
    cu_seqlens: Tensor | None,
    reset: Tensor | None,
    options: MlstmOptions,
) -> tuple[Tensor, MLSTMState]:
    every = (*inputs, *(initial_state or (None, None, None)), cu_seqlens, reset)
    h, C, n, m = _sequence(namespace, options, every)
    return h, MLSTMState(C, n, m)


_sequence = exportable("mlstm_fwd", MlstmOptions, partial(computed, MLSTM))


def _mlstm_step_in_place(
    namespace: str,
    inputs: Sequence[Tensor],
    state: MLSTMState,
    slots: Tensor | None,
    options: MlstmOptions,
    inplace: bool,
    out: MLSTMState | None,
) -> tuple[Tensor, MLSTMState]:
    """mlstm_step that writes to a state: the one that it was given, `out`, or a copy for its slots."""
    ops, tokens = library(namespace), [dense(x) for x in inputs]
    if out is not None and not _checks.same_state(out, state):
        h = ops.mlstm_step_out_.default(*tokens, *map(dense, state), *out, *options)
        return h, _overwritten(out)
    inplace = inplace or out is not None
    if not inplace:
        dtype = accumulate_dtype(inputs[0].dtype)
        state = MLSTMState(*(s.to(dtype, copy=True, memory_format=torch.contiguous_format) for s in state))
    h = ops.mlstm_step_.default(*tokens, *state, dense(slots), *options)
    return h, _overwritten(state) if inplace else state


def _overwritten(state: MLSTMState) -> MLSTMState:
    """The state of the caller, after it was: a graph that saved what it held must notice."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(state)
    return state


def _plain_mlstm_step(
    inputs: Sequence[Tensor],
    state: Sequence[Tensor],
    inplace: bool,
    out: MLSTMState | None,
    slots: Tensor | None,
    input_gate: str,
    normalize: bool,
) -> tuple[Tensor, MLSTMState]:
    """mlstm_step where `is_plain` and `_is_usual`."""
    ops, (C, n, m) = library(NAMESPACE), state
    options = input_gate == "sigmoid", normalize, inputs[0].shape[-1] ** -0.5, 1e-6
    if inplace or (out is not None and _checks.same_state(out, state)):
        h = ops.mlstm_step_.default(*inputs, C, n, m, slots, *options)
        torch.autograd.graph.increment_version((C, n, m))
    elif out is not None:
        h = ops.mlstm_step_out_.default(*inputs, C, n, m, *out, *options)
        torch.autograd.graph.increment_version(out)
        return h, out
    else:
        h, C, n, m = ops.mlstm_step.default(*inputs, C, n, m, *options)
    return h, MLSTMState(C, n, m)


def _is_usual(
    inplace: Any,
    out: Any,
    slots: Tensor | None,
    input_gate: Any,
    normalize: Any,
    scale: Any,
    eps: Any,
    norm_grad: Any,
) -> bool:
    """Whether options of mlstm_step are those of a decoding loop, which need no check."""
    flags = type(inplace) is type(normalize) is type(norm_grad) is bool
    gates = flags and (input_gate == "sigmoid" or (input_gate == "exp" and normalize))
    return (
        gates
        and scale is None
        and type(eps) is float
        and eps == 1e-6
        and (slots is None or (inplace and isinstance(slots, Tensor) and slots.dtype == torch.int32))
        and (out is None or (type(out) is MLSTMState and not inplace and slots is None))
    )


def _mlstm_step_of_slots(
    namespace: str, inputs: Sequence[Tensor], state: MLSTMState, slots: Tensor, options: MlstmOptions
) -> tuple[Tensor, MLSTMState]:
    """mlstm_step with slots that can be differentiated."""
    h, *after = _next(namespace, options, (*inputs, *(s.index_select(0, slots) for s in state)))
    index, pairs = slots.long(), zip(state, after, strict=True)
    return h, MLSTMState(*(s.to(new.dtype).index_copy(0, index, new) for s, new in pairs))


def _stepped(namespace: str, options: MlstmOptions, inputs: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """h, C, n, m from q, k, v, i, f and a state: mlstm_step that writes to no tensor of its caller."""
    given = [x for x in inputs if x is not None]
    if not _checks.needs_grad(*given):
        results: tuple[Tensor, ...] = library(namespace).mlstm_step.default(*map(dense, given), *options)
        return results
    one_token = given[0].ndim == 3
    tokens = [x.unsqueeze(2) if one_token else x for x in given[:5]]
    h, after = _mlstm(namespace, tokens, given[5:], None, None, options)
    return h.squeeze(2) if one_token else h, *after


_next = exportable("mlstm_step", MlstmOptions, _stepped)


def _empty_mlstm_state(q: Tensor, v: Tensor) -> MLSTMState:
    batch, heads, dim_qk, dim_v = q.shape[0], q.shape[1], q.shape[-1], v.shape[-1]
    shapes = (batch, heads, dim_qk, dim_v), (batch, heads, dim_qk), (batch, heads)
    return MLSTMState(*(q.new_zeros(shape, dtype=accumulate_dtype(q.dtype)) for shape in shapes))
