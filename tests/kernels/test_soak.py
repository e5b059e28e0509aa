"""No op keeps memory: what is allocated stays the same over thousands of calls of each."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import _ops, lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import leaves, lstm_inputs, mlstm_inputs, slstm_inputs

# A window is so many calls. Memory that every call loses, glibc's smallest piece has 32 bytes, shows in each window;
# what comes and goes, such as a thread's cache of freed pieces, which counts as allocated, does not show in all.
CALLS, WINDOWS = 2000, 3
LOST = CALLS * 32  # bytes, at least


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Only this thread's cache of freed pieces is in use, and the collector looks at what is made from now on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


class _MallInfo2(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def allocated() -> int:
    """Bytes that malloc gave out and did not get back, large blocks of their own included."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("the C library has no mallinfo2 (glibc 2.33 or later): allocated bytes cannot be read")
    mallinfo2.restype = _MallInfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def grown(call: Callable[[], Any]) -> int:
    """Bytes that a window of calls leaves allocated, the least of several windows, after calls that fill caches."""
    for _ in range(200):
        call()
    least = LOST
    for _ in range(WINDOWS):
        gc.collect()
        before = allocated()
        for _ in range(CALLS):
            call()
        gc.collect()
        least = min(least, allocated() - before)
        if least < LOST / 2:
            break
    return least


Rows = dict[str, list[Callable[[], Any]]]


def mlstm_rows() -> Rows:
    ops, gates = torch.ops.xlstm_cuda, (False, True, 0.5, 1e-6)
    inputs = list(leaves(mlstm_inputs(1, 1, 3, 4, 4, state=True)).values())
    packed, resets = torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([[False, True, False]])
    rows: Rows = {"mlstm_fwd": [], "mlstm_bwd": []}
    for state, *extra in ((inputs[5:], None, None), ([None] * 3, packed, resets)):
        forward = (*inputs[:5], *state, *extra)
        h, C, n, m, r, kept = ops.mlstm_fwd(*forward, *gates, 0, False)
        backward = (h, C, n, m, *forward, h, r, C, n, kept, *gates, 0, False, True)
        rows["mlstm_fwd"].append(partial(ops.mlstm_fwd.default, *forward, *gates, 0, False))
        rows["mlstm_bwd"].append(partial(ops.mlstm_bwd.default, *backward))
    halves = mlstm_inputs(1, 1, 2, 4, 4, dtype=torch.bfloat16, state=True)
    token, (C, n, m) = [halves[name] for name in "qkvif"], halves["initial_state"]
    slots = torch.zeros(1, dtype=torch.int32)
    rows["mlstm_step"] = [partial(ops.mlstm_step.default, *token, C, n, m, *gates)]
    out = map(torch.empty_like, (C, n, m))
    rows["mlstm_step_out_"] = [partial(ops.mlstm_step_out_.default, *token, C, n, m, *out, *gates)]
    rows["mlstm_step_"] = [partial(ops.mlstm_step_.default, *token, C.bfloat16(), n, m, slots, *gates)]
    return rows


def recurrent_rows() -> Rows:
    ops = torch.ops.xlstm_cuda
    rows: Rows = {"recurrent_fwd": [], "recurrent_bwd": [], "recurrent_step": []}
    lengths, resets = torch.tensor([2]), torch.tensor([[False, True, False]])
    for name, cell in _ops.CELLS.items():
        inputs = (lstm_inputs if name == "lstm" else slstm_inputs)(1, 3, 1, 4, dtype=torch.bfloat16, state=True)
        x, R, b = inputs["x"], inputs["R"], inputs["b"]
        state = (*inputs["initial_state"], None, None)[:4]
        forward = (x, R, b, *state, lengths, resets, cell, 0, False, True)
        h, *final, saved = ops.recurrent_fwd(*forward)
        dstate = [s if s.numel() else None for s in final]
        rows["recurrent_fwd"].append(partial(ops.recurrent_fwd.default, *forward))
        backward = (h, *dstate, R, h, *state, *final[1:3], saved, lengths, resets, cell, 0, False)
        rows["recurrent_bwd"].append(partial(ops.recurrent_bwd.default, *backward))
        rows["recurrent_step"].append(partial(ops.recurrent_step.default, x[:, 0], R, b, *state, cell))
    return rows


def conv_rows() -> Rows:
    ops, x, weight = torch.ops.xlstm_cuda, torch.randn(1, 3, 4), torch.randn(4, 3)
    bias, state, packed = torch.randn(4), torch.randn(2, 2, 4), torch.tensor([0, 1, 3], dtype=torch.int32)
    resets = torch.tensor([[False, True, False]])
    rows: Rows = {name: [] for name in ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_step_")}
    for dtype in (torch.float32, torch.bfloat16):
        forward = (x.to(dtype), weight.to(dtype), bias, state, packed, resets, True)
        rows["causal_conv1d_fwd"].append(partial(ops.causal_conv1d_fwd.default, *forward))
        rows["causal_conv1d_bwd"].append(partial(ops.causal_conv1d_bwd.default, x.to(dtype), state, *forward))
        step = (x[:, 0].to(dtype), weight, bias, state[:1].to(dtype), True)
        rows["causal_conv1d_step_"].append(partial(ops.causal_conv1d_step_.default, *step))
    return rows


def norm_rows() -> Rows:
    ops, h, x, weight = torch.ops.xlstm_cuda, torch.randn(1, 3, 2, 4), torch.randn(1, 3, 8), torch.randn(8)
    rows: Rows = {name: [] for name in ("multihead_norm_gate_fwd", "multihead_norm_gate_bwd")}
    for dtype in (torch.float32, torch.bfloat16):
        row = x.to(dtype)
        forward = (h.to(dtype), weight, weight, row, row, weight, False, False, 1e-5, 1.0)
        rows["multihead_norm_gate_fwd"].append(partial(ops.multihead_norm_gate_fwd.default, *forward))
        rows["multihead_norm_gate_bwd"].append(partial(ops.multihead_norm_gate_bwd.default, row, *forward))
    return rows


def headwise_rows() -> Rows:
    ops, x, weight, bias = torch.ops.xlstm_cuda, torch.randn(1, 3, 8), torch.randn(2, 4, 4), torch.randn(8)
    rows: Rows = {name: [] for name in ("headwise_linear_fwd", "headwise_linear_bwd")}
    for dtype in (torch.float32, torch.bfloat16):
        row = x.to(dtype)
        for second, second_bias, dy in ((weight, bias, row), (None, None, None)):
            forward = (row, weight, second, bias, second_bias)
            rows["headwise_linear_fwd"].append(partial(ops.headwise_linear_fwd.default, *forward))
            rows["headwise_linear_bwd"].append(partial(ops.headwise_linear_bwd.default, row, dy, *forward[:3]))
    return rows


def gated_rows() -> Rows:
    ops, x = torch.ops.xlstm_cuda, torch.randn(1, 3, 8)
    rows: Rows = {f"{op}_{way}": [] for op in ("gated_activation", "soft_cap") for way in ("fwd", "bwd")}
    for dtype in (torch.float32, torch.bfloat16):
        row = x.to(dtype)
        for gate, dy in ((row, row), (None, row[..., :4])):
            rows["gated_activation_fwd"].append(partial(ops.gated_activation_fwd.default, row, gate, 0))
            rows["gated_activation_bwd"].append(partial(ops.gated_activation_bwd.default, dy, row, gate, 0))
        rows["soft_cap_fwd"].append(partial(ops.soft_cap_fwd.default, row, 2.0))
        rows["soft_cap_bwd"].append(partial(ops.soft_cap_bwd.default, row, row, 2.0))
    return rows


def decode_rows() -> Rows:
    ops, x, D, v = torch.ops.xlstm_cuda, torch.randn(2, 1, 6), torch.randn(6), torch.randn(8)
    rows: Rows = {name: [] for name in ("few_rows_linear", "large_block_step")}
    for dtype in (torch.float32, torch.bfloat16):
        row, weight = x[:, 0].to(dtype), torch.randn(5, 6).to(dtype)
        for bias in (None, weight[:, 0]):
            rows["few_rows_linear"].append(partial(ops.few_rows_linear.default, row, weight, bias))
    gate, down, state = (
        torch.randn(2, 6),
        torch.randn(6, 3),
        (torch.randn(2, 2, 3, 4), torch.zeros(2, 2, 3), torch.zeros(2, 2)),
    )
    maps = ([torch.randn(n, 6) for n in (6, 6, 8, 8)], [gate, gate[:, 0], gate, gate[:, 0]], [torch.randn(3, 6)] * 2)
    fused = ([torch.randn(28, 6), None, None, None], [torch.randn(4, 6), D[:4], None, None], [torch.randn(6, 6), None])
    for projections, gates, up in (maps, fused):
        weights = (D, *projections, *gates, v, torch.randn(6, 8), D, *up, down)
        rows["large_block_step"].append(
            partial(ops.large_block_step.default, x, *weights, *state, 1e-5, 1e-6, 0.5, 2.0, False)
        )
    return rows


def all_rows() -> Rows:
    rows = mlstm_rows() | recurrent_rows() | conv_rows() | norm_rows() | headwise_rows() | gated_rows()
    return rows | decode_rows()


def on_cpu() -> set[str]:
    """Names of the registered ops that compute on a CPU."""
    names = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith(f"{_ops.NAMESPACE}::")]
    return {n.partition("::")[2] for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CPU")}


def test_every_op_has_a_row() -> None:
    assert on_cpu() == all_rows().keys()


def test_a_call_that_keeps_memory_is_noticed() -> None:
    kept: list[Any] = []
    assert grown(lambda: kept.append(torch.empty(1))) >= LOST / 2
    assert grown(lambda: torch.empty(1)) < LOST / 2


@pytest.mark.parametrize("op", sorted(on_cpu()))
def test_an_op_keeps_no_memory(op: str) -> None:
    for call in all_rows()[op]:
        assert grown(call) < LOST / 2


@pytest.mark.parametrize("op", sorted(on_cpu()))
def test_a_refused_call_lets_go_of_its_tensors(op: str) -> None:
    """An op takes all of its arguments before it checks one: torch leaves it to the op to free them."""
    for call in all_rows()[op]:
        assert isinstance(call, partial)
        refused = 0
        for place in (n for n, x in enumerate(call.args) if isinstance(x, Tensor)):
            arguments = [x.clone() if isinstance(x, Tensor) else x for x in call.args]
            arguments[place] = torch.zeros(2, 2)  # of no tensor's shape
            tensors = [x for x in arguments if isinstance(x, Tensor)]
            before = [x._use_count() for x in tensors]
            try:
                call.func(*arguments)
            except RuntimeError:
                refused += 1
            assert [x._use_count() for x in tensors] == before
        assert refused


def train(function: Callable[..., Any], inputs: dict[str, Any]) -> None:
    h, state = function(**inputs, return_state=True)
    torch.autograd.grad([h.sum(), *(s.sum() for s in state)], list(leaves(inputs).values()))


def token(function: Callable[..., Any], inputs: dict[str, Any], **options: Any) -> Callable[[], Any]:
    state = inputs.pop("initial_state")
    if "x" in inputs:
        inputs["x"] = inputs["x"][:, 0]
    return partial(function, **inputs, state=state, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlstm", "slstm", "lstm"])
def test_a_function_keeps_no_memory(name: str) -> None:
    size = {"mlstm": (1, 1, 2, 4, 4)}.get(name, (1, 2, 1, 4))
    sequence = {"mlstm": mlstm, "slstm": slstm, "lstm": lstm}[name]
    step = {"mlstm": mlstm_step, "slstm": slstm_step, "lstm": lstm_step}[name]
    make: Any = {"mlstm": mlstm_inputs, "slstm": slstm_inputs, "lstm": lstm_inputs}[name]
    calls = [
        partial(train, sequence, make(*size, state=True, requires_grad=True)),
        token(step, make(*size, state=True)),
    ]
    if name == "mlstm":
        calls.append(token(step, make(*size, state=True), inplace=True))
    for call in calls:
        assert grown(call) < LOST / 2
