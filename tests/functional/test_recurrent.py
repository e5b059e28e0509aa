"""slstm and lstm against the float64 reference: every option, length, layout and dtype; outputs, states, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.against_reference import check, run
from xlstm_cuda._states import SLSTMState
from xlstm_cuda.functional import lstm, slstm
from xlstm_cuda.testing import assert_close_relative, leaves, lstm_inputs, slstm_inputs

INF = float("inf")


class Cell(NamedTuple):
    function: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    options: dict[str, Any]

    def draw(self, B: int = 2, S: int = 12, H: int = 2, D: int = 5, **options: Any) -> dict[str, Any]:
        return self.inputs(B, S, H, D, **{"dtype": torch.float64, "state": True, "requires_grad": True, **options})

    def check(
        self, inputs: dict[str, Any], backend: str, **options: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # m takes one of two branches, and where these nearly tie rounding decides where its gradient goes, and through
        # m that of c and n. The output h does not depend on m.
        if self.function is slstm and inputs["x"].dtype.itemsize == 2:
            options.setdefault("outputs", ["h", "state.h"])
        return check(self.function, inputs, backend, **self.options, **options)


CELLS = {
    "slstm": Cell(slstm, slstm_inputs, {}),
    "slstm_exp": Cell(slstm, slstm_inputs, {"forget_gate": "exp"}),
    "lstm": Cell(lstm, lstm_inputs, {}),
}
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
slstms = pytest.mark.parametrize("cell", [CELLS["slstm"], CELLS["slstm_exp"]], ids=["slstm", "slstm_exp"])


def replaced(inputs: dict[str, Any], **values: Tensor) -> dict[str, Any]:
    """Inputs with some tensors replaced by new leaves."""
    return {**inputs, **{name: x.detach().clone().requires_grad_() for name, x in values.items()}}


@cells
@pytest.mark.parametrize("S", [0, 1, 2, 15, 16, 17, 63, 64, 65])
def test_every_length(backend: str, device: str, S: int, cell: Cell) -> None:
    cell.check(cell.draw(S=S, D=3, seed=S, device=device), backend)


@cells
def test_a_thousand_tokens(backend: str, device: str, cell: Cell) -> None:
    cell.check(cell.draw(B=1, S=1000, H=1, D=4, device=device), backend)


@cells
@pytest.mark.parametrize(("B", "H", "D"), [(1, 1, 1), (1, 4, 16), (3, 1, 33), (5, 2, 7), (2, 3, 64), (17, 1, 8)])
def test_sizes(backend: str, device: str, B: int, H: int, D: int, cell: Cell) -> None:
    cell.check(cell.draw(B, 6, H, D, device=device), backend)


@cells
@pytest.mark.parametrize(("B", "S", "D"), [(1, 1, 16), (4, 33, 24), (1, 200, 16)])
def test_float32(backend: str, device: str, B: int, S: int, D: int, cell: Cell) -> None:
    cell.check(cell.draw(B=B, S=S, D=D, dtype=torch.float32, device=device), backend)


@cells
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend: str, device: str, dtype: torch.dtype, cell: Cell) -> None:
    cell.check(cell.draw(B=3, S=24, D=16, dtype=dtype, device=device), backend)


@cells
def test_no_initial_state(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(state=False, device=device)
    actual, _ = cell.check(inputs, backend)
    assert torch.equal(cell.function(**inputs, backend=backend, **cell.options), actual["h"])
    inputs.pop("b")
    cell.check(inputs, backend)


@cells
def test_loss_on_one_output(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(device=device)
    for name in run(cell.function, inputs, backend=backend, **cell.options):
        cell.check(inputs, backend, outputs=[name])


@slstms
def test_empty_elements_of_the_state(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(device=device)
    h, c, n, m = (x.detach().clone() for x in inputs["initial_state"])
    n[0, 0, :3] = n[1, 1] = 0  # c and m there must not count
    inputs["initial_state"] = SLSTMState(*(x.requires_grad_() for x in (h, c, n, m)))
    _, grads = cell.check(inputs, backend)
    for name in ("c0", "n0", "m0"):
        assert not grads[name][n == 0].any()


@cells
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("state", [True, False])
def test_resets(backend: str, device: str, density: float, state: bool, cell: Cell) -> None:
    inputs = cell.draw(state=state, device=device)
    reset = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)).lt(density).to(device)
    cell.check(inputs, backend, reset=reset)


@cells
def test_reset_is_the_start_of_another_sequence(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(requires_grad=False, device=device)
    reset = torch.zeros(2, 12, dtype=torch.bool, device=device)
    reset[:, 5] = True
    whole = run(cell.function, inputs, backend=backend, reset=reset, **cell.options)
    tail = {**inputs, "x": inputs["x"][:, 5:], "initial_state": None}
    alone = run(cell.function, tail, backend=backend, **cell.options)
    assert_close_relative(whole["h"][:, 5:], alone["h"], 1e-13)
    assert_close_relative(whole["state.c"], alone["state.c"], 1e-13)


@cells
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [[12, 12], [0, 12], [5, 0], [1, 11], [0, 0]])
@pytest.mark.parametrize("resets", [False, True])
def test_lengths(backend: str, device: str, lengths: list[int], dtype: torch.dtype, resets: bool, cell: Cell) -> None:
    inputs = cell.draw(device=device)
    reset = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)).lt(0.2).to(device) if resets else None
    given_lengths = torch.tensor(lengths, dtype=dtype, device=device)
    actual, grads = cell.check(inputs, backend, lengths=given_lengths, reset=reset)
    for row, length in enumerate(lengths):
        assert not actual["h"][row, length:].any()
        assert not grads["x"][row, length:].any()
        if length == 0:
            for name, start in inputs["initial_state"]._asdict().items():
                assert torch.equal(actual[f"state.{name}"][row], start[row])


@cells
@pytest.mark.parametrize("reversed_heads", [1, 2, 3])
@pytest.mark.parametrize("case", ["plain", "padded", "no state"])
def test_reversed_heads(backend: str, device: str, case: str, reversed_heads: int, cell: Cell) -> None:
    inputs = cell.draw(B=3, S=7, H=3, state=case != "no state", device=device)
    rows: dict[str, Any] = {"reversed_heads": reversed_heads}
    if case == "padded":
        rows["lengths"] = torch.tensor([7, 4, 0], device=device)
        rows["reset"] = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)).lt(0.3).to(device)
    cell.check(inputs, backend, **rows)


@cells
def test_a_reversed_head_is_a_head_on_reversed_tokens(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(S=6, requires_grad=False, device=device)
    there = run(cell.function, inputs, backend=backend, reversed_heads=2, **cell.options)
    turned = run(cell.function, {**inputs, "x": inputs["x"].flip(1)}, backend=backend, **cell.options)
    assert torch.equal(there["h"], turned["h"].flip(1))
    assert torch.equal(there["state.c"], turned["state.c"])


@cells
def test_padding_may_hold_anything(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(device=device)
    x = inputs["x"].detach().clone()
    x[0, 4:], x[1, 9:] = float("nan"), INF
    lengths = torch.tensor([4, 9], device=device)
    actual, grads = cell.check(replaced(inputs, x=x), backend, lengths=lengths)
    assert all(t.isfinite().all() for t in (*actual.values(), *grads.values()))


@cells
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gate_range", [20, 50])
def test_extreme_gates(backend: str, device: str, dtype: torch.dtype, gate_range: float, cell: Cell) -> None:
    inputs = cell.draw(S=20, dtype=dtype, device=device)
    signs = torch.randint(-1, 2, inputs["x"].shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    actual, grads = cell.check(replaced(inputs, x=inputs["x"] + gate_range * signs), backend)
    assert all(x.isfinite().all() for x in (*actual.values(), *grads.values()))


NOTHING = {
    "nothing written": (slice(None), slice(0)),
    "some written": (slice(1, None, 2), slice(0)),
    "all forgotten": (slice(0), slice(None)),
    "none written, all forgotten": (slice(None), slice(None)),
    "the first tokens do neither": (slice(0, 5), slice(0, 5)),
    "the last tokens do neither": (slice(5, None), slice(5, None)),
}


@slstms
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("case", NOTHING)
def test_gates_at_minus_infinity(backend: str, device: str, case: str, state: bool, cell: Cell) -> None:
    inputs = cell.draw(state=state, device=device)
    x = inputs["x"].detach().clone()
    silent, forgotten = NOTHING[case]
    x[:, silent, 0], x[:, forgotten, 1] = -INF, -INF
    actual, grads = cell.check(replaced(inputs, x=x), backend)
    assert all(t.isfinite().all() for t in (*actual.values(), *grads.values()))


@cells
@pytest.mark.parametrize(("B", "H", "S", "D"), [(0, 2, 5, 3), (0, 1, 0, 2), (1, 1, 1, 1), (9, 2, 1, 4), (3, 1, 0, 2)])
def test_small_batches(backend: str, device: str, B: int, H: int, S: int, D: int, cell: Cell) -> None:
    cell.check(cell.draw(B, S, H, D, device=device), backend)
    cell.check(cell.draw(B, S, H, D, state=False, device=device), backend)


@cells
def test_no_token_passes_the_state_through(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(S=0, device=device)
    h, final = cell.function(**inputs, return_state=True, backend=backend, **cell.options)
    assert h.shape == (2, 0, 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(final, inputs["initial_state"], strict=True))
    final.c.sum().backward()
    assert torch.equal(inputs["initial_state"].c.grad, torch.ones_like(final.c))


@cells
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_two_segments_are_one_sequence(backend: str, device: str, dtype: torch.dtype, cell: Cell) -> None:
    inputs = cell.draw(dtype=dtype, requires_grad=False, device=device)
    whole = run(cell.function, inputs, backend=backend, **cell.options)
    first = {**inputs, "x": inputs["x"][:, :5]}
    options = {"return_state": True, "backend": backend, **cell.options}
    h1, middle = cell.function(**first, **options)
    h2, final = cell.function(**{**inputs, "x": inputs["x"][:, 5:], "initial_state": middle}, **options)
    # sLSTM kernels may keep log n + m instead of n and m: the cut rounds once more
    tolerance = 1e-13 if dtype == torch.float64 else 2e-3
    assert_close_relative(torch.cat([h1, h2], 1), whole["h"], tolerance)
    assert_close_relative(final.c, whole["state.c"], tolerance)


@cells
def test_state_is_rounded_where_the_recurrence_is(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(dtype=torch.bfloat16, device=device)
    h, final = cell.function(**inputs, return_state=True, backend=backend, **cell.options)
    assert h.dtype == torch.bfloat16 and all(s.dtype == torch.float32 for s in final)
    assert torch.equal(final.h, h[:, -1].float())


def strided(x: Tensor, layout: str) -> Tensor:
    """The values of x in another memory layout."""
    if layout == "last dim strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    if layout == "first dim last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "slice":
        return torch.cat([x, x, x], dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]]
    if layout == "time first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x[:1].expand(x.shape)  # "expanded"


@cells
@pytest.mark.parametrize("layout", ["last dim strided", "first dim last", "slice", "time first", "expanded"])
def test_any_strides(backend: str, device: str, layout: str, cell: Cell) -> None:
    inputs = cell.draw(requires_grad=False, device=device)
    state = inputs.pop("initial_state")
    changed = {name: strided(x, layout) for name, x in inputs.items()}
    changed["initial_state"] = type(state)(*(strided(x, layout) for x in state))
    for x in leaves(changed).values():
        x.requires_grad_()
    cell.check(changed, backend)


@cells
@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_biases_and_states_of_other_dtypes(backend: str, device: str, other: torch.dtype, cell: Cell) -> None:
    inputs = cell.draw(dtype=torch.float32, bias_dtype=other, state_dtype=other, device=device)
    h, final = cell.function(**inputs, return_state=True, backend=backend, **cell.options)
    wide = {**inputs, "b": inputs["b"].float()}
    wide["initial_state"] = type(final)(*(s.float() for s in inputs["initial_state"]))
    same, same_final = cell.function(**wide, return_state=True, backend=backend, **cell.options)
    assert torch.equal(h, same) and all(torch.equal(a, b) for a, b in zip(final, same_final, strict=True))
    (h.sum() + final.c.sum()).backward()
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in leaves(inputs).values())


@cells
def test_only_what_requires_grad_gets_one(backend: str, device: str, cell: Cell) -> None:
    inputs = cell.draw(device=device, requires_grad=False)
    inputs["b"].requires_grad_()
    cell.function(**inputs, backend=backend, **cell.options).sum().backward()
    assert inputs["b"].grad is not None
    assert all(x.grad is None for name, x in leaves(inputs).items() if name != "b")


def test_lstm_is_torch_nn_lstm(backend: str, device: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.LSTM(6, 5, batch_first=True, dtype=torch.float64).to(device)
    tokens = torch.randn(3, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    expected, (h_n, c_n) = module(tokens)
    x = torch.nn.functional.linear(tokens, module.weight_ih_l0, module.bias_ih_l0).view(3, 9, 4, 1, 5)
    R, b = module.weight_hh_l0.view(4, 1, 5, 5), module.bias_hh_l0.view(4, 1, 5)
    h, final = lstm(x, R, b, return_state=True, backend=backend)
    assert_close_relative(h[:, :, 0], expected, 1e-13)
    assert_close_relative(final.h[:, 0], h_n[0], 1e-13)
    assert_close_relative(final.c[:, 0], c_n[0], 1e-13)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(1, 3), st.integers(1, 20)),
    cell=st.sampled_from(list(CELLS.values())),
    state=st.booleans(),
    bias=st.booleans(),
    padded=st.booleans(),
    density=st.sampled_from([None, 0.1, 0.5]),
    turned=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    shape: tuple[int, ...],
    cell: Cell,
    state: bool,
    bias: bool,
    padded: bool,
    density: float | None,
    turned: int,
    seed: int,
) -> None:
    B, S, H, D = shape
    inputs = cell.draw(B, S, H, D, state=state, seed=seed)
    if not bias:
        inputs.pop("b")
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, S + 1, (B,), generator=generator) if padded else None
    reset = None if density is None else torch.rand(B, S, generator=generator) < density
    cell.check(inputs, "cpu", lengths=lengths, reset=reset, reversed_heads=min(turned, H))
