"""One layer of torch.nn.LSTM as ONNX's operator `LSTM`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._states import LSTMState


def standard_lstm(
    x: Tensor,
    W: Sequence[Tensor],
    R: Sequence[Tensor],
    b: Sequence[tuple[Tensor, Tensor]] | None,
    state: LSTMState | None,
) -> tuple[Tensor, LSTMState]:
    """x (S, B, F) -> h (S, directions, B, D), and the state, its parts (directions, B, D).

    W (4 D, F), R (4 D, D) and the two biases (4 D,) for each direction, gates in the order i, f, g, o.
    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    directions, size = len(W), R[0].shape[-1]
    bias = None if b is None else torch.stack([torch.cat([_onnx_order(each) for each in pair]) for pair in b])
    weights = (torch.stack([_onnx_order(w) for w in matrices]) for matrices in (W, R))
    before = (None, None) if state is None else (s.to(x.dtype) for s in state)
    inputs = [x, *weights, bias, None, *before]
    shape = directions, x.shape[1], size
    h, *final = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        inputs,
        {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward"},
        dtypes=[x.dtype] * 3,
        shapes=[(x.shape[0], *shape), shape, shape],
    )
    h, *final = (y.to(x.device) for y in (h, *final))  # while they are recorded, they are on the CPU
    return h, LSTMState(*final)


def _onnx_order(w: Tensor) -> Tensor:
    """Rows of the gates i, f, g, o in the order i, o, f, g."""
    i, f, g, o = w.chunk(4)
    return torch.cat([i, o, f, g])
