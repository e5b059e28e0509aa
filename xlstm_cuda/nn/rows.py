"""Rows that are read from the last token to the first."""

from __future__ import annotations

import torch
from torch import Tensor


def document_ends(reset: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Where a pass from the last token to the first begins anew: bool (B, S), True at the last token of each document
    that another one follows, of those that begin where `reset` (B, S) says.

    lengths (B,): what follows the last token of a row is padding, and no document.
    """
    following = torch.cat([reset[:, 1:], torch.zeros_like(reset[:, :1])], 1)
    if lengths is None:
        return following
    t = torch.arange(1, following.shape[1] + 1, device=following.device)
    return following & (t < lengths[:, None])
