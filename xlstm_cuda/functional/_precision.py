"""The precision that torch's settings ask for: the dtype of autocast, and TF32."""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_cuda import _autocast


def in_autocast_dtype(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in the autocast dtype, where autocast is on; float64 stays, as in torch."""
    device = inputs[0].device.type
    if not _autocast.enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in inputs)


def allow_tf32() -> bool:
    """Whether float32 products on CUDA may round their operands to TF32: torch's own setting for matrix products."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # torch refuses this question where the newer setting has been used
        return matmul.fp32_precision == "tf32"


# What torch.compiler.assume_constant_result sets, which would import torch._dynamo: 900 modules, for every user.
allow_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]
