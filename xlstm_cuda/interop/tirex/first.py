"""TiRex: the sLSTM cell of tirex-ts."""

from __future__ import annotations

from typing import Any, cast

import torch
from tirex.models.slstm.cell import sLSTMCell
from torch import Tensor

from ...functional import SLSTMState, slstm


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


METHODS = {(sLSTMCell, "forward"): _forward}
