"""Dtypes of the reference: T is the dtype of the data, A the one of computation and states."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """A for data of dtype T: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to `dtype` but kept in its own dtype, with the gradient of the identity.

    A plain x.to(dtype).to(x.dtype) would round the gradient too.
    """
    return x + (x.to(dtype).to(x.dtype) - x).detach() if x.dtype != dtype else x


def zeroed(x: Tensor, rows: Tensor) -> Tensor:
    """x (B, ...) with the rows picked by the bool tensor `rows` (B,) set to zero."""
    return x.masked_fill(rows.view(-1, *[1] * (x.ndim - 1)), 0)
