"""mlstm_step, slstm_step and lstm_step against the reference and against the sequence functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.against_reference import check
from xlstm_cuda._states import MLSTMState
from xlstm_cuda.functional import lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import (
    TOLERANCE,
    assert_close_relative,
    leaves,
    lstm_inputs,
    mlstm_inputs,
    slstm_inputs,
    tolerance_of,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "exp": {},
    "sigmoid": {"input_gate": "sigmoid"},
    "sigmoid_plain": {"input_gate": "sigmoid", "normalize": False},
    "scale_eps": {"scale": 0.7, "eps": 0.1},
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())

CELLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "slstm": (slstm, slstm_step, slstm_inputs, {}),
    "slstm_exp": (slstm, slstm_step, slstm_inputs, {"forget_gate": "exp"}),
    "lstm": (lstm, lstm_step, lstm_inputs, {}),
}
cells = pytest.mark.parametrize(("sequence", "step", "make", "options"), CELLS.values(), ids=CELLS.keys())


def draw(B: int = 2, H: int = 2, S: int | None = None, Dqk: int = 5, Dv: int = 7, **options: Any) -> dict[str, Any]:
    """Inputs of mlstm_step; S None: one token without a sequence dimension. The state has B or state_rows rows."""
    options = {"dtype": torch.float64, "state": True, **options}
    inputs = mlstm_inputs(B, H, 1 if S is None else S, Dqk, Dv, **options)
    state = inputs.pop("initial_state", None)
    if S is None:
        grad = options.get("requires_grad", False)
        inputs = {name: x.detach().squeeze(2).requires_grad_(grad) for name, x in inputs.items()}
    return {**inputs, "state": state}


def draw_token(make: Callable[..., Any], B: int = 3, H: int = 2, D: int = 5, **options: Any) -> dict[str, Any]:
    """Inputs of slstm_step and lstm_step."""
    inputs = make(B, 1, H, D, **{"dtype": torch.float64, "state": True, **options})
    x, state = inputs["x"].detach().squeeze(1), inputs.pop("initial_state", None)
    return {**inputs, "x": x.requires_grad_(options.get("requires_grad", False)), "state": state}


def copied(state: MLSTMState) -> MLSTMState:
    return MLSTMState(*(s.clone() for s in state))


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@variants
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("S", [None, 0, 1, 2, 7, 16])
def test_mlstm_step(backend: str, device: str, S: int | None, requires_grad: bool, variant: dict[str, Any]) -> None:
    inputs = draw(S=S, requires_grad=requires_grad, device=device)
    before = copied(inputs["state"])
    check(mlstm_step, inputs, backend, **variant)
    assert equal(inputs["state"], before)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("B", "Dqk", "Dv"), [(1, 16, 32), (3, 33, 65), (0, 4, 4)])
def test_mlstm_step_dtypes(
    backend: str, device: str, B: int, Dqk: int, Dv: int, dtype: torch.dtype, requires_grad: bool
) -> None:
    for S in (None, 5):
        inputs = draw(B, 3, S, Dqk, Dv, dtype=dtype, requires_grad=requires_grad, device=device)
        actual, _ = check(mlstm_step, inputs, backend)
        assert actual["h"].dtype == dtype and actual["state.C"].dtype == torch.float32


@variants
@pytest.mark.parametrize("requires_grad", [False, True])
def test_mlstm_step_from_the_empty_state(
    backend: str, device: str, requires_grad: bool, variant: dict[str, Any]
) -> None:
    inputs = draw(state=False, requires_grad=requires_grad, device=device)
    h, state = mlstm_step(**inputs, backend=backend, **variant)
    tokens = {name: x.unsqueeze(2) for name, x in inputs.items() if x is not None}
    expected, expected_state = mlstm(**tokens, return_state=True, backend="reference", **variant)
    assert_close_relative(h, expected[:, :, 0], 1e-12)
    for a, b in zip(state, expected_state, strict=True):
        assert_close_relative(a, b, 1e-12)


@variants
@pytest.mark.parametrize("S", [None, 3])
def test_inplace_overwrites_the_state(backend: str, device: str, S: int | None, variant: dict[str, Any]) -> None:
    inputs = draw(S=S, device=device)
    expected, expected_state = mlstm_step(**inputs, backend=backend, **variant)
    addresses = [s.data_ptr() for s in inputs["state"]]
    h, state = mlstm_step(**inputs, inplace=True, backend=backend, **variant)
    assert torch.equal(h, expected) and equal(state, expected_state)
    assert [s.data_ptr() for s in state] == addresses == [s.data_ptr() for s in inputs["state"]]


@pytest.mark.parametrize(("S", "slots"), [(None, None), (3, None), (16, [3, 1])])
def test_inplace_with_a_bfloat16_C(backend: str, device: str, S: int | None, slots: list[int] | None) -> None:
    for Dqk, Dv in ((8, 16), (5, 7), (300, 20)):
        inputs = draw(S=S, Dqk=Dqk, Dv=Dv, dtype=torch.float32, state_rows=4 if slots else None, device=device)
        state = inputs["state"]._replace(C=inputs["state"].C.bfloat16())
        rows = None if slots is None else torch.tensor(slots, dtype=torch.int32, device=device)
        wide = MLSTMState(state.C.float(), *copied(state)[1:])
        expected, after = mlstm_step(**{**inputs, "state": wide}, slots=rows, backend="reference")
        h, same = mlstm_step(**{**inputs, "state": state}, slots=rows, inplace=True, backend=backend)
        assert same.C is state.C and state.C.dtype == torch.bfloat16
        assert_close_relative(h, expected, 1e-5)
        assert_close_relative(state.C.float(), after.C, 3e-3)  # half a unit in the last place is 2^-9
        assert_close_relative(state.n, after.n, 1e-6)
        if slots:
            assert torch.equal(state.C[[0, 2]].float(), wide.C[[0, 2]])


def test_inplace_on_strided_states(backend: str, device: str) -> None:
    inputs = draw(device=device)
    expected, expected_state = mlstm_step(**inputs, backend=backend)
    pools = [torch.full((4, *s.shape), -7.0, dtype=s.dtype, device=device).transpose(0, 1) for s in inputs["state"]]
    for pool, s in zip(pools, inputs["state"], strict=True):
        pool[:, 2] = s
    state = MLSTMState(*(pool[:, 2] for pool in pools))
    h, after = mlstm_step(**{**inputs, "state": state}, inplace=True, backend=backend)
    assert torch.equal(h, expected) and equal(after, expected_state)
    assert all((pool[:, [0, 1, 3]] == -7).all() for pool in pools)


@variants
@pytest.mark.parametrize("S", [None, 4])
@pytest.mark.parametrize("slots", [[4, 1], [0, 5], [3, 2]])
def test_slots(backend: str, device: str, slots: list[int], S: int | None, variant: dict[str, Any]) -> None:
    inputs = draw(S=S, state_rows=6, device=device)
    rows = torch.tensor(slots, dtype=torch.int32, device=device)
    before = copied(inputs["state"])
    h, state = mlstm_step(**inputs, slots=rows, backend=backend, **variant)
    picked = MLSTMState(*(s[slots] for s in before))
    expected, expected_state = mlstm_step(**{**inputs, "state": picked}, backend=backend, **variant)
    assert torch.equal(h, expected) and equal(tuple(s[slots] for s in state), expected_state)
    others = [row for row in range(6) if row not in slots]
    assert all(torch.equal(new[others], old[others]) for new, old in zip(state, before, strict=True))
    assert equal(inputs["state"], before)

    h, after = mlstm_step(**inputs, slots=rows, inplace=True, backend=backend, **variant)
    assert torch.equal(h, expected) and equal(inputs["state"], state)
    assert all(a is b for a, b in zip(after, inputs["state"], strict=True))


@pytest.mark.parametrize("S", [None, 4])
def test_slots_with_gradients(backend: str, device: str, S: int | None) -> None:
    inputs = draw(S=S, state_rows=5, requires_grad=True, device=device)
    check(mlstm_step, inputs, backend, slots=torch.tensor([3, 0], dtype=torch.int32, device=device))


def test_slots_of_a_state_in_another_dtype(backend: str, device: str) -> None:
    inputs = draw(dtype=torch.float32, state_rows=3, state_dtype=torch.bfloat16, device=device)
    slots = torch.tensor([2, 0], dtype=torch.int32, device=device)
    _, state = mlstm_step(**inputs, slots=slots, backend=backend)
    assert all(s.dtype == torch.float32 for s in state)
    assert torch.equal(state.C[1], inputs["state"].C[1].float())


@pytest.mark.parametrize("layout", ["last dim strided", "expanded", "heads last"])
def test_mlstm_step_with_any_strides(backend: str, device: str, layout: str) -> None:
    def strided(x: Tensor) -> Tensor:
        if layout == "last dim strided":
            return torch.stack([x, x], dim=-1)[..., 0]
        if layout == "heads last":
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        return x[:1].expand(x.shape)

    for S in (None, 3):
        inputs = draw(S=S, device=device)
        state = MLSTMState(*map(strided, inputs.pop("state")))
        check(mlstm_step, {**{name: strided(x) for name, x in inputs.items()}, "state": state}, backend)
    before = copied(state)
    slots = torch.tensor([1, 7, 0], dtype=torch.int32, device=device)[::2]
    _, after = mlstm_step(**inputs, state=state, slots=slots, backend=backend)
    assert equal(state, before) and not torch.equal(after.C, before.C)


@variants
@pytest.mark.parametrize("gate_range", [50.0, float("inf")])
def test_mlstm_step_with_extreme_gates(backend: str, device: str, gate_range: float, variant: dict[str, Any]) -> None:
    for sign_i, sign_f in ((-1, 1), (-1, -1), (1, -1), (1, 1)):
        inputs = draw(S=3, device=device)
        if gate_range == float("inf"):
            sign_i, sign_f = min(sign_i, 0), min(sign_f, 0)
        for name, sign in (("i", sign_i), ("f", sign_f)):
            if sign:
                inputs[name] = inputs[name] + sign * gate_range
        for requires_grad in (False, True):
            inputs["q"].requires_grad_(requires_grad)
            # a large eps: where one token outweighs all others, dq is proportional to eps, and otherwise all rounding
            actual, _ = check(mlstm_step, inputs, backend, **{"eps": 0.5, **variant})
            assert all(x.isfinite().all() for x in actual.values())


@variants
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_are_the_sequence(backend: str, device: str, dtype: torch.dtype, variant: dict[str, Any]) -> None:
    inputs = mlstm_inputs(2, 2, 20, 8, 6, dtype=dtype, state=True, device=device)
    expected, expected_state = mlstm(**inputs, return_state=True, backend=backend, **variant)
    state = inputs.pop("initial_state")
    outputs = []
    for tokens in (slice(0, 1), slice(1, 9), slice(9, 20)):
        part = {name: x[:, :, tokens] for name, x in inputs.items()}
        h, state = mlstm_step(**part, state=state, backend=backend, **variant)
        outputs.append(h)
    tolerance = tolerance_of("mlstm", dtype, backend).h
    assert_close_relative(torch.cat(outputs, 2), expected, tolerance)
    for a, b in zip(state, expected_state, strict=True):
        assert_close_relative(a, b, min(tolerance, 1e-5) if backend == "cpu" else tolerance)


@cells
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("B", "H", "D"), [(1, 1, 1), (3, 2, 5), (2, 1, 33), (17, 2, 16), (0, 1, 2)])
def test_recurrent_step(
    backend: str, device: str, B: int, H: int, D: int, dtype: torch.dtype, requires_grad: bool,
    sequence: Any, step: Any, make: Any, options: Any,
) -> None:  # fmt: skip
    if D == 1 and requires_grad and dtype.itemsize == 2:
        B, H = 17, 65  # one gradient may be a small difference of numbers that are kept in 16 bits, not all of many
    inputs = draw_token(make, B, H, D, dtype=dtype, requires_grad=requires_grad, device=device)
    actual, _ = check(step, inputs, backend, **options)
    assert actual["h"].dtype == dtype
    assert torch.equal(actual["state.h"], actual["h"].to(actual["state.h"].dtype))


@cells
@pytest.mark.parametrize("requires_grad", [False, True])
def test_recurrent_step_from_the_empty_state(
    backend: str, device: str, requires_grad: bool, sequence: Any, step: Any, make: Any, options: Any
) -> None:
    inputs = draw_token(make, state=False, requires_grad=requires_grad, device=device)
    inputs["b"] = None
    h, state = step(**inputs, backend=backend, **options)
    expected, expected_state = sequence(
        inputs["x"].unsqueeze(1), inputs["R"], return_state=True, backend="reference", **options
    )
    assert_close_relative(h, expected[:, 0], 1e-12)
    for a, b in zip(state, expected_state, strict=True):
        assert_close_relative(a, b, 1e-12)


@cells
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_recurrent_steps_are_the_sequence(
    backend: str, device: str, dtype: torch.dtype, sequence: Any, step: Any, make: Any, options: Any
) -> None:
    inputs = make(3, 9, 2, 8, dtype=dtype, state=True, device=device)
    expected, expected_state = sequence(**inputs, return_state=True, backend=backend, **options)
    state = inputs["initial_state"]
    outputs = []
    for t in range(9):
        h, state = step(inputs["x"][:, t], inputs["R"], inputs["b"], state, backend=backend, **options)
        outputs.append(h)
    tolerance = TOLERANCE[dtype].h
    assert_close_relative(torch.stack(outputs, 1), expected, tolerance)
    for a, b in zip(state, expected_state, strict=True):
        assert_close_relative(a, b, tolerance)


@cells
def test_recurrent_step_with_any_strides(
    backend: str, device: str, sequence: Any, step: Any, make: Any, options: Any
) -> None:
    inputs = draw_token(make, device=device)
    state = inputs.pop("state")
    changed: dict[str, Any] = {name: torch.stack([x, x], dim=-1)[..., 0] for name, x in inputs.items()}
    changed["state"] = type(state)(*(s.transpose(0, 2).contiguous().transpose(0, 2) for s in state))
    check(step, changed, backend, **options)


def laid_out(R: Tensor, layout: str) -> Tensor:
    D = R.shape[-1]
    if layout == "columns":
        return R.mT.contiguous().mT
    if layout == "padded rows":  # aligned, whatever D is
        return torch.nn.functional.pad(R, (0, -D % 8))[..., :D]
    if layout == "padded columns":
        return torch.nn.functional.pad(R.mT, (0, -D % 8))[..., :D].mT
    if layout == "misaligned":
        return torch.cat([R.new_zeros(1), R.flatten()])[1:].view(R.shape)
    return R.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("layout", ["columns", "padded rows", "padded columns", "misaligned", "heads first"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "H", "D"), [(1, 2, 64), (1, 2, 130), (9, 1, 20), (17, 2, 12), (2, 1, 264)])
def test_recurrent_step_with_weights_of_any_layout(
    backend: str, device: str, B: int, H: int, D: int, dtype: torch.dtype, layout: str
) -> None:
    inputs = draw_token(slstm_inputs, B, H, D, dtype=dtype, device=device)
    check(slstm_step, {**inputs, "R": laid_out(inputs["R"], layout)}, backend)


@cells
@pytest.mark.parametrize("bias_dtype", [None, torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_recurrent_step_with_any_bias_and_state_dtype(
    backend: str, device: str, bias_dtype: torch.dtype | None,
    sequence: Any, step: Any, make: Any, options: Any,
) -> None:  # fmt: skip
    for dtype, state_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float64)):
        inputs = draw_token(make, dtype=dtype, bias_dtype=bias_dtype, state_dtype=state_dtype, device=device)
        if bias_dtype is None:
            inputs["b"] = None
        check(step, inputs, backend, **options)


def test_no_gradient_means_no_graph(backend: str, device: str) -> None:
    inputs = draw(requires_grad=True, device=device)
    with torch.no_grad():
        h, state = mlstm_step(**inputs, backend=backend)
        again, same = mlstm_step(**inputs, inplace=True, backend=backend)
    assert h.grad_fn is None and torch.equal(again, h) and equal(state, same)
    assert all(x.is_leaf for x in leaves(inputs).values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(
        st.integers(0, 3), st.integers(1, 3), st.none() | st.integers(1, 16), st.integers(1, 40), st.integers(1, 40)
    ),
    variant=st.sampled_from(list(VARIANTS.values())),
    requires_grad=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: tuple[Any, ...], variant: dict[str, Any], requires_grad: bool, seed: int) -> None:
    B, H, S, Dqk, Dv = shape
    check(mlstm_step, draw(B, H, S, Dqk, Dv, requires_grad=requires_grad, seed=seed), "cpu", **variant)
