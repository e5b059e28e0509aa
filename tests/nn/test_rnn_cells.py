"""LSTMCell, sLSTMCell and mLSTMCell: against torch.nn.LSTMCell, and token by token against the layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.rounding import assert_near_float64
from xlstm_cuda import LSTMState, SLSTMState
from xlstm_cuda import nn as xnn
from xlstm_cuda.nn import MLSTMCellState
from xlstm_cuda.testing import assert_close_relative

INPUTS, HIDDEN, B, S = 5, 6, 3, 4
CELLS = {xnn.LSTMCell: xnn.LSTM, xnn.sLSTMCell: xnn.sLSTM, xnn.mLSTMCell: xnn.mLSTM}
cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)


def make(cls: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(0)
    return cls(INPUTS, HIDDEN, dtype=dtype, **options)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def run(cell: Any, x: Tensor, state: Any = None) -> list[Tensor]:
    """h of all tokens of x (S, ..., F), and the last state."""
    outputs = []
    for token in x:
        state = cell(token, state)
        outputs.append(state[0])
    return [torch.stack(outputs), *state]


def same(actual: list[Tensor], expected: list[Tensor], ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Values, and gradients of a random linear loss of all values."""
    weights = [torch.randn_like(e) for e in expected]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close_relative(a, e, 1e-10)
    gradients = torch.autograd.grad(actual, ours, weights), torch.autograd.grad(expected, theirs, weights)
    for a, e in zip(*gradients, strict=True):
        assert_close_relative(a, e, 1e-10)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batch", [(B,), ()])
@pytest.mark.parametrize("bias", [False, True])
def test_lstm_cell_is_torchs(bias: bool, batch: tuple[int, ...], given: bool) -> None:
    """Initial values, results, every gradient; state_dicts in both directions."""
    theirs, ours = make(nn.LSTMCell, bias=bias), make(xnn.LSTMCell, bias=bias)
    x = draw(S, *batch, INPUTS).requires_grad_()
    hx = tuple(draw(2, *batch, HIDDEN).requires_grad_().unbind()) if given else None
    sources = [x, *(hx or ())]
    actual, expected = run(ours, x, hx), run(theirs, x, hx)
    same(actual, expected, [*sources, *ours.parameters()], [*sources, *theirs.parameters()])
    assert isinstance(ours(x[0]), LSTMState)
    loaded = xnn.LSTMCell(INPUTS, HIDDEN, bias, dtype=torch.float64)
    loaded.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(loaded.state_dict())
    assert torch.equal(loaded(x[0], hx)[0], ours(x[0], hx)[0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@cells
def test_token_by_token(cell: Any, heads: int, bias: bool) -> None:
    """The layer of the same weights, and its initial values."""
    layer, ours = make(CELLS[cell], num_heads=heads, bias=bias), make(cell, num_heads=heads, bias=bias)
    for (name, p), (of_layer, q) in zip(ours.named_parameters(), layer.named_parameters(), strict=True):
        assert f"{name}_l0" == of_layer and torch.equal(p, q)
    x = draw(S, B, INPUTS).requires_grad_()
    y, state = layer(x)
    parts = [s[0] for s in state]
    if cell is xnn.mLSTMCell:
        parts = [y[-1], *parts]
    same(run(ours, x), [y, *parts], [x, *ours.parameters()], [x, *layer.parameters()])


@cells
def test_without_gradients_and_a_batch(cell: Any) -> None:
    ours, x = make(cell, num_heads=2), draw(S, INPUTS)
    with torch.no_grad():
        outputs, *state = run(ours, x)
    expected, *of_batch = run(ours, x[:, None])
    assert_close_relative(outputs, expected[:, 0], 1e-12)
    for a, e in zip(state, of_batch, strict=True):
        assert a.dtype == e.dtype
        assert_close_relative(a, e[0], 1e-12)


@cells
def test_dtypes(cell: Any) -> None:
    """The output has the dtype of the weights, all else float32; errors are those of rounding."""
    ours, x = make(cell, torch.bfloat16, num_heads=2), draw(S, B, INPUTS, dtype=torch.bfloat16)

    def outputs(model: Any) -> dict[str, Tensor]:
        return {"h": run(model, x.to(model.weight_ih.dtype))[0]}

    h, *state = run(ours, x)
    assert [s.dtype for s in (h, *state)] == [torch.bfloat16] * 2 + [torch.float32] * (len(state) - 1)
    assert_near_float64({"h": h.double()}, ours, outputs, torch.bfloat16)


@cells
def test_inside_torch(cell: Any) -> None:
    ours, x = make(cell, torch.float32, num_heads=2), draw(2, B, INPUTS, dtype=torch.float32)
    expected = ours(x[1], ours(x[0]))
    call = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, call(x[1], call(x[0])), expected))
    assert all(map(torch.equal, copy.deepcopy(ours)(x[1], ours(x[0])), expected))

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = ours

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0]

    traced = torch.fx.symbolic_trace(Around())
    assert torch.equal(traced(x[0]), ours(x[0])[0])
    program = torch.export.export(Around().eval(), (x[0],))
    assert_close_relative(program.module()(x[0]), ours(x[0])[0], 1e-5)


@cells
def test_states_and_repr(cell: Any) -> None:
    kinds = {xnn.LSTMCell: LSTMState, xnn.sLSTMCell: SLSTMState, xnn.mLSTMCell: MLSTMCellState}
    ours = make(cell, num_heads=2)
    state = ours(draw(B, INPUTS))
    assert type(state) is kinds[cell]
    zeros = type(state)(*map(torch.zeros_like, state))
    assert all(map(torch.equal, ours(draw(B, INPUTS), zeros), state)), "a state of zeros is the empty one"
    assert repr(ours) == f"{cell.__name__}(5, 6, num_heads=2)"
    ours.reset_parameters()


@cells
def test_states_are_saved(cell: Any, tmp_path: Path) -> None:
    """By torch.save, read with weights_only, and in a program of torch.export that returns them."""
    ours, x = make(cell, num_heads=2), draw(B, INPUTS)
    state = ours(x)
    torch.save(state, tmp_path / "state")
    found = torch.load(tmp_path / "state", weights_only=True)
    assert type(found) is type(state) and all(map(torch.equal, found, state))
    torch.export.save(torch.export.export(ours, (x, state)), tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2").module()(x, state)
    assert type(again) is type(state)
    for a, e in zip(again, ours(x, state), strict=True):
        assert_close_relative(a, e, 1e-10)


@pytest.mark.parametrize(
    ("input", "hx", "error", "message"),
    [
        ([1.0], None, TypeError, "input must be a Tensor, got list"),
        (draw(2, B, INPUTS), None, ValueError, "input must be 1-D, or 2-D for a batch, got 3-D"),
        (draw(B, 4), None, ValueError, r"input must have input_size=5 features, got shape \(3, 4\)"),
        (draw(B, INPUTS).float(), None, ValueError, "input must have the dtype of the weights"),
        (draw(B, INPUTS), draw(B, HIDDEN), TypeError, r"hx must be a tuple \(h, c\) of tensors, got Tensor"),
        (draw(B, INPUTS), (draw(B, HIDDEN),), ValueError, r"hx must be a tuple \(h, c\), got 1 tensors"),
        (draw(B, INPUTS), (draw(B, HIDDEN), draw(HIDDEN)), ValueError, r"c of hx must have shape \(3, 6\), got \(6,\)"),
    ],
)
def test_wrong_inputs(input: Any, hx: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^LSTMCell: {message}"):
        make(xnn.LSTMCell)(input, hx)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="^sLSTMCell: hidden_size must be divisible by num_heads"):
        xnn.sLSTMCell(5, 6, num_heads=4)
    with pytest.raises(TypeError, match="^mLSTMCell: bias must be a bool, got int"):
        xnn.mLSTMCell(5, 6, 1)  # type: ignore[arg-type]
