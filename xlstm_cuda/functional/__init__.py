"""The public functions: mLSTM, sLSTM and LSTM over a sequence and token by token.

Everywhere: T is the dtype of q, k, v (of x, R): bfloat16, float16, float32 or float64. A, the dtype of gate
arithmetic, states and accumulators, is float64 if T is float64 and float32 otherwise. Gates, biases and states may
come in any of the four dtypes. All tensors are on one device. Strides are free; a tensor whose last dimension is not
contiguous is copied. S = 0 and B = 0 are allowed. All gradients are exact, through every input, the initial and the
final state, and have their input's dtype; second derivatives and forward-mode differentiation raise RuntimeError.
Under autocast q, k, v, x and R are cast; gates, biases and states never.

`backend`: "cpu", "cuda", "reference" (pure PyTorch), "simt" (test library), or None: the one of the context manager
`backend(...)`, else by device.

Errors: TypeError for what is not a tensor or has a wrong dtype, ValueError for a wrong shape, device, option or value,
both before anything is computed. Values of cu_seqlens, lengths, slots and of an sLSTM state's n are checked on the CPU
only. ImportError where the library of the backend is not built.

Sources: xLSTM, arXiv 2405.04517; chunkwise mLSTM, arXiv 2503.14376.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from xlstm_cuda import _autocast, _checks, reference
from xlstm_cuda._autograd import MLSTM, Recurrent, check_transforms, dense
from xlstm_cuda._backend import backend, default_backend, resolve
from xlstm_cuda._ops import CELLS, accumulate_dtype, library
from xlstm_cuda._states import LSTMState, MLSTMState, SLSTMState

__all__ = [
    "LSTMState",
    "MLSTMState",
    "SLSTMState",
    "backend",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_step",
    "slstm",
    "slstm_step",
]

Cell = TypeVar("Cell", SLSTMState, LSTMState)


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
        backend: see help(xlstm_cuda.functional).

    Returns:
        h (B, H, S, Dv) of dtype T, with v's strides where those are dense and the last one is 1. With return_state
        (h, MLSTMState), the state in A.

    Inf and NaN reach only what depends on them: no earlier token, and nothing behind a reset or a bound of cu_seqlens,
    in neither direction. Where there are some the kernels are slower.

    Saved for backward, per token and head: q, k, v, i, f and h in their dtypes, and one value of dtype A. With bfloat16
    data and float32 gates: 4 Dqk + 4 Dv + 12 bytes. On a CPU such a call takes 8 Dqk + 10 Dv + 4 bytes beside its
    inputs, its backward pass 20 Dqk + 18 Dv: it computes on float32 copies.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    _checks.tensors("mlstm", q=q, k=k, v=v, i=i, f=f)
    _checks.flags("mlstm", return_state=return_state, norm_grad=norm_grad)
    q, k, v = _in_autocast_dtype(q, k, v)
    state = _checks.as_state("mlstm", "initial_state", initial_state, MLSTMState)
    gates: dict[str, Any] = {"input_gate": input_gate, "normalize": normalize, "scale": scale, "eps": eps}
    _checks.mlstm(q, k, v, i, f, state, cu_seqlens, reset, chunk_size=chunk_size, **gates)
    namespace = resolve("mlstm", backend, q.device, "mlstm_fwd")
    if namespace == "reference":
        with _autocast.disabled(q.device.type):
            h, final = reference.mlstm(
                *(q, k, v, i, f),
                initial_state=state,
                return_state=True,
                cu_seqlens=cu_seqlens,
                reset=reset,
                chunk_size=chunk_size,
                norm_grad=norm_grad,
                **gates,
            )
    else:
        options = _mlstm_options(q, **gates)
        h, final = _mlstm(namespace, (q, k, v, i, f), state, cu_seqlens, reset, options, chunk_size or 0, norm_grad)
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
            memory (the ranges of C, n and m do not meet); no input may share its memory, which is not checked. C may be
            bfloat16 where A is float32: half the memory traffic on CUDA (the CPU widens it for each call), rounded
            after each call. Refused (ValueError) where an input or the state requires grad.
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
    usual = _is_plain(backend, (q, k, v, i, f, slots), state)
    if usual and _is_usual(inplace, slots, input_gate, normalize, scale, eps, norm_grad):
        try:
            return _plain_mlstm_step((q, k, v, i, f), state, inplace, slots, input_gate, normalize)  # type: ignore[arg-type]
        except Exception as error:
            refusal = error
    _checks.tensors("mlstm_step", q=q, k=k, v=v, i=i, f=f)
    _checks.flags("mlstm_step", inplace=inplace, norm_grad=norm_grad)
    q, k, v = _in_autocast_dtype(q, k, v)
    state = _checks.as_state("mlstm_step", "state", state, MLSTMState)
    gates: dict[str, Any] = {"input_gate": input_gate, "normalize": normalize, "scale": scale, "eps": eps}
    _checks.mlstm_step(q, k, v, i, f, state, slots, inplace=inplace, **gates)
    if refusal is not None:
        raise refusal
    if state is None:
        state = _empty_mlstm_state(q, v)
    inputs: tuple[Tensor, ...] = (q, k, v, i, f)
    needs_grad = _checks.needs_grad(*inputs, *state)
    namespace = resolve("mlstm_step", backend, q.device, "mlstm_fwd" if needs_grad else "mlstm_step")
    if namespace == "reference":
        with _autocast.disabled(q.device.type):
            return reference.mlstm_step(
                q, k, v, i, f, state, inplace=inplace, slots=slots, norm_grad=norm_grad, **gates
            )
    options = _mlstm_options(q, **gates)
    if not needs_grad:
        return _mlstm_step(namespace, inputs, state, slots, options, inplace)
    if q.ndim == 4:
        return _mlstm_step_with_grad(namespace, inputs, state, slots, options, norm_grad)
    inputs = tuple(x.unsqueeze(2) for x in inputs)
    h, state = _mlstm_step_with_grad(namespace, inputs, state, slots, options, norm_grad)
    return h.squeeze(2), state


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, SLSTMState]:
    """sLSTM over a sequence (arXiv 2405.04517, equations 8-18), one recurrent matrix per head and gate.

    With raw[g] = x_t[g] + R[g] h_{t-1} + b[g] for the gates g = i, f, z, o, and lambda = logsigmoid (or the identity):

        m_t = max(lambda(f) + m_{t-1}, i)
        F = exp(lambda(f) + m_{t-1} - m_t)     I = exp(i - m_t)
        c_t = F c_{t-1} + I tanh(z)            n_t = F n_{t-1} + I            h_t = sigmoid(o) c_t / n_t

    n = 0 marks an empty element of the state: there c, m and f are ignored, F = 0 and m_t = i.

    Args:
        x: input part of the gate pre-activations, order i, f, z, o: (B, S, 4, H, D), dtype T.
        R: recurrent weights (4, H, D, D), dtype T: raw[g, h] += R[g, h] @ h_{t-1}[h].
        b: bias (4, H, D) or None.
        initial_state: SLSTMState(h, c, n, m), each (B, H, D), n >= 0, or None for the empty state.
        return_state: also return the state after the last token.
        forget_gate: "sigmoid" (lambda = logsigmoid) or "exp" (lambda(f) = f).
        lengths: int32 or int64 (B,), 0 to S: right padding. h is 0 from there on, the final state is the one before.
        reset: bool (B, S): the row's state, h included, is emptied before that token.
        reversed_heads: the last so many heads go from the end of a row (with lengths: of its tokens) to its beginning:
            both directions of a bidirectional layer in one call. Their final state is the one after the first token.
        backend: see help(xlstm_cuda.functional).

    Returns:
        h (B, S, H, D) of dtype T. With return_state (h, SLSTMState), the state in A, its h rounded to T (the
        recurrence uses the rounded h).

    Saved for backward, per token and hidden unit: h of dtype T and five values, of dtype T on CUDA and A on a CPU. With
    bfloat16 data that is 12 and 22 bytes. On a CPU such a call takes 42 bytes beside its inputs, these included, its
    backward pass 32: it computes on float32 copies.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    _checks.flags("slstm", return_state=return_state)
    cell = _slstm_cell("slstm", forget_gate)
    plain = partial(reference.slstm, forget_gate=forget_gate)
    rows = lengths, reset, reversed_heads
    h, state = _recurrent("slstm", cell, SLSTMState, plain, x, R, b, initial_state, *rows, backend)
    return (h, state) if return_state else h


def slstm_step(
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: SLSTMState | None,
    *,
    forget_gate: str = "sigmoid",
    backend: str | None = None,
) -> tuple[Tensor, SLSTMState]:
    """One token of the sLSTM (equations as in `slstm`).

    Args:
        x: (B, 4, H, D), dtype T. R (4, H, D, D), dtype T. b (4, H, D) or None.
        state: SLSTMState(h, c, n, m), each (B, H, D), n >= 0, or None for the empty state.
        forget_gate, backend: as in `slstm`.

    Returns:
        h (B, H, D) of dtype T, and the next state, dtype A.

    Where gradients are needed the call is `slstm` from that state, and saves what `slstm` saves.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    cell = _slstm_cell("slstm_step", forget_gate)
    plain = partial(reference.slstm_step, forget_gate=forget_gate)
    return _recurrent_step("slstm_step", cell, SLSTMState, plain, x, R, b, state, backend)


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
    backend: str | None = None,
) -> Tensor | tuple[Tensor, LSTMState]:
    """Classical LSTM over a sequence (arXiv 2405.04517, equations 2-7), one recurrent matrix per head and gate.

    With raw[g] = x_t[g] + R[g] h_{t-1} + b[g] for the gates g = i, f, g, o (the order of torch.nn.LSTM):

        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)        h_t = sigmoid(o) tanh(c_t)

    Args:
        x: input part of the gate pre-activations, order i, f, g, o: (B, S, 4, H, D), dtype T.
        R: recurrent weights (4, H, D, D), dtype T: raw[g, h] += R[g, h] @ h_{t-1}[h].
        b: bias (4, H, D) or None.
        initial_state: LSTMState(h, c), each (B, H, D), or None for zeros.
        return_state: also return the state after the last token.
        lengths: int32 or int64 (B,), 0 to S: right padding. h is 0 from there on, the final state is the one before.
        reset: bool (B, S): the row's state, h included, is emptied before that token.
        reversed_heads: the last so many heads go from the end of a row (with lengths: of its tokens) to its beginning:
            both directions of a bidirectional layer in one call. Their final state is the one after the first token.
        backend: see help(xlstm_cuda.functional).

    Returns:
        h (B, S, H, D) of dtype T. With return_state (h, LSTMState), the state in A, its h rounded to T (the
        recurrence uses the rounded h).

    Saved for backward, per token and hidden unit: h of dtype T and five values, of dtype T on CUDA and A on a CPU. With
    bfloat16 data that is 12 and 22 bytes.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    _checks.flags("lstm", return_state=return_state)
    rows = lengths, reset, reversed_heads
    h, state = _recurrent("lstm", CELLS["lstm"], LSTMState, reference.lstm, x, R, b, initial_state, *rows, backend)
    return (h, state) if return_state else h


def lstm_step(
    x: Tensor, R: Tensor, b: Tensor | None, state: LSTMState | None, *, backend: str | None = None
) -> tuple[Tensor, LSTMState]:
    """One token of the classical LSTM (equations as in `lstm`).

    Args:
        x: (B, 4, H, D), dtype T. R (4, H, D, D), dtype T. b (4, H, D) or None.
        state: LSTMState(h, c), each (B, H, D), or None for zeros.
        backend: see help(xlstm_cuda.functional).

    Returns:
        h (B, H, D) of dtype T, and the next state, dtype A.

    Where gradients are needed the call is `lstm` from that state, and saves what `lstm` saves.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    return _recurrent_step("lstm_step", CELLS["lstm"], LSTMState, reference.lstm_step, x, R, b, state, backend)


# mLSTM below the arguments. options: (sigmoid_gate, normalize, scale, eps) of the ops.


def _mlstm_options(
    q: Tensor, input_gate: str, normalize: bool, scale: float | None, eps: float
) -> tuple[bool, bool, float, float]:
    return input_gate == "sigmoid", normalize, float(q.shape[-1] ** -0.5 if scale is None else scale), float(eps)


def _mlstm(
    namespace: str,
    inputs: Sequence[Tensor],
    state: Sequence[Tensor] | None,
    cu_seqlens: Tensor | None,
    reset: Tensor | None,
    options: tuple[bool, bool, float, float],
    chunk_size: int,
    norm_grad: bool,
) -> tuple[Tensor, MLSTMState]:
    every = [dense(x) for x in (*inputs, *(state or (None, None, None)), cu_seqlens, reset)]
    ops_options = (*options, chunk_size, inputs[0].dtype == torch.float32 and _allow_tf32())
    if _checks.needs_grad(*every):
        check_transforms()
        h, C, n, m = MLSTM.apply(namespace, ops_options, norm_grad, *every)
    else:
        h, C, n, m, _ = library(namespace).mlstm_fwd.default(*every, *ops_options)
    return h, MLSTMState(C, n, m)


def _mlstm_step(
    namespace: str,
    inputs: Sequence[Tensor],
    state: MLSTMState,
    slots: Tensor | None,
    options: tuple[bool, bool, float, float],
    inplace: bool,
) -> tuple[Tensor, MLSTMState]:
    ops, tokens = library(namespace), [dense(x) for x in inputs]
    if slots is None and not inplace:
        h, C, n, m = ops.mlstm_step.default(*tokens, *map(dense, state), *options)
        return h, MLSTMState(C, n, m)
    if not inplace:
        dtype = accumulate_dtype(inputs[0].dtype)
        state = MLSTMState(*(s.to(dtype, copy=True, memory_format=torch.contiguous_format) for s in state))
    h = ops.mlstm_step_.default(*tokens, *state, dense(slots), *options)
    if inplace and not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(state)  # a graph that saved the old state must notice
    return h, state


def _plain_mlstm_step(
    inputs: Sequence[Tensor],
    state: Sequence[Tensor],
    inplace: bool,
    slots: Tensor | None,
    input_gate: str,
    normalize: bool,
) -> tuple[Tensor, MLSTMState]:
    """mlstm_step where `_is_plain` and `_is_usual`."""
    ops, (C, n, m) = library("xlstm_cuda"), state
    options = input_gate == "sigmoid", normalize, inputs[0].shape[-1] ** -0.5, 1e-6
    if inplace:
        h = ops.mlstm_step_.default(*inputs, C, n, m, slots, *options)
        torch.autograd.graph.increment_version((C, n, m))
    else:
        h, C, n, m = ops.mlstm_step.default(*inputs, C, n, m, *options)
    return h, MLSTMState(C, n, m)


def _is_usual(
    inplace: Any, slots: Tensor | None, input_gate: Any, normalize: Any, scale: Any, eps: Any, norm_grad: Any
) -> bool:
    """Whether options of mlstm_step are those of a decoding loop, which need no check."""
    flags = type(inplace) is type(normalize) is type(norm_grad) is bool
    gates = flags and (input_gate == "sigmoid" or (input_gate == "exp" and normalize))
    return (
        gates
        and scale is None
        and type(eps) is float
        and eps == 1e-6
        and (slots is None or (inplace and slots.dtype == torch.int32))
    )


def _mlstm_step_with_grad(
    namespace: str,
    inputs: Sequence[Tensor],
    state: MLSTMState,
    slots: Tensor | None,
    options: tuple[bool, bool, float, float],
    norm_grad: bool,
) -> tuple[Tensor, MLSTMState]:
    rows = state if slots is None else [s.index_select(0, slots) for s in state]
    h, after = _mlstm(namespace, inputs, rows, None, None, options, 0, norm_grad)
    if slots is not None:
        index = slots.long()
        pairs = zip(state, after, strict=True)
        after = MLSTMState(*(s.to(new.dtype).index_copy(0, index, new) for s, new in pairs))
    return h, after


def _empty_mlstm_state(q: Tensor, v: Tensor) -> MLSTMState:
    batch, heads, dim_qk, dim_v = q.shape[0], q.shape[1], q.shape[-1], v.shape[-1]
    shapes = (batch, heads, dim_qk, dim_v), (batch, heads, dim_qk), (batch, heads)
    return MLSTMState(*(q.new_zeros(shape, dtype=accumulate_dtype(q.dtype)) for shape in shapes))


# sLSTM and LSTM below the arguments. plain: the reference function.


def _slstm_cell(op: str, forget_gate: str) -> int:
    _checks.choice(op, "forget_gate", forget_gate, ("sigmoid", "exp"))
    return CELLS["slstm" if forget_gate == "sigmoid" else "slstm_exp"]


def _recurrent(
    op: str,
    cell: int,
    cls: type[Cell],
    plain: Callable[..., Any],
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    initial_state: Cell | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reversed_heads: int,
    backend: str | None,
) -> tuple[Tensor, Cell]:
    _checks.tensors(op, x=x, R=R, **({} if b is None else {"b": b}))
    x, R = _in_autocast_dtype(x, R)
    state = _checks.as_state(op, "initial_state", initial_state, cls)
    _checks.recurrent(op, x, R, b, state, "initial_state", lengths, reset, reversed_heads)
    namespace = resolve(op, backend, x.device, "recurrent_fwd")
    if namespace == "reference":
        with _autocast.disabled(x.device.type):
            rows = {"lengths": lengths, "reset": reset, "reversed_heads": reversed_heads}
            return plain(x, R, b, initial_state=state, return_state=True, **rows)
    return _scan(namespace, cell, cls, x, R, b, state, lengths, reset, reversed_heads)


def _recurrent_step(
    op: str,
    cell: int,
    cls: type[Cell],
    plain: Callable[..., Any],
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: Cell | None,
    backend: str | None,
) -> tuple[Tensor, Cell]:
    refusal = None
    if _is_plain(backend, (x, R, b), state):
        try:
            return _plain_step(cell, cls, x, R, b, state)
        except Exception as error:
            refusal = error
    _checks.tensors(op, x=x, R=R, **({} if b is None else {"b": b}))
    x, R = _in_autocast_dtype(x, R)
    state = _checks.as_state(op, "state", state, cls)
    _checks.recurrent(op, x, R, b, state, "state", one_token=True)
    if refusal is not None:
        raise refusal
    if state is None:
        shape, dtype = x[:, 0].shape, accumulate_dtype(x.dtype)
        state = cls(*(x.new_zeros(shape, dtype=dtype) for _ in cls._fields))
    needs_grad = _checks.needs_grad(x, R, b, *state)
    namespace = resolve(op, backend, x.device, "recurrent_fwd" if needs_grad else "recurrent_step")
    if namespace == "reference":
        with _autocast.disabled(x.device.type):
            return plain(x, R, b, state)
    if needs_grad:
        h, after = _scan(namespace, cell, cls, x.unsqueeze(1), R, b, state)
        return h.squeeze(1), after
    inputs = (dense(x), _weights(R), dense(b), *map(dense, _four(state)))
    return _new_state(cls, x, library(namespace).recurrent_step.default(*inputs, cell))


def _plain_step(cell: int, cls: type[Cell], x: Tensor, R: Tensor, b: Tensor | None, state: Any) -> tuple[Tensor, Cell]:
    """_recurrent_step where `_is_plain`."""
    h, c, n, m = _four(cls(*state))
    return _new_state(cls, x, library("xlstm_cuda").recurrent_step.default(x, R, b, h, c, n, m, cell))


def _new_state(cls: type[Cell], x: Tensor, results: tuple[Tensor, ...]) -> tuple[Tensor, Cell]:
    state = cls(*results[: len(cls._fields)])
    return state.h.to(x.dtype, copy=True), state  # not the memory of the state, which the caller may change


def _scan(
    namespace: str,
    cell: int,
    cls: type[Cell],
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: Cell | None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reversed_heads: int = 0,
) -> tuple[Tensor, Cell]:
    inputs = [dense(x), _weights(R), *(dense(t) for t in (b, *_four(state), lengths, reset))]
    options = cell, reversed_heads, x.dtype == torch.float32 and _allow_tf32()
    if _checks.needs_grad(*inputs):
        check_transforms()
        h, *final = Recurrent.apply(namespace, options, *inputs)
    else:
        h, *final, _ = library(namespace).recurrent_fwd.default(*inputs, *options, False)
    return h, cls(*final[: len(cls._fields)])


def _weights(R: Tensor) -> Tensor:
    """R, copied unless its rows or its columns are contiguous: a layer may keep it either way."""
    if R.stride(-1) == 1 or R.stride(-2) == 1:
        return R
    return R.contiguous()


def _four(state: Sequence[Tensor] | None) -> tuple[Tensor | None, ...]:
    """h, c, n, m as the ops take them: None for what the cell or the call does not have."""
    return (*(state or ()), None, None, None, None)[:4]


def _allow_tf32() -> bool:
    """Whether float32 products on CUDA may round their operands to TF32: torch's own setting for matrix products."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # torch refuses this question where the newer setting has been used
        return matmul.fp32_precision == "tf32"


# What torch.compiler.assume_constant_result sets, which would import torch._dynamo: 900 modules, for every user.
_allow_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)  # no more than a tensor


def _is_plain(backend: str | None, inputs: tuple[Tensor | None, ...], state: Any) -> bool:
    """Whether a step may go to the op without the checks in Python, which take longer than a small step.

    So it is for tensors on the CPU that do not require grad, without autocast, tracing or another backend. The ops
    refuse what the checks refuse, before they compute. Where one has raised, the checks only say better what is wrong:
    the call is not computed again.
    """
    on_cpu = backend == "cpu" or (backend is None and default_backend())
    if not on_cpu or not isinstance(state, (tuple, list)) or torch.compiler.is_compiling():
        return False
    every = (*inputs, *state)
    for x in every:
        if x is not None and not (type(x) in _PLAIN_TYPES and x.is_cpu):
            return False
    return not torch.is_autocast_enabled("cpu") and not _checks.needs_grad(*every)


def _in_autocast_dtype(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in the autocast dtype, where autocast is on; float64 stays, as in torch."""
    device = inputs[0].device.type
    if not _autocast.enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in inputs)
