"""Gates in the operators that ONNX has."""

from __future__ import annotations

import torch
from torch import Tensor


def log_sigmoid(x: Tensor) -> Tensor:
    """-log(1 + exp(-x)) with all digits, also where a gate is nearly open.

    The exporter makes log(sigmoid(x)) of torch's, whose error there is as large as what the gate forgets. ONNX has no
    log1p: with y = exp(-|x|), log(1 + y) = 2 artanh(y / (2 + y)). onnxruntime has no artanh in float64.
    """
    y = torch.exp(-x.abs())
    decay = torch.log(1 + y) if x.dtype == torch.float64 else 2 * torch.atanh(y / (2 + y))
    return x.clamp(max=0) - decay
