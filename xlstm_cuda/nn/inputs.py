"""Checks of what a user passes to a layer, block or stack."""

from __future__ import annotations

from torch import Tensor

from .config import require


def check_input(x: Tensor, dim: int) -> None:
    """Raises ValueError unless x is (B, S, dim)."""
    require(x.ndim == 3 and x.shape[-1] == dim, f"x must have shape (B, S, {dim}), got {tuple(x.shape)}")


def check_token(x: Tensor) -> None:
    """Raises ValueError unless x holds one token: (B, 1, ...)."""
    require(x.ndim >= 2 and x.shape[1] == 1, f"step takes one token, (B, 1, ...), got {tuple(x.shape)}")
