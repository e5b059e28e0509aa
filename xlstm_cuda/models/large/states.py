"""States of xLSTMLarge as users hand them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..._states import MLSTMState
from ...nn.config import require

LargeState: TypeAlias = tuple[MLSTMState, ...]  # of all blocks
GivenState: TypeAlias = Sequence[Any] | Mapping[int, Any] | None


def block_states(state: GivenState, num_blocks: int) -> list[MLSTMState | None]:
    """The state of every block, None where it is empty.

    state: one for each block, or the public xLSTM code's {block: (C, n, m (B, H, 1))}, which has the same scale.
    Raises ValueError unless it holds num_blocks states, TypeError for another kind of object; the states' shapes are
    checked where they are used.
    """
    if state is None:
        return [None] * num_blocks
    if not isinstance(state, (Mapping, Sequence)):
        raise TypeError(f"state must be None, a tuple of block states or {{block: state}}, got {type(state).__name__}")
    found = list(state) if isinstance(state, Mapping) else list(range(len(state)))
    fits = set(found) == set(range(num_blocks))
    require(fits, f"state must hold {num_blocks} block states, got those of blocks {found}")
    if isinstance(state, Mapping):
        return [_from_public(state[index], index) for index in range(num_blocks)]
    return list(state)


def _from_public(state: Sequence[Any] | None, block: int) -> MLSTMState | None:
    if state is None:
        return None
    if not isinstance(state, Sequence) or not all(isinstance(part, Tensor) for part in state):
        raise TypeError(f"state of block {block} must be None or tensors (C, n, m), got {type(state).__name__}")
    require(len(state) == 3, f"state of block {block} must be (C, n, m), got {len(state)} parts")
    C, n, m = state
    require(
        m.ndim == 3 and m.shape[2] == 1, f"state of block {block}: m must have shape (B, H, 1), got {tuple(m.shape)}"
    )
    return MLSTMState(C, n, m.squeeze(2))


def stored(state: MLSTMState, dtype: torch.dtype | None) -> MLSTMState:
    """The state with C in dtype: nearly all of its memory."""
    return state if dtype is None else state._replace(C=state.C.to(dtype))
