"""TiRex, the forecasting model of the package tirex-ts, on this library's sLSTM.

    from xlstm_cuda.interop import tirex

    tirex.patch()  # all TiRex models of the process, built or to be built, whatever their backend and device
    tirex.unpatch()

TiRex's own cells round inputs, recurrent weights and, after every token, all states to bfloat16. Here they are computed
in the dtype of the input, states in float32 at least, so that forecasts differ by what TiRex rounds; autocast gives
bfloat16 where it is wanted. Training works. TiRex's backend "cuda" no longer needs a GPU or the package xlstm.

In a state that is given to a cell, elements with n = 0 are empty; TiRex ignores m only where all n are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..functional import SLSTMState, slstm

__all__ = ["disable", "enable", "patch", "unpatch"]

_original: Callable[..., tuple[Tensor, Tensor]] | None = None  # TiRex's own, while ours is in its place


def patch() -> None:
    """Replaces the forward of TiRex's sLSTM cells. A second call does nothing. ImportError without tirex-ts."""
    global _original
    cell = _cell_class()
    if _original is None:
        _original, cell.forward = cell.forward, _forward


def unpatch() -> None:
    """Puts TiRex's own forward back; does nothing unless patched."""
    global _original
    if _original is not None:
        _cell_class().forward, _original = _original, None


def enable() -> None:
    """The former name of `patch`. Deprecated: it keeps working, but new code uses the other."""
    patch()


def disable() -> None:
    """The former name of `unpatch`. Deprecated: it keeps working, but new code uses the other."""
    unpatch()


def _cell_class() -> Any:
    try:
        from tirex.models.slstm.cell import sLSTMCell
    except ImportError as error:
        raise ImportError(f"xlstm_cuda.interop.tirex needs the package tirex-ts (1.4): {error}") from error
    return sLSTMCell


def _forward(cell: Any, input: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """sLSTMCell.forward.

    input: (B, S, 4 H D), gates i, f, z, o, then heads; state: h, c, n, m (4, B, H D), or None for the empty state.
    Returns h (B, H, S, D) and the state after the last token, both in the dtype of the input. ValueError for shapes.
    """
    heads, dim = cell.config.num_heads, cell.config.head_dim
    if input.ndim != 3 or input.shape[2] != 4 * heads * dim:
        raise ValueError(f"sLSTMCell: input must have shape (B, S, {4 * heads * dim}), got {tuple(input.shape)}")
    if state is not None and state.shape != (4, input.shape[0], heads * dim):
        expected = (4, input.shape[0], heads * dim)
        raise ValueError(f"sLSTMCell: state must have shape {expected}, got {tuple(state.shape)}")
    R = cell._recurrent_kernel_.unflatten(-1, (4, dim)).permute(2, 0, 3, 1)  # from (H, D in, 4 D out)
    b = cell._bias_.view(heads, 4, dim).transpose(0, 1)
    start = None if state is None else SLSTMState(*state.unflatten(-1, (heads, dim)))
    x = input.unflatten(-1, (4, heads, dim))
    h, final = cast(tuple[Tensor, SLSTMState], slstm(x, R, b, initial_state=start, return_state=True))
    return h.transpose(1, 2).to(input.dtype), torch.stack(final).flatten(2).to(input.dtype)
