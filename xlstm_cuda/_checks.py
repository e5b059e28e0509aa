"""Checks of the public functions' arguments: every error names op, argument, what was expected and what came.

TypeError: not a tensor, or a wrong dtype. ValueError: wrong shape, device, option or value. Values inside tensors are
read only on the CPU (no synchronisation on a GPU) and never while torch.compile, torch.export or torch.func trace.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx import Proxy

from xlstm_cuda._ops import accumulate_dtype
from xlstm_cuda._states import LSTMState, MLSTMState, SLSTMState

MAX_STEP = 16  # tokens per call of a step, as in csrc/core/mlstm_step.h
MAX_ELEMENTS = 2**48  # of a tensor, as in csrc/ops/checks.h: more than any address space holds

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

State = TypeVar("State", MLSTMState, SLSTMState, LSTMState)


def tensors(op: str, **named: Any) -> None:
    """All are tensors of a float dtype, on the device of the first one."""
    first_name = device = None
    for name, x in named.items():
        if not isinstance(x, Tensor):
            _no_tensor(op, name, x)
        _dense(op, name, x)
        if x.dtype not in _FLOATS:
            _wrong_type(op, name, "be bfloat16, float16, float32 or float64", x.dtype)
        if device is None:
            first_name, device = name, x.device
        elif x.device != device:
            wrong_value(op, name, f"be on {device} like {first_name}", x.device)
    if not torch.compiler.is_compiling():
        for name, x in named.items():
            if not (isinstance(x, FakeTensor) or 0 < x.numel() < MAX_ELEMENTS):
                _elements(op, name, x.shape)


def as_state(op: str, name: str, value: Any, cls: type[State]) -> State | None:
    """The state as its NamedTuple; any tuple or list with as many tensors will do, None stays None."""
    if value is None or isinstance(value, cls):
        return value
    sequence = isinstance(value, (tuple, list))
    if not sequence or len(value) != len(cls._fields):
        form = f"{cls.__name__}({', '.join(cls._fields)})"
        given = f"{type(value).__name__} of {len(value)}" if sequence else type(value).__name__
        _wrong_type(op, name, f"be None, {form} or a tuple of {len(cls._fields)} tensors", given)
    return cls(*value)


def mlstm(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState | None, cu_seqlens: Tensor | None,
    reset: Tensor | None,
) -> None:  # fmt: skip
    """Tensors of `mlstm` after `tensors` and `as_state`."""
    op = "mlstm"
    batch, heads, seqlen, dim_qk, dim_v = _mlstm_inputs(op, q, k, v, i, f)
    rows, rows_name = batch, "B"
    if cu_seqlens is not None:
        _cu_seqlens(op, cu_seqlens, q, "q", seqlen)
        rows, rows_name = cu_seqlens.shape[0] - 1, "N"
    if reset is not None:
        _reset(op, reset, q, "q", batch, seqlen)
    if state is not None:
        _mlstm_state(op, "initial_state", state, q, rows_name, (rows, heads, dim_qk, dim_v))


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MLSTMState | None, slots: Tensor | None,
    *, inplace: bool, out: MLSTMState | None,
) -> None:  # fmt: skip
    """Tensors of `mlstm_step` after `tensors` and `as_state`."""
    op = "mlstm_step"
    batch, heads, seqlen, dim_qk, dim_v = _mlstm_inputs(op, q, k, v, i, f, one_token=q.ndim == 3)
    if seqlen > MAX_STEP:
        wrong_value(op, "q", f"have at most S={MAX_STEP} tokens", _shape_of(q))
    rows, rows_name = batch, "B"
    if slots is not None:
        if state is None:
            raise ValueError(f"{op}: slots needs a state, got None")
        _index_tensor(op, "slots", slots, q, "q", (torch.int32,))
        _shape(op, "slots", slots, "B", (batch,))
        if isinstance(state.C, Tensor) and state.C.ndim:
            rows, rows_name = state.C.shape[0], "N"
        _slots_values(op, slots, rows)
    if state is not None:
        _mlstm_state(op, "state", state, q, rows_name, (rows, heads, dim_qk, dim_v))
    if out is not None:
        if inplace or slots is not None:
            raise ValueError(f"{op}: out goes with neither inplace=True nor slots")
        _mlstm_state(op, "out", out, q, "B", (batch, heads, dim_qk, dim_v))
        _out(op, (q, k, v, i, f), state, out)
    if inplace:
        _inplace(op, (q, k, v, i, f), state)


def recurrent(
    op: str, x: Tensor, R: Tensor, b: Tensor | None, state: SLSTMState | LSTMState | None, state_name: str,
    lengths: Tensor | None = None, reset: Tensor | None = None, reversed_heads: int = 0, *, one_token: bool = False,
) -> None:  # fmt: skip
    """Arguments of `slstm`, `lstm` and their steps after `tensors` and `as_state`."""
    names = ("B", "4", "H", "D") if one_token else ("B", "S", "4", "H", "D")
    if x.ndim != len(names) or x.shape[-3] != 4 or 0 in x.shape[-2:]:
        wrong_value(op, "x", f"have shape ({', '.join(names)}), H and D at least 1", _shape_of(x))
    batch, heads, dim = x.shape[0], x.shape[-2], x.shape[-1]
    _same_dtype(op, "R", R, "x", x)
    _shape(op, "R", R, "4 H D D", (4, heads, dim, dim))
    if b is not None:
        _shape(op, "b", b, "4 H D", (4, heads, dim))
    if state is not None:
        _state_tensors(op, state_name, state, "x", x)
        for field, s in state._asdict().items():
            _shape(op, f"{state_name}.{field}", s, "B H D", (batch, heads, dim))
        if isinstance(state, SLSTMState) and _readable(state.n) and bool((state.n < 0).any()):
            wrong_value(op, f"{state_name}.n", "not be negative", state.n.min().item())
    if lengths is not None:
        _index_tensor(op, "lengths", lengths, x, "x", (torch.int32, torch.int64))
        _shape(op, "lengths", lengths, "B", (batch,))
        _range(op, "lengths", lengths, "S", x.shape[1])
    if reset is not None:
        _reset(op, reset, x, "x", batch, x.shape[1])
    if not (whole(reversed_heads) and 0 <= reversed_heads <= heads):
        wrong_value(op, "reversed_heads", f"be an integer from 0 to H = {heads}", shown(reversed_heads))


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    reset: Tensor | None,
) -> None:  # fmt: skip
    """Arguments of `causal_conv1d` after `tensors`."""
    op = "causal_conv1d"
    batch, seqlen, features, taps = _conv_inputs(op, x, weight, bias, "(B, S, F)", (3,))
    rows, rows_name = batch, "B"
    if cu_seqlens is not None:
        _cu_seqlens(op, cu_seqlens, x, "x", seqlen)
        rows, rows_name = cu_seqlens.shape[0] - 1, "N"
    if reset is not None:
        _reset(op, reset, x, "x", batch, seqlen)
    if state is not None:
        _shape(op, "initial_state", state, f"{rows_name} K-1 F", (rows, taps - 1, features))


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, *, inplace: bool
) -> None:  # fmt: skip
    """Arguments of `causal_conv1d_step` after `tensors`."""
    op = "causal_conv1d_step"
    batch, seqlen, features, taps = _conv_inputs(op, x, weight, bias, "(B, F) or (B, S, F)", (2, 3))
    if seqlen > MAX_STEP:
        wrong_value(op, "x", f"have at most S={MAX_STEP} tokens", _shape_of(x))
    if state is not None:
        _shape(op, "state", state, "B K-1 F", (batch, taps - 1, features))
    if inplace:
        if needs_grad(x, weight, bias, state):
            raise ValueError(
                f"{op}: inplace=True does not support inputs that require grad, forward mode and torch.func"
            )
        if state is not None:
            if state.dtype != x.dtype:
                _wrong_type(op, "state", f"have dtype {x.dtype} like x with inplace=True", state.dtype)
            _overwritable(op, "state", state, "with inplace=True")


def activation(op: str, value: Any) -> None:
    if not (value is None or (isinstance(value, str) and value == "silu")):
        wrong_value(op, "activation", "be None or 'silu'", shown(value))


def multihead_norm_gate(
    h: Tensor, weight: Tensor | None, bias: Tensor | None, gate: Tensor | None, skip: Tensor | None,
    skip_weight: Tensor | None, eps: Any, weight_offset: Any,
) -> None:  # fmt: skip
    """Arguments of `multihead_norm_gate` after `tensors`."""
    op = "multihead_norm_gate"
    if h.ndim != 4 or 0 in h.shape[2:]:
        wrong_value(op, "h", "have shape (B, S, H, D), H and D at least 1", _shape_of(h))
    batch, seqlen, features = h.shape[0], h.shape[1], h.shape[2] * h.shape[3]
    for name, x in (("weight", weight), ("bias", bias), ("skip_weight", skip_weight)):
        if x is not None:
            _shape(op, name, x, "H*D", (features,))
    for name, x in (("gate", gate), ("skip", skip)):
        if x is not None:
            _same_dtype(op, name, x, "h", h)
            _shape(op, name, x, "B S H*D", (batch, seqlen, features))
    if skip_weight is not None and skip is None:
        raise ValueError(f"{op}: skip_weight needs a skip, got None")
    if not (finite(eps) and eps >= 0):
        wrong_value(op, "eps", "be a finite number >= 0", shown(eps))
    if not finite(weight_offset):
        wrong_value(op, "weight_offset", "be a finite number", shown(weight_offset))


def maps(op: str, weight: Any, bias: Any) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Weights and biases of one map or of several, by what follows their names; they are not checked yet."""
    if not isinstance(weight, (tuple, list)):
        return {"": weight}, {"": bias}
    if not weight:
        wrong_value(op, "weight", "be a Tensor or a sequence of at least one", "an empty one")
    if bias is None:
        bias = [None] * len(weight)
    if not isinstance(bias, (tuple, list)) or len(bias) != len(weight):
        given = f"{type(bias).__name__} of {len(bias)}" if isinstance(bias, (tuple, list)) else type(bias).__name__
        _wrong_type(op, "bias", f"be None or a sequence of {len(weight)}, as weight is", given)
    names = [f"[{n}]" for n in range(len(weight))]
    return dict(zip(names, weight, strict=True)), dict(zip(names, bias, strict=True))


def headwise_linear(x: Tensor, weights: dict[str, Tensor], biases: dict[str, Tensor | None]) -> None:
    """Arguments of `headwise_linear` after `maps` and `tensors`."""
    op = "headwise_linear"
    if x.ndim < 1 or x.shape[-1] < 1:
        wrong_value(op, "x", "have shape (..., F), F at least 1", _shape_of(x))
    features, first = x.shape[-1], next(iter(weights.values()))
    for name, w in weights.items():
        if w.ndim != 3 or 0 in w.shape or w.shape[0] * w.shape[2] != features:
            wrong_value(op, f"weight{name}", f"have shape (N, O, I), O at least 1, N I = F = {features}", _shape_of(w))
        if w.shape[0] != first.shape[0]:
            wrong_value(op, f"weight{name}", f"have N={first.shape[0]} blocks like weight[0]", _shape_of(w))
        if not _traced(x):
            _elements(op, f"the output of weight{name}", (*x.shape[:-1], w.shape[0] * w.shape[1]))
        bias = biases[name]
        if bias is not None:
            _shape(op, f"bias{name}", bias, "N*O", (w.shape[0] * w.shape[1],))


def gated_activation(x: Tensor, gate: Tensor | None) -> None:
    """Tensors of `gated_activation` after `tensors`."""
    op = "gated_activation"
    if x.ndim < 1:
        wrong_value(op, "x", "have shape (..., F)", _shape_of(x))
    if gate is not None:
        _same_dtype(op, "gate", gate, "x", x)
        if gate.shape != x.shape:
            wrong_value(op, "gate", f"have shape {_shape_of(x)} like x", _shape_of(gate))
    elif x.shape[-1] % 2:
        wrong_value(op, "x", "have shape (..., 2 F) without a gate", _shape_of(x))


def soft_cap(x: Tensor, cap: Any) -> None:
    """Arguments of `soft_cap` after `tensors`. The inverse of a denormal cap may be too large."""
    kind = accumulate_dtype(x.dtype)
    limits = torch.finfo(kind)
    if not (finite(cap) and limits.tiny <= cap <= limits.max):
        wrong_value("soft_cap", "cap", f"be a positive number, normal and finite in {kind}", shown(cap))


def one_of(op: str, name: str, value: Any, names: tuple[str, ...]) -> None:
    if not (isinstance(value, str) and value in names):
        wrong_value(op, name, f"be {' or '.join(map(repr, names))}", shown(value))


def flags(op: str, **named: Any) -> None:
    """Options that are True or False; a text such as "no" would be true."""
    for name, value in named.items():
        if not isinstance(value, bool):
            _wrong_type(op, name, "be True or False", shown(value))


def choice(op: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """An option with named values."""
    if value not in allowed:
        wrong_value(op, name, f"be {' or '.join(map(repr, allowed))}", repr(value))


def for_onnx(op: str, *, cu_seqlens: Tensor | None = None, inplace: bool = False, out: Any = None) -> None:
    """What an ONNX graph cannot have: shapes that depend on values, and inputs that are written to."""
    if cu_seqlens is not None:
        raise ValueError(f"{op}: cu_seqlens cannot be exported to ONNX: mark where a sequence begins with reset")
    if inplace or out is not None:
        name = "inplace=True" if inplace else "out"
        raise ValueError(f"{op}: {name} cannot be exported to ONNX: the state goes in and a new one comes out")


def needs_grad(*inputs: Tensor | None) -> bool:
    """Whether autograd, forward mode or a transform of torch.func has to see a call on these tensors."""
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    if torch.is_grad_enabled():
        for x in inputs:
            if x is not None and x.requires_grad:
                return True
    return False


def _mlstm_inputs(
    op: str, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, one_token: bool = False
) -> tuple[int, int, int, int, int]:
    """(B, H, S, Dqk, Dv); without an S dimension (one token) S is 1."""
    names = "B H" if one_token else "B H S"
    if q.ndim != (3 if one_token else 4) or q.shape[1] < 1 or q.shape[-1] < 1:
        forms = "(B, H, Dqk) or (B, H, S, Dqk)" if op == "mlstm_step" else "(B, H, S, Dqk)"
        wrong_value(op, "q", f"have shape {forms}, H and Dqk at least 1", _shape_of(q))
    lead = tuple(q.shape[:-1])
    _same_dtype(op, "k", k, "q", q)
    _same_dtype(op, "v", v, "q", q)
    _shape(op, "k", k, f"{names} Dqk", tuple(q.shape))
    if v.ndim != q.ndim or tuple(v.shape[:-1]) != lead or v.shape[-1] < 1:
        sizes = ", ".join(f"{name}={size}" for name, size in zip(names.split(), lead, strict=True))
        wrong_value(op, "v", f"have shape ({sizes}, Dv), Dv at least 1", _shape_of(v))
    _shape(op, "i", i, names, lead)
    _shape(op, "f", f, names, lead)
    dim_qk, dim_v = q.shape[-1], v.shape[-1]
    if not _traced(q) and max(1, lead[0]) * lead[1] * dim_qk * dim_v >= MAX_ELEMENTS:
        _elements(op, "the state C", (*lead[:2], dim_qk, dim_v))
    return lead[0], lead[1], 1 if one_token else lead[2], dim_qk, dim_v


def _conv_inputs(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, forms: str, dims: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """(B, S, F, K); without an S dimension (one token) S is 1."""
    if x.ndim not in dims or x.shape[-1] < 1:
        wrong_value(op, "x", f"have shape {forms}, F at least 1", _shape_of(x))
    features = x.shape[-1]
    if weight.ndim != 2 or weight.shape[0] != features or weight.shape[1] < 1:
        wrong_value(op, "weight", f"have shape (F={features}, K), K at least 1", _shape_of(weight))
    if bias is not None:
        _shape(op, "bias", bias, "F", (features,))
    return x.shape[0], x.shape[1] if x.ndim == 3 else 1, features, weight.shape[1]


def _mlstm_state(
    op: str, name: str, state: MLSTMState, q: Tensor, rows_name: str, sizes: tuple[int, int, int, int]
) -> None:
    _state_tensors(op, name, state, "q", q)
    for field, s, dims in zip(state._fields, state, (4, 3, 2), strict=True):
        if s.shape != sizes[:dims]:
            names = " ".join([rows_name, "H", "Dqk", "Dv"][:dims])
            _shape(op, f"{name}.{field}", s, names, sizes[:dims])


def _state_tensors(
    op: str, name: str, state: MLSTMState | SLSTMState | LSTMState, first_name: str, first: Tensor
) -> None:
    tensors(op, **{first_name: first}, **{f"{name}.{field}": s for field, s in state._asdict().items()})


def _inplace(op: str, inputs: Sequence[Tensor], state: MLSTMState | None) -> None:
    if needs_grad(*inputs, *(state or ())):
        raise ValueError(f"{op}: inplace=True does not support inputs that require grad, forward mode and torch.func")
    dtype = accumulate_dtype(inputs[0].dtype)
    for name, s in state._asdict().items() if state else ():
        half = name == "C" and dtype == torch.float32  # may be stored in 16 bits: half the memory traffic
        if s.dtype != dtype and not (half and s.dtype == torch.bfloat16):
            wanted = f"{dtype} or torch.bfloat16" if half else f"{dtype}"
            _wrong_type(op, f"state.{name}", f"have dtype {wanted} with inplace=True", s.dtype)
        _overwritable(op, f"state.{name}", s, "with inplace=True")
    if state:
        _apart(op, _named("state", state), "with inplace=True")


def _out(op: str, inputs: Sequence[Tensor], state: MLSTMState | None, out: MLSTMState) -> None:
    if needs_grad(*inputs, *(state or ()), *out):
        raise ValueError(f"{op}: out does not support inputs that require grad, forward mode and torch.func")
    same = state is not None and same_state(out, state)
    dtype, named = accumulate_dtype(inputs[0].dtype), _named("out", out)
    for name, s in named.items():
        half = same and name == "out.C" and dtype == torch.float32  # as with inplace
        if s.dtype != dtype and not (half and s.dtype == torch.bfloat16):
            _wrong_type(op, name, f"have dtype {dtype}", s.dtype)
        _overwritable(op, name, s, "to be written")
    _apart(op, named, "to be written")
    if state is not None and not same:
        for name, s in _named("state", state).items():
            for other, x in named.items():
                _apart(op, {name: s, other: x}, "unless out is the state itself")


def same_state(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(x is y for x, y in zip(a, b, strict=True))


def _named(prefix: str, state: MLSTMState) -> dict[str, Tensor]:
    return {f"{prefix}.{field}": s for field, s in state._asdict().items()}


def _overwritable(op: str, name: str, s: Tensor, when: str) -> None:
    if not _traced(s) and s.is_neg():
        wrong_value(op, name, f"not be a negated view {when}", "one: use resolve_neg()")
    if (s.shape[-1] > 1 and s.stride(-1) != 1) or _meets_itself(s):
        expected = f"be contiguous in its last dimension and not expanded, nor overlap itself, {when}"
        wrong_value(op, name, expected, f"strides {s.stride()}")


def _meets_itself(x: Tensor) -> bool:
    """Whether elements may share memory: where the strides of every dimension pass over all within it, they cannot."""
    if x.is_contiguous():
        return False
    last = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride <= last and x.numel():
            return True
        last += stride * (size - 1)
    return False


def _apart(op: str, named: dict[str, Tensor], when: str) -> None:
    """No two of these tensors lie in one range of memory, unless row by row in the pages of one table."""
    if any(map(_traced, named.values())):
        return
    extents = {name: _extent(x) for name, x in named.items() if x.numel()}
    for (name, x), (other, y) in combinations(extents.items(), 2):
        if not _are_apart(x, y):
            raise ValueError(f"{op}: {name} and {other} must not lie in one range of memory {when}")


class _Extent(NamedTuple):
    """Where a tensor lies, in bytes. page: from one row of its first dimension to the next, 0 where there is one row;
    row: from the first to the last element of a row.
    """

    begin: int
    end: int
    page: int
    row: int


def _extent(x: Tensor) -> _Extent:
    """Empty for a tensor without memory of its own."""
    try:
        begin = x.data_ptr()
    except RuntimeError:
        begin = 0
    if not begin:
        return _Extent(0, 0, 0, 0)
    lengths = [stride * (size - 1) for stride, size in zip(x.stride(), x.shape, strict=True)]
    page = x.stride(0) if x.ndim and x.shape[0] > 1 else 0
    count, row, page = (n * x.element_size() for n in (1 + sum(lengths), 1 + sum(lengths[1:]), page))
    return _Extent(begin, begin + count, page, row)


def _are_apart(x: _Extent, y: _Extent) -> bool:
    if x.end <= y.begin or y.end <= x.begin:
        return True
    if x.page != y.page or x.page <= 0:
        return False
    offset = (y.begin - x.begin) % x.page
    return x.row <= offset and y.row <= x.page - offset


def _elements(op: str, name: str, shape: Sequence[int]) -> None:
    """Products of sizes do not overflow further down, whatever sizes come with an empty dimension."""
    if math.prod(max(1, size) for size in shape) >= MAX_ELEMENTS:
        expected = "have fewer than 2**48 elements, an empty dimension counted as 1"
        wrong_value(op, name, expected, f"shape {tuple(shape)}")


def _cu_seqlens(op: str, cu_seqlens: Tensor, first: Tensor, first_name: str, seqlen: int) -> None:
    _index_tensor(op, "cu_seqlens", cu_seqlens, first, first_name, (torch.int32,))
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        wrong_value(op, "cu_seqlens", "have shape (N+1,)", _shape_of(cu_seqlens))
    if first.shape[0] != 1:
        wrong_value(op, first_name, "have B=1 with cu_seqlens", _shape_of(first))
    _cu_seqlens_values(op, cu_seqlens, seqlen)


def cu_seqlens_for_all(op: str, cu_seqlens: Tensor | None) -> None:
    """Where a function is computed in plain PyTorch, which cuts the row at these places."""
    if cu_seqlens is None or torch.compiler.is_compiling():
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(cu_seqlens):
        raise RuntimeError(
            f"{op}: torch.vmap over cu_seqlens goes with neither second derivatives nor forward mode: make single calls"
        )


def _cu_seqlens_values(op: str, cu_seqlens: Tensor, seqlen: int) -> None:
    if not _readable(cu_seqlens):
        return
    values = cu_seqlens.tolist()
    if values[0] != 0:
        wrong_value(op, "cu_seqlens", "start at 0", values[0])
    for previous, value in pairwise(values):
        if value < previous:
            wrong_value(op, "cu_seqlens", "not decrease", f"{value} after {previous}")
    if values[-1] != seqlen:
        wrong_value(op, "cu_seqlens", f"end at S={seqlen}", values[-1])


def _slots_values(op: str, slots: Tensor, rows: int) -> None:
    _range(op, "slots", slots, "N-1", rows - 1)
    if not _readable(slots):
        return
    seen: set[int] = set()
    for value in slots.tolist():
        if value in seen:
            wrong_value(op, "slots", "not repeat a row", f"{value} twice")
        seen.add(value)


def _range(op: str, name: str, x: Tensor, top_name: str, top: int) -> None:
    if _readable(x):
        for value in x.tolist():
            if not 0 <= value <= top:
                wrong_value(op, name, f"be between 0 and {top_name}={top}", value)


def _readable(x: Tensor) -> bool:
    """Whether x's values may be looked at."""
    return x.device.type == "cpu" and not hidden(x)


def hidden(x: Tensor) -> bool:
    """Whether x's values are those of another time, or of a whole batch, so that no decision can be made by them."""
    return _traced(x) or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _traced(x: Tensor) -> bool:
    """Whether x stands for a tensor of another time: it has no values, and its sizes may be symbols."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)


def _reset(op: str, reset: Tensor, first: Tensor, first_name: str, batch: int, seqlen: int) -> None:
    _index_tensor(op, "reset", reset, first, first_name, (torch.bool,))
    _shape(op, "reset", reset, "B S", (batch, seqlen))


def _index_tensor(op: str, name: str, x: Any, first: Tensor, first_name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(x, Tensor):
        _wrong_type(op, name, "be a Tensor", type(x).__name__)
    _dense(op, name, x)
    if x.dtype not in dtypes:
        _wrong_type(op, name, f"have dtype {' or '.join(map(str, dtypes))}", x.dtype)
    _device(op, name, x, first_name, first)


def _device(op: str, name: str, x: Tensor, first_name: str | None, first: Tensor) -> None:
    if x.device != first.device:
        wrong_value(op, name, f"be on {first.device} like {first_name}", x.device)


def _same_dtype(op: str, name: str, x: Tensor, first_name: str, first: Tensor) -> None:
    if x.dtype != first.dtype:
        _wrong_type(op, name, f"have dtype {first.dtype} like {first_name}", x.dtype)


def _shape(op: str, name: str, x: Tensor, names: str, sizes: tuple[int, ...]) -> None:
    if x.shape != sizes:
        named = zip(names.split(), sizes, strict=True)
        expected = ", ".join(dim if dim == str(size) else f"{dim}={size}" for dim, size in named)
        wrong_value(op, name, f"have shape ({expected}{',' if len(sizes) == 1 else ''})", _shape_of(x))


def _shape_of(x: Tensor) -> str:
    return str(tuple(x.shape))


def whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def finite(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= sys.float_info.max


def shown(x: Any) -> str:
    """A value as an error message quotes it. For a huge int repr would be long, or raise an error of its own."""
    return f"an int of {x.bit_length()} bits" if isinstance(x, int) and x.bit_length() > 64 else repr(x)


def _no_tensor(op: str, name: str, x: Any) -> NoReturn:
    if isinstance(x, Proxy):
        raise TypeError(
            f"{op}: {name} is a torch.fx.Proxy: torch.fx records calls of {op} by a module of Python with "
            f"torch.fx.wrap('{op}') at its top"
        )
    _wrong_type(op, name, "be a Tensor", type(x).__name__)


def _dense(op: str, name: str, x: Tensor) -> None:
    if x.is_nested:
        _wrong_type(
            op, name, "be a dense tensor (rows of different lengths: padded, with `lengths` for slstm and lstm, or one "
            "after the other, with `cu_seqlens` for mlstm)", "a NestedTensor",
        )  # fmt: skip
    if x.layout != torch.strided:
        _wrong_type(op, name, "be a dense tensor", x.layout)


def _wrong_type(op: str, name: str, expected: str, given: object) -> NoReturn:
    raise TypeError(f"{op}: {name} must {expected}, got {given}")


def wrong_value(op: str, name: str, expected: str, given: object) -> NoReturn:
    raise ValueError(f"{op}: {name} must {expected}, got {given}")
