"""Blocks of Vision-LSTM: the mLSTM block of the xLSTM paper, over patches from either end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...nn.config import require
from ...nn.conv import CausalConv1d
from ...nn.mlstm_layer import GatedMLSTM, mLSTMLayerConfig
from ...nn.norms import LayerNorm

CONV_KINDS = ("2d", "causal1d")


class PatchConv2d(nn.Conv2d):
    """Depthwise convolution of a grid of patches: (B, h w, F) -> (B, h w, F), of an odd size, padded with zeros."""

    def __init__(self, features: int, kernel_size: int) -> None:
        super().__init__(features, features, kernel_size, padding=kernel_size // 2, groups=features)

    def over(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """x (B, h w, F), grid (h, w)"""
        y: Tensor = self(x.unflatten(1, tuple(grid)).movedim(-1, 1))
        return y.movedim(1, -1).flatten(1, 2)


class VisionLayer(GatedMLSTM):
    """x (B, S, D) -> (B, S, D), S patches; reverse: from the last patch to the first.

    conv_name: of the convolution in state dicts, conv_kind: of it. A 2-D one sees the image as it is read, turned by
    180 degrees where reverse is set.
    """

    def __init__(
        self, dim: int, reverse: bool, conv_name: str, conv_kind: str, kernel_size: int, bias: bool, norm_bias: bool
    ) -> None:
        config = mLSTMLayerConfig(
            embedding_dim=dim, bias=bias, conv1d_kernel_size=kernel_size, round_proj_up_to_multiple_of=1
        )
        conv: Callable[[int, int], nn.Module] = PatchConv2d if conv_kind == "2d" else CausalConv1d
        super().__init__(config, conv_name, lambda inner: conv(inner, kernel_size), norm_bias)
        self.reverse = reverse

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """grid: sizes whose product is S."""
        x = x.flip(1) if self.reverse else x
        u, z = self.branches(x)
        y, _ = self.mixed(u, self._convolved(u, grid), z)
        return y.flip(1) if self.reverse else y

    def _convolved(self, u: Tensor, grid: Sequence[int]) -> Tensor:
        conv: Any = getattr(self, self._conv_name)
        if isinstance(conv, PatchConv2d):
            return F.silu(conv.over(u, grid))
        y: Tensor = conv(u, activation="silu")[0]
        return y


class VisionBlock(nn.Module):
    """x + layer(norm(x)). drop_path: the share of rows that go round the layer in training (arXiv 1603.09382)."""

    def __init__(self, dim: int, reverse: bool, drop_path: float, norm_bias: bool, **layer: Any) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = LayerNorm(dim, bias=norm_bias)
        self.layer = VisionLayer(dim, reverse, norm_bias=norm_bias, **layer)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        y: Tensor = self.layer(self.norm(x), grid)
        if self.training and self.drop_path > 0:
            kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
            y = torch.where(kept, y / (1 - self.drop_path), 0)
        return x + y

    def reset_parameters(self) -> None:
        self.norm.reset_parameters()
        self.layer.reset_parameters()


class VisionBlockPair(nn.Module):
    """A block from the top left to the bottom right, then one from the bottom right to the top left."""

    def __init__(self, dim: int, **block: Any) -> None:
        super().__init__()
        self.rowwise_from_top_left = VisionBlock(dim, False, **block)
        self.rowwise_from_bot_right = VisionBlock(dim, True, **block)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        y: Tensor = self.rowwise_from_bot_right(self.rowwise_from_top_left(x, grid), grid)
        return y

    def reset_parameters(self) -> None:
        self.rowwise_from_top_left.reset_parameters()
        self.rowwise_from_bot_right.reset_parameters()


def check_conv(op: str, kind: str, kernel_size: int, dims: int) -> None:
    """Raises ValueError for a convolution that there is not, or that does not fit images of so many dimensions."""
    require(kind in CONV_KINDS, f"{op}: conv_kind must be one of {', '.join(map(repr, CONV_KINDS))}, got {kind!r}")
    require(kernel_size > 0, f"{op}: conv_kernel_size must be positive, got {kernel_size}")
    if kind == "2d":
        require(kernel_size % 2 == 1, f"{op}: conv_kernel_size must be odd for conv_kind='2d', got {kernel_size}")
        require(dims == 2, f"{op}: conv_kind='2d' needs 2-D images, got {dims}-D: conv_kind='causal1d' takes any")
