"""mlstm against the float64 reference: every option, length, layout and dtype; outputs, states and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.against_reference import check, run
from xlstm_cuda._states import MLSTMState
from xlstm_cuda.functional import mlstm
from xlstm_cuda.testing import assert_close_relative, leaves, mlstm_inputs

VARIANTS: dict[str, dict[str, Any]] = {
    "exp": {},
    "sigmoid": {"input_gate": "sigmoid"},
    "sigmoid_plain": {"input_gate": "sigmoid", "normalize": False},
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
INF = float("inf")


def draw(B: int = 2, H: int = 2, S: int = 20, Dqk: int = 5, Dv: int = 7, **options: Any) -> dict[str, Any]:
    options = {"dtype": torch.float64, "state": True, "requires_grad": True, **options}
    return mlstm_inputs(B, H, S, Dqk, Dv, **options)


def replaced(inputs: dict[str, Any], **values: Tensor) -> dict[str, Any]:
    """Inputs with some tensors replaced by new leaves."""
    return {**inputs, **{name: x.detach().clone().requires_grad_() for name, x in values.items()}}


@variants
@pytest.mark.parametrize("S", [0, 1, 15, 16, 17, 63, 64, 65])
def test_every_length(backend: str, device: str, S: int, variant: dict[str, Any]) -> None:
    check(mlstm, draw(B=1, S=S, seed=S, device=device), backend, **variant)


@variants
@pytest.mark.parametrize(("S", "Dqk", "Dv"), [(1, 16, 32), (17, 33, 20), (64, 16, 16), (65, 64, 48)])
def test_float32(backend: str, device: str, S: int, Dqk: int, Dv: int, variant: dict[str, Any]) -> None:
    check(mlstm, draw(S=S, Dqk=Dqk, Dv=Dv, dtype=torch.float32, device=device), backend, **variant)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_thousand_tokens(backend: str, device: str, dtype: torch.dtype) -> None:
    # a low input gate: both sides of the denominator's max occur, few |r| are near zero (float32 loses digits there)
    gates = {"forget_bias": 5.0, "input_bias": -3.0}
    check(mlstm, draw(B=1, H=1, S=1000, Dqk=8, Dv=4, dtype=dtype, device=device, **gates), backend)


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend: str, device: str, dtype: torch.dtype, variant: dict[str, Any]) -> None:
    check(mlstm, draw(S=70, Dqk=16, Dv=24, dtype=dtype, device=device), backend, **variant)


@pytest.mark.parametrize(("Dqk", "Dv"), [(1, 1), (1, 9), (3, 2), (16, 1), (31, 65), (128, 3)])
def test_odd_head_dims(backend: str, device: str, Dqk: int, Dv: int) -> None:
    check(mlstm, draw(Dqk=Dqk, Dv=Dv, device=device), backend)


@variants
def test_no_initial_state(backend: str, device: str, variant: dict[str, Any]) -> None:
    inputs = draw(state=False, device=device)
    actual, _ = check(mlstm, inputs, backend, **variant)
    assert torch.equal(mlstm(**inputs, backend=backend, **variant), actual["h"])


@variants
@pytest.mark.parametrize("outputs", [["h"], ["state.C"], ["state.n"], ["state.m"], ["state.C", "state.m"]])
def test_loss_on_some_outputs(backend: str, device: str, outputs: list[str], variant: dict[str, Any]) -> None:
    if variant and outputs == ["state.m"]:
        outputs = ["h", "state.m"]  # m passes through: alone it gives no gradient but dm0 = 1
    check(mlstm, draw(device=device), backend, outputs=outputs, **variant)


@variants
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 16, 32, 64, 100, 128, 256])
def test_chunk_sizes(backend: str, device: str, chunk_size: int, variant: dict[str, Any]) -> None:
    check(mlstm, draw(B=1, S=130, Dqk=4, Dv=3, device=device), backend, chunk_size=chunk_size, **variant)


@pytest.mark.parametrize(
    "options", [{"scale": 1.7}, {"scale": -0.3}, {"eps": 0.0}, {"eps": 0.5}, {"scale": 1, "eps": 1}]
)
def test_scale_and_eps(backend: str, device: str, options: dict[str, Any]) -> None:
    check(mlstm, draw(device=device), backend, **options)
    check(mlstm, draw(device=device), backend, input_gate="sigmoid", **options)


@variants
def test_norm_grad_off(backend: str, device: str, variant: dict[str, Any]) -> None:
    inputs = draw(S=33, device=device)
    _, without = check(mlstm, inputs, backend, norm_grad=False, **variant)
    _, exact = check(mlstm, inputs, backend, **variant)
    assert torch.equal(without["q"], exact["q"]) == (variant.get("normalize") is False)


def test_tokens_before_heads_cost_no_copy(backend: str, device: str) -> None:
    inputs = draw(S=40, layout="bshd", device=device)
    actual, grads = check(mlstm, inputs, backend)
    assert actual["h"].stride() == inputs["v"].stride()
    assert grads["q"].stride() == inputs["q"].stride()


def strided(x: Tensor, layout: str) -> Tensor:
    """The values of x in another memory layout."""
    if layout == "last dim strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    if layout == "first dim last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "slice":
        return torch.cat([x, x, x], dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]]
    return x[:1].expand(x.shape)  # "expanded"


@pytest.mark.parametrize("layout", ["last dim strided", "first dim last", "slice", "expanded"])
def test_any_strides(backend: str, device: str, layout: str) -> None:
    inputs = draw(S=19, device=device, requires_grad=False)
    state = inputs.pop("initial_state")
    changed = {name: strided(x, layout) for name, x in inputs.items()}
    changed["initial_state"] = MLSTMState(*(strided(x, layout) for x in state))
    for x in leaves(changed).values():
        x.requires_grad_()
    check(mlstm, changed, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("i_range", "f_range"), [(50, 1), (1, 50), (50, 50), (80, 8)])
def test_extreme_gates(backend: str, device: str, dtype: torch.dtype, i_range: float, f_range: float) -> None:
    inputs = draw(S=70, dtype=dtype, device=device)
    C, n, m = inputs["initial_state"]
    # r is a sum of terms of one sign, which turns from token to token: cancellation costs digits no kernel can keep
    turns = torch.tensor([1, -1]).repeat(35)[:, None].to(device, dtype)
    inputs = replaced(inputs, q=inputs["q"].abs() * turns, k=inputs["k"].abs())
    inputs["initial_state"] = MLSTMState(C, n.detach().abs().requires_grad_(), m)
    signs = torch.randint(-1, 2, (2, *inputs["i"].shape), generator=torch.Generator().manual_seed(3)).to(device, dtype)
    inputs = replaced(inputs, i=inputs["i"] + i_range * signs[0], f=inputs["f"] + f_range * signs[1])
    actual, grads = check(mlstm, inputs, backend)
    assert all(x.isfinite().all() for x in (*actual.values(), *grads.values()))


NOTHING = {
    "no token writes": (slice(None), slice(0)),
    "some tokens write": (slice(1, None, 3), slice(0)),
    "all forgotten": (slice(0), slice(None)),
    "some forgotten": (slice(0), slice(1, None, 4)),
    "none written, all forgotten": (slice(None), slice(None)),
    "the first tokens do neither": (slice(0, 9), slice(0, 9)),
    "the last tokens do neither": (slice(9, None), slice(9, None)),
}


@variants
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("case", NOTHING)
def test_gates_at_minus_infinity(backend: str, device: str, case: str, state: bool, variant: dict[str, Any]) -> None:
    inputs = draw(S=20, state=state, device=device)
    i, f = inputs["i"].detach().clone(), inputs["f"].detach().clone()
    silent, forgotten = NOTHING[case]
    i[:, :, silent], f[:, :, forgotten] = -INF, -INF
    actual, grads = check(mlstm, replaced(inputs, i=i, f=f), backend, **variant)
    assert all(x.isfinite().all() for x in (*actual.values(), *grads.values()))
    if case == "no token writes":
        assert not grads["i"].any()
        assert state or not actual["h"].any()


BOUNDS = {
    "even": [0, 10, 20, 30],
    "empty ones": [0, 0, 7, 7, 7, 30, 30],
    "single tokens": [0, 1, 2, 29, 30],
    "one": [0, 30],
}


@variants
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())
@pytest.mark.parametrize("resets", [False, True])
def test_packed_sequences(backend: str, device: str, bounds: list[int], resets: bool, variant: dict[str, Any]) -> None:
    inputs = draw(B=1, S=30, state_rows=len(bounds) - 1, device=device)
    reset = torch.rand(1, 30, generator=torch.Generator().manual_seed(0)).lt(0.2).to(device) if resets else None
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    check(mlstm, inputs, backend, cu_seqlens=cu_seqlens, reset=reset, chunk_size=16, **variant)
    check(mlstm, draw(B=1, S=30, state=False, device=device), backend, cu_seqlens=cu_seqlens, reset=reset, **variant)


def test_packed_sequences_of_nothing(backend: str, device: str) -> None:
    inputs = draw(B=1, S=0, state_rows=2, device=device)
    check(mlstm, inputs, backend, cu_seqlens=torch.zeros(3, dtype=torch.int32, device=device))


@variants
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("state", [True, False])
def test_resets(backend: str, device: str, density: float, state: bool, variant: dict[str, Any]) -> None:
    inputs = draw(S=50, state=state, device=device)
    reset = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)).lt(density).to(device)
    check(mlstm, inputs, backend, reset=reset, chunk_size=16, **variant)


@pytest.mark.parametrize("positions", [[0], [15], [16], [31, 32], [49], [0, 1, 2]])
def test_reset_at_the_edges_of_chunks(backend: str, device: str, positions: list[int]) -> None:
    reset = torch.zeros(2, 50, dtype=torch.bool, device=device)
    reset[1, positions] = True
    check(mlstm, draw(S=50, device=device), backend, reset=reset, chunk_size=16)


def test_reset_with_gates_at_minus_infinity(backend: str, device: str) -> None:
    inputs = draw(device=device)
    i, f = inputs["i"].detach().clone(), inputs["f"].detach().clone()
    i[:, :, 8:10], f[:, :, 8], f[:, :, 12] = -INF, -INF, -INF
    reset = torch.zeros(2, 20, dtype=torch.bool, device=device)
    reset[:, 8] = reset[:, 12] = True
    check(mlstm, replaced(inputs, i=i, f=f), backend, reset=reset)


@variants
def test_reset_is_the_start_of_another_sequence(backend: str, device: str, variant: dict[str, Any]) -> None:
    inputs = draw(B=1, S=24, state=False, device=device, requires_grad=False)
    reset = torch.zeros(1, 24, dtype=torch.bool, device=device)
    reset[0, 9] = True
    whole = run(mlstm, inputs, backend=backend, reset=reset, **variant)
    tail = run(mlstm, {name: x[:, :, 9:] for name, x in inputs.items()}, backend=backend, **variant)
    assert_close_relative(whole["h"][:, :, 9:], tail["h"], 1e-13)
    assert_close_relative(whole["state.C"], tail["state.C"], 1e-13)


@pytest.mark.parametrize(("B", "H", "S"), [(0, 2, 5), (0, 1, 0), (1, 1, 1), (7, 3, 1), (3, 1, 0)])
def test_small_batches(backend: str, device: str, B: int, H: int, S: int) -> None:
    check(mlstm, draw(B=B, H=H, S=S, device=device), backend)
    # a large eps: of one token alone, dq is proportional to eps, and otherwise all rounding
    check(mlstm, draw(B=B, H=H, S=S, state=False, device=device), backend, eps=0.5)


def test_no_token_passes_the_state_through(backend: str, device: str) -> None:
    inputs = draw(S=0, device=device)
    h, final = mlstm(**inputs, return_state=True, backend=backend)
    assert h.shape == (2, 2, 0, 7)
    assert all(torch.equal(a, b) for a, b in zip(final, inputs["initial_state"], strict=True))
    final.C.sum().backward()
    assert torch.equal(inputs["initial_state"].C.grad, torch.ones_like(final.C))


@variants
@pytest.mark.parametrize("cut", [1, 16, 23])
def test_two_segments_are_one_sequence(backend: str, device: str, cut: int, variant: dict[str, Any]) -> None:
    inputs = draw(S=40, device=device)
    state = inputs.pop("initial_state")
    first = {name: x[:, :, :cut] for name, x in inputs.items()}
    second = {name: x[:, :, cut:] for name, x in inputs.items()}
    options = {"return_state": True, "backend": backend, **variant}
    h1, middle = mlstm(**first, initial_state=state, **options)
    h2, final = mlstm(**second, initial_state=middle, **options)
    h, expected = mlstm(**inputs, initial_state=state, **options)
    weight = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(0)).to(device)
    sources = [*inputs.values(), *state]
    parts = torch.autograd.grad((torch.cat([h1, h2], 2) * weight).sum() + final.C.sum(), sources, allow_unused=True)
    whole = torch.autograd.grad((h * weight).sum() + expected.C.sum(), sources, allow_unused=True)
    assert_close_relative(torch.cat([h1, h2], 2), h, 1e-12)
    for a, b in zip(parts, whole, strict=True):
        if b is not None:
            assert_close_relative(a, b, 1e-11)


@pytest.mark.parametrize("gate_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state_dtype", [torch.float64, torch.bfloat16])
def test_gates_and_states_of_other_dtypes(
    backend: str, device: str, gate_dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    inputs = draw(dtype=torch.float32, gate_dtype=gate_dtype, state_dtype=state_dtype, device=device)
    h, final = mlstm(**inputs, return_state=True, backend=backend)
    assert h.dtype == torch.float32 and all(s.dtype == torch.float32 for s in final)
    wide = {name: x for name, x in inputs.items() if name not in ("i", "f", "initial_state")}
    wide.update(i=inputs["i"].float(), f=inputs["f"].float())
    wide["initial_state"] = MLSTMState(*(s.float() for s in inputs["initial_state"]))
    same, same_final = mlstm(**wide, return_state=True, backend=backend)
    assert torch.equal(h, same) and all(torch.equal(a, b) for a, b in zip(final, same_final, strict=True))
    (h.sum() + final.C.sum() + final.m.sum()).backward()
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in leaves(inputs).values())


def test_only_what_requires_grad_gets_one(backend: str, device: str) -> None:
    inputs = draw(device=device, requires_grad=False)
    inputs["f"].requires_grad_()
    mlstm(**inputs, backend=backend).sum().backward()
    assert inputs["f"].grad is not None
    assert all(x.grad is None for name, x in leaves(inputs).items() if name != "f")


@pytest.mark.parametrize("normalize", [True, False])
def test_sigmoid_gate_returns_m_as_it_came(backend: str, device: str, normalize: bool) -> None:
    inputs = draw(device=device)
    _, final = mlstm(**inputs, input_gate="sigmoid", normalize=normalize, return_state=True, backend=backend)
    assert torch.equal(final.m, inputs["initial_state"].m)
    assert final.n.any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20)),
    chunk_size=st.none() | st.integers(1, 50),
    variant=st.sampled_from(list(VARIANTS.values())),
    state=st.booleans(),
    layout=st.sampled_from(["bhsd", "bshd"]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    shape: tuple[int, ...], chunk_size: int | None, variant: dict[str, Any], state: bool, layout: str, seed: int
) -> None:
    B, H, S, Dqk, Dv = shape
    check(mlstm, draw(B, H, S, Dqk, Dv, state=state, layout=layout, seed=seed), "cpu", chunk_size=chunk_size, **variant)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(0, 45), max_size=6).map(sorted),
    chunk_size=st.integers(1, 50),
    density=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 1000),
)
def test_any_packing(cuts: list[int], chunk_size: int, density: float, seed: int) -> None:
    bounds = torch.tensor([0, *cuts, 45], dtype=torch.int32)
    reset = torch.rand(1, 45, generator=torch.Generator().manual_seed(seed)) < density
    inputs = draw(1, 1, 45, 4, 3, state_rows=len(cuts) + 1, seed=seed)
    check(mlstm, inputs, "cpu", cu_seqlens=bounds, reset=reset, chunk_size=chunk_size)
