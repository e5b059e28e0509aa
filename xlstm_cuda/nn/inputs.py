"""Checks of what a user passes to a layer, block or stack."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import require

MAX_STEP = 16  # tokens, as functional.mlstm_step takes them


def check_input(x: Tensor, dim: int) -> None:
    """Raises ValueError unless x is (B, S, dim)."""
    require(x.ndim == 3 and x.shape[-1] == dim, f"x must have shape (B, S, {dim}), got {tuple(x.shape)}")


def check_tokens(x: Tensor) -> None:
    """Raises ValueError unless x holds what a step takes, (B, S, ...) with 1 <= S <= 16."""
    shape = tuple(x.shape)
    require(x.ndim >= 2 and 1 <= shape[1] <= MAX_STEP, f"step takes 1 to {MAX_STEP} tokens, (B, S, ...), got {shape}")


def check_reset(reset: Tensor | None, x: Tensor) -> None:
    """Raises unless reset is None or says for every token of x (B, S, ...) whether the state is emptied before it."""
    if reset is None:
        return
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be torch.bool, got {reset.dtype}")
    require(reset.shape == x.shape[:2], f"reset must have shape {tuple(x.shape[:2])}, got {tuple(reset.shape)}")
