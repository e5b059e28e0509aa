"""Pre-activations of gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def preactivation(gate: nn.Linear, x: Tensor) -> Tensor:
    """gate(x), also under autocast in the dtype of gate's weights: bfloat16 is too coarse for biases of 3 to 6."""
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = gate(x.to(gate.weight.dtype))
    return y
