"""Rows of features as the ops take them."""

from __future__ import annotations

from torch import Tensor


def as_tokens(x: Tensor, ndim: int = 3) -> Tensor:
    """(..., F) as (B, S, F), with ndim 4 (..., H, D) as (B, S, H, D): a view where strides allow."""
    while x.ndim < ndim:
        x = x.unsqueeze(0)
    return x.flatten(0, x.ndim - ndim)
