"""Initial values, those of the public xLSTM code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def small_init_(weight: Tensor, dim: int) -> None:
    """Normal, variance 2 / (5 dim) (Nguyen and Salazar, arXiv 1910.05895)."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * dim)))


def wang_init_(weight: Tensor, dim: int, num_blocks: int | None) -> None:
    """Normal, standard deviation 2 / (num_blocks sqrt(dim)): for projections that end on the residual stream."""
    nn.init.normal_(weight, std=2 / ((num_blocks or 1) * math.sqrt(dim)))


def linspace_(bias: Tensor, start: float, end: float) -> None:
    """Evenly spaced values along the last dimension."""
    with torch.no_grad():
        bias.copy_(torch.linspace(start, end, bias.shape[-1], device=bias.device))


def powerlaw_(bias: Tensor, block_idx: int | None, num_blocks: int | None) -> None:
    """sLSTM forget gate bias: from 5 down to -7 over a head's units, by a power law that steepens with depth."""
    depth = (block_idx or 0) / (num_blocks - 1) if num_blocks and num_blocks > 1 else 0.0
    units = bias.shape[-1]
    position = torch.arange(units, device=bias.device) / max(units - 1, 1)
    with torch.no_grad():
        bias.copy_(5.0 - 12.0 * position ** (0.3 + 1.3 * depth))
