"""Images (B, C, *shape) as grids of patches (B, *grid, D), and what is learned for each place of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...nn.config import require

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


class PatchEmbed(nn.Module):
    """A linear map of each patch: x (B, C, *shape) -> (B, *grid, D). Patches overlap where the stride is smaller."""

    def __init__(self, channels: int, patch: Sequence[int], stride: Sequence[int], dim: int) -> None:
        super().__init__()
        self.patch, self.stride = tuple(patch), tuple(stride)
        self.proj = _CONVOLUTIONS[len(patch)](channels, dim, self.patch, self.stride)  # type: ignore[arg-type]
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        dims, channels = len(self.patch) + 2, self.proj.in_channels
        require(
            x.ndim == dims and x.shape[1] == channels,
            f"images must have {dims} dimensions, the second one the {channels} channels, got {tuple(x.shape)}",
        )
        self.grid(x.shape[2:])
        y: Tensor = self.proj(x)
        return y.movedim(1, -1)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Patches in each direction of an image. Raises ValueError where its shape is no multiple of the patch's."""
        fits = all(size >= patch and size % patch == 0 for size, patch in zip(shape, self.patch, strict=True))
        require(fits, f"images must have sizes that are multiples of the patch's, {self.patch}, got {tuple(shape)}")
        sizes = zip(shape, self.patch, self.stride, strict=True)
        return tuple((size - patch) // stride + 1 for size, patch, stride in sizes)

    def reset_parameters(self) -> None:
        """As a linear map of the pixels of a patch: Xavier's uniform distribution."""
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)


class PositionEmbed(nn.Module):
    """x (B, *grid, D) + embed (1, *grid, D), which is interpolated for another grid (bicubic, 2-D only)."""

    def __init__(self, grid: Sequence[int], dim: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(1, *grid, dim))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return x + interpolated(self.embed, x.shape[1:-1])

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.embed, std=0.02)


def interpolated(embed: Tensor, grid: Sequence[int]) -> Tensor:
    """embed (1, *grid, D) for another grid. Raises ValueError for a number of dimensions that is not the same, or 2."""
    if embed.shape[1:-1] == tuple(grid):
        return embed
    require(
        embed.ndim == 4 == len(grid) + 2,
        f"positions of a grid {tuple(embed.shape[1:-1])} can only be interpolated from 2-D to 2-D, got {tuple(grid)}",
    )
    return F.interpolate(embed.movedim(-1, 1), tuple(grid), mode="bicubic").movedim(1, -1)
