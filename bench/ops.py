"""The benchmarked ops: inputs, float64 reference, and nominal work and traffic by shape.

The tensors of an op are a flat dict by name; states of the step ops are C, n, m (h, c, n, m) beside the inputs. An
LSTM's inputs are u (B, S, H D) and the projection W (4 H D, H D): torch.nn.LSTM cannot do without one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from xlstm_cuda import LSTMState, MLSTMState, SLSTMState, reference, testing

from .glue import GLUE_OPS
from .models import MODEL_OPS
from .op import Op, Outputs, Shape, Tensors

MLSTM_STATE, SLSTM_STATE, LSTM_STATE = MLSTMState._fields, SLSTMState._fields, LSTMState._fields


def project(t: Tensors) -> Tensor:
    """x (B, S, 4, H, D), or (B, 4, H, D) for a step, from u (B, S, H D) or (B, H D)."""
    return linear(t["u"], t["W"]).unflatten(-1, t["b"].shape)


def mlstm_state(t: Tensors) -> MLSTMState:
    return MLSTMState(*(t[name] for name in MLSTM_STATE))


def slstm_state(t: Tensors) -> SLSTMState:
    return SLSTMState(*(t[name] for name in SLSTM_STATE))


def lstm_state(t: Tensors) -> LSTMState:
    return LSTMState(*(t[name] for name in LSTM_STATE))


def _sizes(shape: Shape, **more: int) -> Any:
    return {**shape, **more}  # as keyword arguments


def _draw_mlstm(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    return testing.mlstm_inputs(**_sizes(shape), dtype=dtype, device=device)


def _draw_mlstm_step(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    drawn = testing.mlstm_inputs(**_sizes(shape, S=1), dtype=dtype, device=device, state=True)
    state = drawn.pop("initial_state")
    return {name: x.squeeze(2) for name, x in drawn.items()} | state._asdict()


def _draw_slstm(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    return testing.slstm_inputs(**_sizes(shape), dtype=dtype, device=device)


def _draw_slstm_step(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    drawn = testing.slstm_inputs(**_sizes(shape, S=1), dtype=dtype, device=device, state=True)
    state = drawn.pop("initial_state")
    return {**drawn, "x": drawn["x"].squeeze(1), **state._asdict()}


def _draw_lstm(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    drawn = testing.lstm_inputs(**_sizes(shape), dtype=dtype, device=device)
    B, S, _, H, D = drawn.pop("x").shape
    generator = torch.Generator(device).manual_seed(1)
    u = torch.randn(B, S, H * D, generator=generator, device=device)
    W = torch.randn(4 * H * D, H * D, generator=generator, device=device) * (H * D) ** -0.5
    b = drawn["b"].to(dtype).to(drawn["b"].dtype)  # torch.nn.LSTM keeps it in the dtype of the data
    return {"u": u.to(dtype), "W": W.to(dtype), "R": drawn["R"], "b": b}


def _draw_lstm_step(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    drawn = _draw_lstm({**shape, "S": 1}, dtype, device)
    state = testing.lstm_inputs(**_sizes(shape, S=1), dtype=dtype, device=device, state=True)["initial_state"]
    return {**drawn, "u": drawn["u"].squeeze(1), **state._asdict()}


def _mlstm_oracle(t: Tensors) -> Outputs:
    h = reference.mlstm_chunkwise(**t)
    assert isinstance(h, Tensor)
    return (h,)


def _slstm_oracle(t: Tensors) -> Outputs:
    h = reference.slstm(**t)
    assert isinstance(h, Tensor)
    return (h,)


def _lstm_oracle(t: Tensors) -> Outputs:
    h = reference.lstm(project(t), t["R"], t["b"])
    assert isinstance(h, Tensor)
    return (h,)


def _mlstm_step_oracle(t: Tensors) -> Outputs:
    h, state = reference.mlstm_step(t["q"], t["k"], t["v"], t["i"], t["f"], mlstm_state(t))
    return (h, *state)


def _slstm_step_oracle(t: Tensors) -> Outputs:
    h, state = reference.slstm_step(t["x"], t["R"], t["b"], slstm_state(t))
    return (h, *state[1:])


def _lstm_step_oracle(t: Tensors) -> Outputs:
    h, state = reference.lstm_step(project(t), t["R"], t["b"], lstm_state(t))
    return (h, *state[1:])


def _mlstm_flops(s: Shape) -> int:
    return s["B"] * s["H"] * s["S"] * 4 * s["Dqk"] * (s["Dv"] + 1)


def _mlstm_step_flops(s: Shape) -> int:
    return s["B"] * s["H"] * 5 * s["Dqk"] * (s["Dv"] + 1)


def _mlstm_traffic(s: Shape, T: int, A: int) -> int:
    return s["B"] * s["H"] * s["S"] * (T * 2 * (s["Dqk"] + s["Dv"]) + A * 2)


def _mlstm_step_traffic(s: Shape, T: int, A: int) -> int:
    state = s["Dqk"] * (s["Dv"] + 1) + 1
    return s["B"] * s["H"] * (T * 2 * (s["Dqk"] + s["Dv"]) + A * 2 * (1 + state))


def _slstm_flops(s: Shape) -> int:
    return s["B"] * s.get("S", 1) * 8 * s["H"] * s["D"] ** 2


def _lstm_flops(s: Shape) -> int:
    return s["B"] * s.get("S", 1) * 8 * (s["H"] * s["D"] ** 2 + (s["H"] * s["D"]) ** 2)


def _weights_traffic(s: Shape, T: int, A: int) -> int:
    return 4 * s["H"] * s["D"] * (s["D"] * T + A)


def _slstm_traffic(s: Shape, T: int, A: int) -> int:
    return s["B"] * s["S"] * s["H"] * s["D"] * 5 * T + _weights_traffic(s, T, A)


def _slstm_step_traffic(s: Shape, T: int, A: int) -> int:
    return s["B"] * s["H"] * s["D"] * (5 * T + 7 * A) + _weights_traffic(s, T, A)


def _lstm_traffic(s: Shape, T: int, A: int) -> int:
    width = s["H"] * s["D"]
    return s["B"] * s["S"] * width * 2 * T + 4 * width**2 * T + _weights_traffic(s, T, A)


def _lstm_step_traffic(s: Shape, T: int, A: int) -> int:
    width = s["H"] * s["D"]
    return s["B"] * width * (2 * T + 3 * A) + 4 * width**2 * T + _weights_traffic(s, T, A)


_SEQUENCE, _STEP = ("fwd", "fwdbwd"), ("step",)
_CELL_KEYS, _CELL_STEP_KEYS = ("B", "S", "H", "D"), ("B", "H", "D")

KERNEL_OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(
            *("mlstm", ("B", "H", "S", "Dqk", "Dv"), _SEQUENCE, _draw_mlstm, _mlstm_oracle, ("h",)),
            *(_mlstm_flops, _mlstm_traffic),
        ),
        Op(
            *("mlstm_step", ("B", "H", "Dqk", "Dv"), _STEP, _draw_mlstm_step, _mlstm_step_oracle),
            *(("h", "C", "n", "m"), _mlstm_step_flops, _mlstm_step_traffic),
        ),
        Op("slstm", _CELL_KEYS, _SEQUENCE, _draw_slstm, _slstm_oracle, ("h",), _slstm_flops, _slstm_traffic),
        Op(
            *("slstm_step", _CELL_STEP_KEYS, _STEP, _draw_slstm_step, _slstm_step_oracle),
            *(("h", "c", "n", "m"), _slstm_flops, _slstm_step_traffic),
        ),
        Op("lstm", _CELL_KEYS, _SEQUENCE, _draw_lstm, _lstm_oracle, ("h",), _lstm_flops, _lstm_traffic),
        Op(
            *("lstm_step", _CELL_STEP_KEYS, _STEP, _draw_lstm_step, _lstm_step_oracle),
            *(("h", "c"), _lstm_flops, _lstm_step_traffic),
        ),
    )
}
OPS: dict[str, Op] = KERNEL_OPS | {op.name: op for op in (*GLUE_OPS, *MODEL_OPS)}
