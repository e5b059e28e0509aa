"""Life inside torch: opcheck, compile, export, autocast, retain_graph, pickling, determinism."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_cuda import _ops
from xlstm_cuda._backend import resolve
from xlstm_cuda._states import LSTMState, MLSTMState, SLSTMState
from xlstm_cuda.functional import backend as use_backend
from xlstm_cuda.functional import lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import assert_close_relative, leaves, lstm_inputs, mlstm_inputs, slstm_inputs

SEQUENCES: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "mlstm": (mlstm, lambda **options: mlstm_inputs(2, 2, 20, 5, 7, **options)),
    "slstm": (slstm, lambda **options: slstm_inputs(2, 7, 2, 5, **options)),
    "lstm": (lstm, lambda **options: lstm_inputs(2, 7, 2, 5, **options)),
}
sequences = pytest.mark.parametrize(("function", "make"), SEQUENCES.values(), ids=SEQUENCES.keys())


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def gradients(outputs: tuple[Tensor, ...], inputs: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    loss = sum((x * x).sum() for x in outputs if x.requires_grad)
    return torch.autograd.grad(loss, list(leaves(inputs).values()), **options)


@pytest.fixture
def ops(backend: str, device: str) -> Any:
    return _ops.library(resolve("test", backend, torch.device(device), "mlstm_step"))


def mlstm_case(device: str, case: str, dtype: torch.dtype) -> tuple[list[Any], list[Any], tuple[Any, ...]]:
    """(inputs, state tensors or None, (cu_seqlens, reset)) of the mlstm ops."""
    options: dict[str, Any] = {"dtype": dtype, "device": device, "state": case != "no state"}
    cu_seqlens = reset = None
    if case == "packed":
        inputs = mlstm_inputs(1, 2, 20, 4, 6, state_rows=3, **options)
        cu_seqlens = torch.tensor([0, 4, 4, 20], dtype=torch.int32, device=device)
        reset = torch.rand(1, 20, generator=torch.Generator().manual_seed(0)).lt(0.2).to(device)
    elif case == "tokens first":
        inputs = mlstm_inputs(2, 2, 20, 4, 6, layout="bshd", gate_dtype=torch.float16, **options)
        inputs["i"], inputs["f"] = inputs["i"].contiguous(), inputs["f"].contiguous()
    else:
        B, S = {"empty batch": (0, 5), "no token": (2, 0)}.get(case, (2, 20))
        inputs = mlstm_inputs(B, 2, S, 4, 6, **options)
    state = inputs.pop("initial_state", (None,) * 3)
    return list(inputs.values()), list(state), (cu_seqlens, reset)


OPCHECKS = [("plain", torch.float64), ("plain", torch.bfloat16), ("no state", torch.float32)]
OPCHECKS += [("empty batch", torch.float32), ("no token", torch.float32)]


@pytest.mark.parametrize(
    ("case", "dtype"), [*OPCHECKS, ("packed", torch.float32), ("tokens first", torch.float32)], ids=str
)
def test_opcheck_mlstm(ops: Any, device: str, case: str, dtype: torch.dtype) -> None:
    inputs, state, rest = mlstm_case(device, case, dtype)
    options = (False, True, 0.5, 1e-6, 16, False, True)
    torch.library.opcheck(ops.mlstm_fwd.default, (*inputs, *state, *rest, *options))
    torch.library.opcheck(ops.mlstm_fwd.default, (*inputs, *state, *rest, *options, True))
    h, C, n, m, r, kept = ops.mlstm_fwd(*inputs, *state, *rest, *options, True)
    assert h.stride() == torch.empty_like(inputs[2]).stride()
    dstate = (None, None, None) if case == "no state" else (torch.ones_like(C), torch.ones_like(n), torch.ones_like(m))
    for saved in ((None, None, None), (C, n, kept)):
        arguments = (torch.ones_like(h), *dstate, *inputs, *state, *rest, h, r, *saved, *options)
        torch.library.opcheck(ops.mlstm_bwd.default, arguments)


@pytest.mark.parametrize(("S", "dtype"), [(1, torch.bfloat16), (4, torch.float64)])
def test_opcheck_mlstm_step(ops: Any, device: str, S: int, dtype: torch.dtype) -> None:
    inputs = mlstm_inputs(2, 2, S, 4, 6, dtype=dtype, state=True, state_rows=3, device=device)
    state = inputs.pop("initial_state")
    options = (False, True, 0.5, 1e-6)
    two = tuple(s[:2].contiguous() for s in state)
    torch.library.opcheck(ops.mlstm_step.default, (*inputs.values(), *two, *options))
    torch.library.opcheck(ops.mlstm_step_.default, (*inputs.values(), *two, None, *options))
    out = map(torch.zeros_like, two)
    torch.library.opcheck(ops.mlstm_step_out_.default, (*inputs.values(), *two, *out, *options))
    slots = torch.tensor([2, 0], dtype=torch.int32, device=device)
    torch.library.opcheck(ops.mlstm_step_.default, (*inputs.values(), *state, slots, *options))


@pytest.mark.parametrize("cell", ["lstm", "slstm"])
@pytest.mark.parametrize(("case", "dtype"), [*OPCHECKS, ("padded", torch.float32)], ids=str)
def test_opcheck_recurrent(ops: Any, device: str, case: str, cell: str, dtype: torch.dtype) -> None:
    B, S = {"empty batch": (0, 5), "no token": (2, 0)}.get(case, (2, 5))
    make = lstm_inputs if cell == "lstm" else slstm_inputs
    inputs = make(B, S, 2, 3, dtype=dtype, state=case != "no state", device=device)
    x, R, b, *state = (inputs["x"], inputs["R"], inputs["b"], *(inputs.get("initial_state") or ()))
    state = (*state, None, None, None, None)[:4]
    padding: tuple[Any, Any] = (None, None)
    if case == "padded":
        reset = torch.rand(B, S, generator=torch.Generator().manual_seed(0)).lt(0.2).to(device)
        padding, b = (torch.tensor([2, 5], device=device), reset), None
    torch.library.opcheck(
        ops.recurrent_fwd.default, (x, R, b, *state, *padding, _ops.CELLS[cell], 0, False, case != "no state")
    )
    h, *final, saved = ops.recurrent_fwd(x, R, b, *state, *padding, _ops.CELLS[cell], 0, False, True)
    grads = [torch.ones_like(s) if s.dim() > 1 else None for s in final]
    dstate = [None] * 4 if case == "no state" else grads
    arguments = (torch.ones_like(h), *dstate, R, h, *state, *final[1:3], saved, *padding, _ops.CELLS[cell], 0, False)
    torch.library.opcheck(ops.recurrent_bwd.default, arguments)


@pytest.mark.parametrize(("cell", "dtype"), [("lstm", torch.float64), ("slstm", torch.bfloat16)])
def test_opcheck_recurrent_step(ops: Any, device: str, cell: str, dtype: torch.dtype) -> None:
    make = lstm_inputs if cell == "lstm" else slstm_inputs
    inputs = make(2, 1, 2, 3, dtype=dtype, state=True, device=device)
    state = (*inputs["initial_state"], None, None)[:4]
    for b in (inputs["b"], None):
        torch.library.opcheck(ops.recurrent_step.default, (inputs["x"][:, 0], inputs["R"], b, *state, _ops.CELLS[cell]))


def test_fakes_know_every_cell(ops: Any, device: str) -> None:
    x, R = torch.zeros(2, 3, 4, 1, 5, device=device), torch.zeros(4, 1, 5, 5, device=device)
    for cell in ("lstm", "slstm", "slstm_exp"):
        real = ops.recurrent_fwd(x, R, None, None, None, None, None, None, None, _ops.CELLS[cell], 0, False, True)
        fake = ops.recurrent_fwd(x.to("meta"), R.to("meta"), *(None,) * 7, _ops.CELLS[cell], 0, False, True)
        assert [t.shape for t in fake] == [t.shape for t in real]


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


COMPILED: dict[str, tuple[str, dict[str, Any]]] = {
    "mlstm": ("mlstm", {}),
    "mlstm_sigmoid": ("mlstm", {"input_gate": "sigmoid", "normalize": False, "chunk_size": 16}),
    "mlstm_norm_grad": ("mlstm", {"norm_grad": False, "scale": 0.3, "eps": 0.1}),
    "slstm": ("slstm", {}),
    "slstm_exp": ("slstm", {"forget_gate": "exp"}),
    "lstm": ("lstm", {}),
}


@pytest.mark.parametrize(("name", "options"), COMPILED.values(), ids=COMPILED.keys())
def test_compile_sequences(backend: str, device: str, name: str, options: dict[str, Any]) -> None:
    function, make = SEQUENCES[name]
    inputs = make(state=True, requires_grad=True, device=device)
    h, final = function(**inputs, return_state=True, backend=backend, **options)
    call = compiled(lambda **x: function(**x, return_state=True, backend=backend, **options))
    same, same_final = call(**inputs)
    assert isinstance(same_final, type(final))
    assert equal((same, *same_final), (h, *final))
    assert equal(gradients((same, *same_final), inputs), gradients((h, *final), inputs))


@sequences
def test_compile_where_only_h_is_used(backend: str, device: str, function: Any, make: Any) -> None:
    inputs = make(requires_grad=True, device=device)
    expected = gradients((function(**inputs, backend=backend),), inputs)
    actual = gradients((compiled(lambda **x: function(**x, backend=backend))(**inputs),), inputs)
    assert equal(actual, expected)


def test_compile_with_packing_and_padding(backend: str, device: str) -> None:
    inputs = mlstm_inputs(1, 2, 12, 4, 4, requires_grad=True, device=device)
    cu_seqlens = torch.tensor([0, 5, 12], dtype=torch.int32, device=device)
    reset = torch.zeros(1, 12, dtype=torch.bool, device=device).index_fill(1, torch.tensor([7], device=device), True)
    options: dict[str, Any] = {"cu_seqlens": cu_seqlens, "reset": reset, "backend": backend}
    expected = gradients((mlstm(**inputs, **options),), inputs)
    assert equal(gradients((compiled(mlstm)(**inputs, **options),), inputs), expected)

    inputs = slstm_inputs(3, 6, 2, 4, requires_grad=True, device=device)
    options = {"lengths": torch.tensor([6, 0, 3], device=device), "backend": backend}
    expected = gradients((slstm(**inputs, **options),), inputs)
    assert equal(gradients((compiled(slstm)(**inputs, **options),), inputs), expected)


def test_compile_with_dynamic_shapes(backend: str, device: str) -> None:
    call = compiled(lambda **x: mlstm(**x, backend=backend), dynamic=True)
    for S in (8, 13, 40):
        inputs = mlstm_inputs(2, 2, S, 4, 6, requires_grad=True, device=device)
        h = call(**inputs)
        assert torch.equal(h, mlstm(**inputs, backend=backend))
        assert equal(gradients((h,), inputs), gradients((mlstm(**inputs, backend=backend),), inputs))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compile_steps(backend: str, device: str, requires_grad: bool) -> None:
    inputs = mlstm_inputs(2, 2, 3, 4, 6, state=True, requires_grad=requires_grad, device=device)
    inputs["state"] = inputs.pop("initial_state")
    slots = torch.tensor([1, 0], dtype=torch.int32, device=device)
    for options in ({}, {"slots": slots}):
        h, state = mlstm_step(**inputs, backend=backend, **options)
        same, same_state = compiled(lambda **x: mlstm_step(**x, backend=backend))(**inputs, **options)
        assert equal((same, *same_state), (h, *state))
        if requires_grad:
            assert equal(gradients((same, *same_state), inputs), gradients((h, *state), inputs))
    for step, make in ((slstm_step, slstm_inputs), (lstm_step, lstm_inputs)):
        inputs = make(2, 1, 2, 4, state=True, requires_grad=requires_grad, device=device)
        x, R, b, state = inputs["x"][:, 0], inputs["R"], inputs["b"], inputs["initial_state"]
        expected, after = step(x, R, b, state, backend=backend)
        same, same_after = compiled(lambda *a, step=step: step(*a, backend=backend))(x, R, b, state)
        assert equal((same, *same_after), (expected, *after))


def test_compile_inplace_step(backend: str, device: str) -> None:
    inputs = mlstm_inputs(2, 2, 1, 4, 6, state=True, device=device)
    state = inputs.pop("initial_state")
    copies = MLSTMState(*(s.clone() for s in state))
    expected, _ = mlstm_step(**inputs, state=state, inplace=True, backend=backend)
    call = compiled(lambda state, **x: mlstm_step(**x, state=state, inplace=True, backend=backend)[0])
    assert torch.equal(call(copies, **inputs), expected)
    assert equal(copies, state)


def test_compile_follows_the_backend_context() -> None:
    inputs = mlstm_inputs(1, 1, 4, 2, 2)
    call = compiled(mlstm)
    fast = call(**inputs)
    with use_backend("reference"):
        slow = call(**inputs)
        assert torch.equal(slow, mlstm(**inputs, backend="reference"))
    assert torch.equal(call(**inputs), fast)
    with use_backend("cuda"), pytest.raises(Exception, match="backend='cuda' needs tensors on a cuda device"):
        call(**inputs)


def test_compile_with_the_newer_setting_of_float32_products() -> None:
    """torch refuses to be asked by the older one, and tracing cannot follow either."""
    program = """
import torch
from xlstm_cuda import mlstm
torch.backends.cuda.matmul.fp32_precision = "tf32"
q, i = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 4)
compiled = torch.compile(mlstm, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(q, q, q, i, i), mlstm(q, q, q, i, i))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class Small(nn.Module):
    """A projection, an sLSTM and an mLSTM, states in and out."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, 6, generator=generator) / 3)
        self.R = nn.Parameter(torch.randn(4, 2, 6, 6, generator=generator) / 3)
        self.backend = backend

    def forward(self, tokens: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState, MLSTMState, LSTMState]:
        B, S, _ = tokens.shape
        x = nn.functional.linear(tokens, self.weight).view(B, S, 4, 2, 6)
        h, after = slstm(x, self.R, initial_state=state, return_state=True, backend=self.backend)
        q = h.transpose(1, 2)
        y, memory = mlstm(q, q, q, q[..., 0], q[..., 1], return_state=True, backend=self.backend)
        z, last = lstm_step(x[:, 0], self.R, None, None, backend=self.backend)
        return y + z[:, :, None], after, memory, last


@pytest.mark.parametrize("grad", [True, False])
def test_export_save_load(backend: str, device: str, grad: bool) -> None:
    module = Small(backend).to(device)
    arguments = (torch.randn(2, 9, 6).to(device), SLSTMState(*(torch.rand(2, 2, 6).to(device) for _ in range(4))))
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, arguments)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        expected, actual = module(*arguments), loaded(*arguments)
    assert [type(x) for x in actual] == [Tensor, SLSTMState, MLSTMState, LSTMState]
    assert torch.equal(actual[0], expected[0])
    assert all(equal(a, b) for a, b in zip(actual[1:], expected[1:], strict=True))


def test_export_with_a_dynamic_length(backend: str, device: str) -> None:
    module = Small(backend).to(device)
    state = SLSTMState(*(torch.rand(2, 2, 6).to(device) for _ in range(4)))
    length = {"tokens": {1: torch.export.Dim("S", min=2, max=100)}, "state": SLSTMState(None, None, None, None)}
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(2, 9, 6).to(device), state), dynamic_shapes=length)
        longer = torch.randn(2, 31, 6).to(device)
        assert torch.equal(program.module()(longer, state)[0], module(longer, state)[0])


@sequences
def test_autocast(backend: str, device: str, function: Any, make: Any) -> None:
    inputs = make(state=True, requires_grad=True, device=device)
    with torch.autocast(device, torch.bfloat16):
        h, final = function(**inputs, return_state=True, backend=backend)
    assert h.dtype == torch.bfloat16 and all(s.dtype == torch.float32 for s in final)
    names = {"q", "k", "v", "x", "R"}
    low = {name: x.bfloat16() if name in names else x for name, x in inputs.items()}
    expected, expected_final = function(**low, return_state=True, backend=backend)
    assert equal((h, *final), (expected, *expected_final))
    grads = gradients((h, *final), inputs)
    assert all(g.dtype == x.dtype for g, x in zip(grads, leaves(inputs).values(), strict=True))
    with torch.autocast(device, torch.bfloat16):
        slow = function(**inputs, return_state=True, backend="reference")[0]
    assert slow.dtype == torch.bfloat16
    assert_close_relative(h, slow, 4e-3)


def test_autocast_leaves_float64_and_takes_mixed_inputs(backend: str, device: str) -> None:
    inputs = mlstm_inputs(1, 2, 4, 4, 4, dtype=torch.float64, device=device)
    mixed = mlstm_inputs(1, 2, 4, 4, 4, device=device)
    mixed["v"] = mixed["v"].bfloat16()
    with torch.autocast(device, torch.bfloat16):
        assert mlstm(**inputs, backend=backend).dtype == torch.float64
        assert mlstm(**mixed, backend=backend).dtype == torch.bfloat16
        token = {name: x[:, :, 0] for name, x in mixed.items()}
        assert mlstm_step(**token, state=None, backend=backend)[0].dtype == torch.bfloat16
        recurrent = slstm_inputs(1, 1, 1, 2, device=device)
        h, state = slstm_step(recurrent["x"][:, 0], recurrent["R"], recurrent["b"], None, backend=backend)
    assert h.dtype == torch.bfloat16 and state.h.dtype == torch.float32


@sequences
def test_backward_twice(backend: str, device: str, function: Any, make: Any) -> None:
    inputs = make(state=True, requires_grad=True, device=device)
    h, final = function(**inputs, return_state=True, backend=backend)
    first = gradients((h, *final), inputs, retain_graph=True)
    assert equal(gradients((h, *final), inputs), first)


@sequences
def test_same_inputs_same_bits(backend: str, device: str, function: Any, make: Any) -> None:
    results = []
    for _ in range(3):
        inputs = make(state=True, requires_grad=True, device=device)
        h, final = function(**inputs, return_state=True, backend=backend)
        results.append((h, *final, *gradients((h, *final), inputs)))
    assert equal(results[0], results[1]) and equal(results[0], results[2])


@pytest.mark.parametrize("cls", [MLSTMState, SLSTMState, LSTMState])
def test_states_are_copied_and_pickled(cls: Any) -> None:
    state = cls(*(torch.randn(2, 3) for _ in cls._fields))
    for copy_of in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert type(copy_of) is cls and equal(copy_of, state)
    file = io.BytesIO()
    torch.save(tuple(state), file)
    file.seek(0)
    assert equal(cls(*torch.load(file)), state)
    leaves_, spec = torch.utils._pytree.tree_flatten(state)
    assert equal(torch.utils._pytree.tree_unflatten(leaves_, spec), state)
    assert torch.utils._pytree.treespec_loads(torch.utils._pytree.treespec_dumps(spec)) == spec


@sequences
def test_gradient_accumulation_and_hooks(backend: str, device: str, function: Any, make: Any) -> None:
    inputs = make(requires_grad=True, device=device)
    for _ in range(2):
        function(**inputs, backend=backend).sum().backward()
    once = gradients((function(**inputs, backend=backend),), inputs)
    assert all(
        x.grad is not None and x.grad.shape == g.shape for x, g in zip(leaves(inputs).values(), once, strict=True)
    )
    packed: list[torch.Size] = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x.shape)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        h = function(**inputs, backend=backend)
    assert packed, "everything that is saved goes through save_for_backward"
    assert equal(gradients((h,), inputs), once)


def test_checkpointing(backend: str, device: str) -> None:
    inputs = mlstm_inputs(1, 2, 9, 4, 4, requires_grad=True, device=device)
    expected = gradients((mlstm(**inputs, backend=backend),), inputs)
    h = torch.utils.checkpoint.checkpoint(lambda: mlstm(**inputs, backend=backend), use_reentrant=False)
    assert equal(gradients((h,), inputs), expected)
