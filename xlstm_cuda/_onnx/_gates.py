"""Gates in the operators that ONNX has."""

from __future__ import annotations

import torch
from torch import Tensor


def log_sigmoid(x: Tensor) -> Tensor:
    """-log(1 + exp(-x)). The exporter makes log(sigmoid(x)) of torch's, whose error where a gate is nearly open is as
    large as what it forgets; with y = exp(-|x|), log(1 + y) = 2 artanh(y / (2 + y)) keeps all digits."""
    y = torch.exp(-x.abs())
    return x.clamp(max=0) - 2 * torch.atanh(y / (2 + y))
