"""slstm, lstm and their steps: from their arguments to the ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from xlstm_cuda import _autocast, _checks, _onnx, reference
from xlstm_cuda._autograd import Recurrent
from xlstm_cuda._backend import in_onnx_graph, resolve
from xlstm_cuda._ops import CELLS, NAMESPACE, accumulate_dtype, library
from xlstm_cuda._states import LSTMState, SLSTMState
from xlstm_cuda.functional._calls import computed, exportable
from xlstm_cuda.functional._precision import allow_tf32, in_autocast_dtype
from xlstm_cuda.functional._steps import is_plain

Cell = TypeVar("Cell", SLSTMState, LSTMState)


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

    Saved for backward, per token and hidden unit: x (for second derivatives), h of dtype T, and five values, of dtype T
    on CUDA and A on a CPU. With bfloat16 data that is 20 and 30 bytes. On a CPU such a call takes 42 bytes beside its
    inputs, h and the five values included, its backward pass 32: it computes on float32 copies.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    _checks.flags("slstm", return_state=return_state)
    cell = _slstm_cell("slstm", forget_gate)
    order = lengths, reset, reversed_heads
    plain = {"forget_gate": forget_gate}
    h, state = _recurrent("slstm", cell, SLSTMState, plain, x, R, b, initial_state, *order, backend)
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
    plain = {"forget_gate": forget_gate}
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

    Saved for backward, per token and hidden unit: x (for second derivatives), h of dtype T, and five values, of dtype T
    on CUDA and A on a CPU. With bfloat16 data that is 20 and 30 bytes.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    _checks.flags("lstm", return_state=return_state)
    order = lengths, reset, reversed_heads
    h, state = _recurrent("lstm", CELLS["lstm"], LSTMState, {}, x, R, b, initial_state, *order, backend)
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
    return _recurrent_step("lstm_step", CELLS["lstm"], LSTMState, {}, x, R, b, state, backend)


# Below the arguments. op: also the name of the function without kernels; plain: its own options.


class RecurrentOptions(NamedTuple):
    """What recurrent_fwd and recurrent_bwd take after their tensors, in the order of their schemas."""

    cell: int  # of CELLS
    reversed_heads: int = 0
    allow_tf32: bool = False

    def plain(self, x: Tensor, R: Tensor, b: Tensor | None, *rest: Tensor | None) -> tuple[Tensor, ...]:
        """rest: h0, c0, n0, m0, or None for each that is not there, lengths, reset."""
        *state, lengths, reset = rest
        given: dict[str, Any] = {"lengths": lengths, "reset": reset, "reversed_heads": self.reversed_heads}
        given |= {"initial_state": None if state[0] is None else [s for s in state if s is not None]}
        if self.cell == CELLS["lstm"]:
            h, final = reference.lstm(x, R, b, return_state=True, **given)
        else:
            forget_gate = "exp" if self.cell == CELLS["slstm_exp"] else "sigmoid"
            h, final = reference.slstm(x, R, b, return_state=True, forget_gate=forget_gate, **given)
        return h, *final


class StepOptions(NamedTuple):
    """What recurrent_step takes after its tensors."""

    cell: int


def _slstm_cell(op: str, forget_gate: str) -> int:
    _checks.choice(op, "forget_gate", forget_gate, ("sigmoid", "exp"))
    return CELLS["slstm" if forget_gate == "sigmoid" else "slstm_exp"]


def _recurrent(
    op: str,
    cell: int,
    cls: type[Cell],
    plain: Mapping[str, Any],
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
    x, R = in_autocast_dtype(x, R)
    initial_state = _checks.as_state(op, "initial_state", initial_state, cls)
    _checks.recurrent(op, x, R, b, initial_state, "initial_state", lengths, reset, reversed_heads)
    namespace = resolve(op, backend, x.device, "recurrent_fwd")
    if namespace is None:
        with _autocast.disabled(x.device.type):
            order = {"lengths": lengths, "reset": reset, "reversed_heads": reversed_heads}
            function = getattr(_onnx if in_onnx_graph(backend) else reference, op)
            found = function(x, R, b, initial_state=initial_state, return_state=True, **order, **plain)
            return cast(tuple[Tensor, Cell], found)
    return _scan(namespace, cell, cls, x, R, b, initial_state, lengths, reset, reversed_heads)


def _recurrent_step(
    op: str,
    cell: int,
    cls: type[Cell],
    plain: Mapping[str, Any],
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: Cell | None,
    backend: str | None,
) -> tuple[Tensor, Cell]:
    refusal = None
    if is_plain(backend, (x, R, b), state):
        try:
            return _plain_step(cell, cls, x, R, b, state)
        except Exception as error:
            refusal = error
    _checks.tensors(op, x=x, R=R, **({} if b is None else {"b": b}))
    x, R = in_autocast_dtype(x, R)
    state = _checks.as_state(op, "state", state, cls)
    _checks.recurrent(op, x, R, b, state, "state", one_token=True)
    if refusal is not None:
        raise refusal
    if state is None:
        shape, dtype = x[:, 0].shape, accumulate_dtype(x.dtype)
        state = cls(*(x.new_zeros(shape, dtype=dtype) for _ in cls._fields))
    needs_grad = _checks.needs_grad(x, R, b, *state)
    namespace = resolve(op, backend, x.device, "recurrent_fwd" if needs_grad else "recurrent_step")
    if namespace is None:
        with _autocast.disabled(x.device.type):
            function = getattr(_onnx if in_onnx_graph(backend) else reference, op)
            return cast(tuple[Tensor, Cell], function(x, R, b, state, **plain))
    h, *after = _next(namespace, StepOptions(cell), (x, R, b, *_four(state)))
    return h, cls(*after)


def _plain_step(cell: int, cls: type[Cell], x: Tensor, R: Tensor, b: Tensor | None, state: Any) -> tuple[Tensor, Cell]:
    """_recurrent_step where `is_plain`."""
    inputs = (x, R, b, *_four(cls(*state)))
    h, *after = _new_state(x, cell, library(NAMESPACE).recurrent_step.default(*inputs, cell))
    return h, cls(*after)


def _stepped(namespace: str, options: StepOptions, inputs: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """h and the state's parts from x, R, b and a state of four."""
    x, *rest = inputs
    assert x is not None
    if _checks.needs_grad(*inputs):
        tokens = (x.unsqueeze(1), *rest, None, None)
        h, *after = _sequence(namespace, _options(options.cell, x), tokens)
        return h.squeeze(1), *after
    results = library(namespace).recurrent_step.default(*Recurrent.laid_out(inputs), *options)
    return _new_state(x, options.cell, results)


def _new_state(x: Tensor, cell: int, results: Sequence[Tensor]) -> Sequence[Tensor]:
    h, c, n, m = results
    output = h.to(x.dtype, copy=True)  # not the memory of the state, which the caller may change
    return (output, h, c) if cell == CELLS["lstm"] else (output, h, c, n, m)


def _scan(
    namespace: str,
    cell: int,
    cls: type[Cell],
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    initial_state: Cell | None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reversed_heads: int = 0,
) -> tuple[Tensor, Cell]:
    inputs = (x, R, b, *_four(initial_state), lengths, reset)
    h, *final = _sequence(namespace, _options(cell, x, reversed_heads), inputs)
    return h, cls(*final)


def _options(cell: int, x: Tensor, reversed_heads: int = 0) -> RecurrentOptions:
    return RecurrentOptions(cell, reversed_heads, x.dtype == torch.float32 and allow_tf32())


def _four(state: Sequence[Tensor] | None) -> tuple[Tensor | None, ...]:
    """h, c, n, m as the ops take them: None for what the cell or the call does not have."""
    return (*(state or ()), None, None, None, None)[:4]


_sequence = exportable("recurrent_fwd", RecurrentOptions, partial(computed, Recurrent))
_next = exportable("recurrent_step", StepOptions, _stepped)
