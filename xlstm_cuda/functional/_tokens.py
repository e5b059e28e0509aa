"""Rows of features as the ops take them."""

from __future__ import annotations

from torch import Tensor


def as_tokens(x: Tensor) -> Tensor:
    """(..., F) as (B, S, F), a view where strides allow."""
    while x.ndim < 3:
        x = x.unsqueeze(0)
    return x.flatten(0, -3)
