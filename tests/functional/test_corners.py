"""Corners that no other test would notice: each of these was once wrong, or a fault planted there went unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.against_reference import check, run
from xlstm_cuda import LSTMState, MLSTMState, SLSTMState, _ops, lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import assert_close_relative, gradients, lstm_inputs, mlstm_inputs, slstm_inputs

INF = float("inf")
cells = pytest.mark.parametrize(
    ("sequence", "step", "make"),
    [(slstm, slstm_step, slstm_inputs), (lstm, lstm_step, lstm_inputs)],
    ids=["slstm", "lstm"],
)
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def one_head(
    i: list[float], f: list[float], state: tuple[float, float, float] | None = None, *, device: str
) -> dict[str, Any]:
    """mlstm with q = k = v = 1, head dimension 1, the given gates and C, n, m."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    ones = torch.ones(1, 1, len(i), 1, **options)
    gates = {name: torch.tensor([[gate]], **options).requires_grad_() for name, gate in (("i", i), ("f", f))}
    inputs: dict[str, Any] = {"q": ones, "k": ones, "v": ones, **gates}
    if state is not None:
        C, n, m = (
            torch.full(shape, x, **options) for shape, x in zip([(1,) * 4, (1,) * 3, (1,) * 2], state, strict=True)
        )
        inputs["initial_state"] = MLSTMState(C, n, m.requires_grad_())
    return inputs


def test_states_recomputed_in_groups(backend: str, device: str) -> None:
    """Enough chunks that the backward pass cannot keep the state of each."""
    inputs = mlstm_inputs(1, 1, 300, 128, 128, dtype=torch.float64, device=device, state=True, requires_grad=True)
    every, few = (mlstm(**inputs, chunk_size=size, return_state=True, backend=backend) for size in (1, 64))
    for a, b in zip(*(gradients([h, *state], inputs).values() for h, state in (every, few)), strict=True):
        assert_close_relative(a, b, 1e-11)


def test_sums_over_many_chunks() -> None:
    """C and n round once a chunk, not once a token: tokens that are all the same add up with one-sided errors.

    A sum of L terms of one sign within a chunk and of as many chunks, in whatever order, errs by less than eps times
    their number.
    """
    S, L, D = 20_000, 64, 24
    k = torch.rand(D).expand(1, 1, S, D) + 0.1
    v, i, f = torch.ones(1, 1, S, 1), torch.zeros(1, 1, S), torch.full((1, 1, S), INF)
    _, (C, n, _) = mlstm(k, k, v, i, f, chunk_size=L, return_state=True, backend="cpu")
    exact, bound = S * k[0, 0, 0].double(), (S / L + L) * torch.finfo(torch.float32).eps
    for name, x in (("C", C.flatten()), ("n", n.flatten())):
        assert ((x - exact).abs() <= bound * exact).all(), name


def test_forget_gates_that_almost_forget(backend: str, device: str) -> None:
    inputs = one_head([-INF], [-200.0], (1.0, 1.0, 0.0), device=device)
    _, state = mlstm(**inputs, return_state=True, backend=backend)
    assert [x.item() for x in state] == [1.0, 1.0, -200.0]


def test_equal_arguments_of_the_max(backend: str, device: str) -> None:
    """The carried branch of m is taken."""
    inputs = one_head([0.0], [INF], (1.0, 1.0, 0.0), device=device)
    _, state = mlstm(**inputs, return_state=True, backend=backend)
    di, dm0 = torch.autograd.grad(state.m.sum(), [inputs["i"], inputs["initial_state"].m])
    assert di.item() == 0 and dm0.item() == 1


def test_nothing_in_and_nothing_there(backend: str, device: str) -> None:
    inputs = one_head([-INF, -INF, 0.5], [1.0, 2.0, 1.0], (0.0, 0.0, -INF), device=device)
    outputs, _ = check(mlstm, inputs, backend)
    assert outputs["h"][..., :2, :].eq(0).all() and outputs["h"][..., 2, :].ne(0).all()


@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
def test_reset_where_the_forget_gate_is_zero(backend: str, device: str, input_gate: str) -> None:
    inputs = mlstm_inputs(1, 1, 3, 4, 4, state=True, dtype=torch.float64, device=device)
    inputs["f"][0, 0, 1] = -INF
    for part in (*(inputs[name] for name in "qkvif"), *inputs["initial_state"]):
        part.requires_grad_()
    reset = torch.tensor([[False, True, False]], device=device)
    check(mlstm, inputs, backend, input_gate=input_gate, reset=reset)


@pytest.mark.parametrize("name", ["m", "f", "i"])
def test_nan_reaches_m(backend: str, device: str, name: str) -> None:
    inputs = mlstm_inputs(1, 1, 3, 4, 4, state=True, device=device)
    target = inputs["initial_state"].m if name == "m" else inputs[name]
    target.view(-1)[0] = torch.nan
    h, state = mlstm(**inputs, return_state=True, backend=backend)
    assert h.isnan().all() and state.m.isnan().all()
    tokens = {key: inputs[key][:, :, 0] for key in "qkvif"}
    h, state = mlstm_step(**tokens, state=inputs["initial_state"], backend=backend)
    assert h.isnan().all() and state.m.isnan().all()


@half
@cells
def test_initial_h_with_more_digits_than_the_inputs(
    backend: str,
    device: str,
    sequence: Callable[..., Any],
    step: Callable[..., Any],
    make: Callable[..., Any],
    dtype: torch.dtype,
) -> None:
    inputs = make(2, 6, 2, 8, dtype=dtype, device=device, state=True)
    state = inputs["initial_state"]
    exact, rounded = (state._replace(h=h) for h in (state.h + 1e-3, (state.h + 1e-3).to(dtype).float()))
    for name in ("x", "R", "b"):
        inputs[name].requires_grad_()
    results = []
    for start in (exact, rounded):
        outputs = run(sequence, {**inputs, "initial_state": start}, backend=backend)
        grads = torch.autograd.grad(outputs["h"].float().sum(), [inputs[name] for name in ("x", "R", "b")])
        with torch.no_grad():
            token = run(
                step, {"x": inputs["x"][:, 0], "R": inputs["R"], "b": inputs["b"], "state": start}, backend=backend
            )
        results.append([*outputs.values(), *grads, *token.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@half
@cells
def test_tiny_h_is_rounded_as_the_output(
    backend: str,
    device: str,
    sequence: Callable[..., Any],
    step: Callable[..., Any],
    make: Callable[..., Any],
    dtype: torch.dtype,
) -> None:
    inputs = make(2, 5, 2, 8, dtype=dtype, device=device)
    inputs["x"][:, :, 3] = -12.0  # sigmoid(o) near 6e-6: float16 has denormals there
    h, state = sequence(**inputs, return_state=True, backend=backend)
    assert torch.equal(state.h, h[:, -1].float()) and h.ne(0).any()


@cells
def test_h_of_a_step_is_not_the_memory_of_the_state(
    backend: str, device: str, sequence: Callable[..., Any], step: Callable[..., Any], make: Callable[..., Any]
) -> None:
    inputs = make(2, 1, 2, 8, device=device)
    h, state = step(inputs["x"][:, 0], inputs["R"], inputs["b"], None, backend=backend)
    before = state.h.clone()
    h.zero_()
    assert torch.equal(state.h, before)


def test_graphs_notice_a_state_changed_in_place(backend: str, device: str) -> None:
    inputs = mlstm_inputs(1, 1, 1, 4, 4, state=True, device=device)
    state = inputs.pop("initial_state")
    weight = torch.ones(4, 4, device=device, requires_grad=True)
    loss = (weight * state.C).sum()
    mlstm_step(**inputs, state=state, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_raw_ops_refuse_empty_dimensions() -> None:
    """The last line of defence, below the checks of the public functions."""
    ops, x, R = torch.ops.xlstm_cuda, torch.zeros(1, 2, 4, 1, 0), torch.zeros(4, 1, 0, 0)
    with pytest.raises(RuntimeError, match="must not be 0"):
        ops.recurrent_fwd(x, R, None, None, None, None, None, None, None, _ops.CELLS["lstm"], 0, False, False)
    with pytest.raises(RuntimeError, match="must not be 0"):
        ops.recurrent_step(x[:, 0], R, None, x[:, 0, 0], x[:, 0, 0], None, None, _ops.CELLS["lstm"])
    q, gate = torch.zeros(1, 1, 2, 0), torch.zeros(1, 1, 2)
    with pytest.raises(RuntimeError, match="must not be 0"):
        ops.mlstm_fwd(q, q, q, gate, gate, None, None, None, None, None, False, True, 1.0, 0.0, 0, False)


def test_raw_step_refuses_a_slot_named_twice() -> None:
    inputs = mlstm_inputs(2, 1, 1, 4, 4, state=True)
    state = inputs.pop("initial_state")
    slots = torch.tensor([1, 1], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="twice"):
        torch.ops.xlstm_cuda.mlstm_step_(*inputs.values(), *state, slots, False, True, 0.5, 1e-6)


@pytest.mark.parametrize("cls", [MLSTMState, SLSTMState, LSTMState])
def test_saved_states_load_without_pickle(cls: Any, tmp_path: Any) -> None:
    state = cls(*torch.randn(len(cls._fields), 2, 3))
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert type(loaded) is cls and all(torch.equal(a, b) for a, b in zip(loaded, state, strict=True))


@cells
def test_compiled_step_from_the_empty_state(
    backend: str, device: str, sequence: Callable[..., Any], step: Callable[..., Any], make: Callable[..., Any]
) -> None:
    inputs = make(2, 1, 2, 8, device=device, requires_grad=True)
    call = lambda x, R, b: step(x, R, b, None, backend=backend)[0]  # noqa: E731
    arguments = inputs["x"][:, 0], inputs["R"], inputs["b"]
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), call(*arguments))
