"""Linear maps of few rows, as a decode step has them: bound by how fast the weights can be read."""

from __future__ import annotations

import torch
from torch import Tensor

from xlstm_cuda import _ops
from xlstm_cuda.functional._steps import is_plain

# More rows than these torch multiplies as fast (docs/benchmarks.md); the op takes up to 16.
MOST_ROWS = {torch.float32: 8, torch.bfloat16: 2, torch.float16: 2}


def takes_few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows_linear` computes x W^T, and faster than torch: few rows on a CPU, without gradients, eager."""
    if not is_plain(None, (x, weight), ()) or torch._C._are_functorch_transforms_active():
        return False
    if x.dtype != weight.dtype or x.dim() == 0 or not 0 < x.numel() <= MOST_ROWS.get(x.dtype, 0) * x.shape[-1]:
        return False
    return _ops.has_kernel(_ops.NAMESPACE, "few_rows_linear", "cpu")


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I) of at most 16 rows, weight (O, I), bias (O,) or None, all of one dtype -> (..., O), contiguous.

    Each weight is read once, for all rows and by all threads. Sums are in float32. No gradients. A row's result does
    not depend on how many rows there are.
    """
    y: Tensor = _ops.library(_ops.NAMESPACE).few_rows_linear.default(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])
