"""The recurrences as ONNX graphs hold them, computed by torch: the same numbers as the reference in float64.

What the exporter makes of them is in tests/nn/test_onnx.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import LSTMState, MLSTMState, SLSTMState, _onnx, reference
from xlstm_cuda._onnx._gates import log_sigmoid
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")
INF = float("inf")


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def extreme(gates: Tensor) -> Tensor:
    """Some gates that are open or shut altogether, or nearly."""
    kind = torch.rand(gates.shape)
    for low, value in ((0.05, -INF), (0.1, INF), (0.2, -200.0), (0.3, 12.0)):
        gates = torch.where((kind > low - 0.05) & (kind < low), value, gates)
    return gates


def assert_same(found: Any, expected: Any) -> None:
    (h, state), (expected_h, expected_state) = found, expected
    assert_close_relative(h, expected_h, 1e-10, "h")
    for name, a, b in zip(state._fields, state, expected_state, strict=True):
        assert_close_relative(a, b, 1e-10, name)


OPTIONS: dict[str, dict[str, Any]] = {
    "exp": {},
    "eps": {"eps": 0.1, "scale": 2.0},
    "sigmoid": {"input_gate": "sigmoid"},
    "no norm": {"input_gate": "sigmoid", "normalize": False, "scale": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("reset", [False, True], ids=["", "reset"])
def test_a_chunk_of_mlstm(options: dict[str, Any], reset: bool) -> None:
    B, H, S, D, E = 3, 2, 21, 5, 3
    tokens = (draw(B, H, S, D), draw(B, H, S, D), draw(B, H, S, E), draw(B, H, S, scale=4), draw(B, H, S, scale=3))
    i, f = tokens[3].masked_fill(torch.rand(B, H, S) < 0.1, -INF), extreme(tokens[4])
    state = MLSTMState(draw(B, H, D, E), draw(B, H, D), draw(B, H, scale=5))
    marks = torch.rand(B, S) < 0.15 if reset else None
    given: dict[str, Any] = {"initial_state": state, "return_state": True, "reset": marks, **options}
    assert_same(_onnx.mlstm(*tokens[:3], i, f, **given), reference.mlstm(*tokens[:3], i, f, **given))
    given["initial_state"] = state._replace(m=torch.full_like(state.m, -INF))
    assert_same(_onnx.mlstm(*tokens[:3], i, f, **given), reference.mlstm(*tokens[:3], i, f, **given))


@pytest.mark.parametrize("cell", ["lstm", "slstm", "slstm exp"])
@pytest.mark.parametrize("options", ["bare", "lengths", "reset", "all"])
def test_recurrent_scans(cell: str, options: str) -> None:
    B, S, H, D = 3, 7, 3, 4
    name, _, forget_gate = cell.partition(" ")
    given: dict[str, Any] = {"lengths": None, "reset": None, "reversed_heads": 0, "return_state": True}
    given |= {"forget_gate": forget_gate} if forget_gate else {}
    x, bias = draw(B, S, 4, H, D, scale=2), None
    if name == "slstm" and not forget_gate:
        x[:, :, 1] = extreme(x[:, :, 1])
    if options != "bare":
        full = [draw(B, H, D) for _ in range(4)]
        full[2] = torch.rand(B, H, D, dtype=torch.float64).round() * (1 + torch.rand(B, H, D))  # some are empty
        bias, given["initial_state"] = draw(4, H, D), LSTMState(*full[:2]) if name == "lstm" else SLSTMState(*full)
    if options in ("lengths", "all"):
        given["lengths"] = torch.tensor([4, 0, S])
        x[0, 5] = torch.nan  # padding
    if options in ("reset", "all"):
        given["reset"] = torch.rand(B, S) < 0.3
    if options == "all":
        given["reversed_heads"] = 2
    R = draw(4, H, D, D, scale=0.5)
    assert_same(getattr(_onnx, name)(x, R, bias, **given), getattr(reference, name)(x, R, bias, **given))


@pytest.mark.parametrize("cell", ["lstm_step", "slstm_step"])
def test_recurrent_steps(cell: str) -> None:
    B, H, D = 3, 2, 4
    kind = LSTMState if cell == "lstm_step" else SLSTMState
    state = kind(*(draw(B, H, D).abs() for _ in kind._fields))
    given = draw(B, 4, H, D), draw(4, H, D, D), draw(4, H, D), state
    assert_same(getattr(_onnx, cell)(*given), getattr(reference, cell)(*given))


@pytest.mark.parametrize("sizes", [(6, 5, 4), (32, 4, 4), (4, 3, 24), (1, 70, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_headwise(sizes: tuple[int, int, int], bias: bool) -> None:
    count, outputs, inputs = sizes
    given = draw(2, 3, count * inputs), draw(*sizes), draw(count * outputs) if bias else None
    assert_close_relative(_onnx.headwise_linear(*given), reference.headwise_linear(*given), 1e-12, "y")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_sigmoid_keeps_its_digits(dtype: torch.dtype) -> None:
    x = torch.linspace(-80, 12, 4001, dtype=torch.float64).to(dtype)
    error = (log_sigmoid(x).double() / torch.nn.functional.logsigmoid(x.double()) - 1).abs()
    bound = 8 * torch.finfo(dtype).eps if dtype == torch.float32 else 1e-9
    assert error.max() < bound
    ends = log_sigmoid(torch.tensor([-INF, INF], dtype=dtype)).tolist()
    assert ends == [-INF, 0]
