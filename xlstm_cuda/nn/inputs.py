"""Checks of what a user passes to a layer, block or stack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import MAX_STEP
from .config import require


def check_input(x: Tensor, dim: int) -> None:
    """Raises ValueError unless x is (B, S, dim), TypeError unless it is a tensor."""
    _check_tensor("x", x)
    require(x.ndim == 3 and x.shape[-1] == dim, f"x must have shape (B, S, {dim}), got {tuple(x.shape)}")


def check_ids(ids: Tensor) -> None:
    """Raises ValueError unless ids are (B, S), TypeError unless they are a tensor of int64 or int32."""
    _check_tensor("ids", ids)
    require(ids.ndim == 2, f"ids must have shape (B, S), got {tuple(ids.shape)}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids must be int64 or int32, got {ids.dtype}")


def check_tokens(x: Tensor) -> None:
    """Raises ValueError unless x holds what a step takes, (B, S, ...) with 1 <= S <= 16; TypeError for no tensor."""
    _check_tensor("the input of a step", x)
    shape = tuple(x.shape)
    require(x.ndim >= 2 and 1 <= shape[1] <= MAX_STEP, f"step takes 1 to {MAX_STEP} tokens, (B, S, ...), got {shape}")


def check_reset(reset: Tensor | None, x: Tensor) -> None:
    """Raises unless reset is None or says for every token of x (B, S, ...) whether the state is emptied before it."""
    if reset is None:
        return
    _check_tensor("reset", reset)
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be torch.bool, got {reset.dtype}")
    require(reset.shape == x.shape[:2], f"reset must have shape {tuple(x.shape[:2])}, got {tuple(reset.shape)}")


def step_flag(is_step: bool) -> dict[str, bool]:
    """The keyword of a step, for a call of a child: a user's own, in its place, need not know it elsewhere."""
    return {"is_step": True} if is_step else {}


def layer_state(state: Any) -> tuple[Any, Any]:
    """The state's window of the convolution and its cell's state, None and None for None.

    Raises TypeError unless it has these two parts; the cell's is checked where it is used.
    """
    if state is None:
        return None, None
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        given = f"{type(state).__name__} of {len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
        raise TypeError(f"state of a layer must be None or (conv, cell), got {given}")
    conv, cell = state
    if conv is not None:
        _check_tensor("conv state", conv)
    return conv, cell


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a NestedTensor: put its rows one after the other in one row, with "
            "`reset` where each begins, or pad them"
        )
