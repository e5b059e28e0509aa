"""VisionLSTM and VisionLSTM2: arguments and names of the public code, so that its checkpoints can be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.checkpointing import ActivationCheckpointing
from ...nn.config import require
from ...nn.init import wang_init_
from ...nn.loading import CheckedLoading
from ...nn.norms import LayerNorm
from ..parameter_groups import WeightDecayGroups, weight_decay_names
from .blocks import VisionBlock, VisionBlockPair, check_conv
from .patches import PatchEmbed, PositionEmbed, interpolated


class _Vision(ActivationCheckpointing, CheckedLoading, WeightDecayGroups):
    """What both versions share: images (B, *input_shape) -> patches -> blocks -> pooled -> head.

    Other image sizes than input_shape are taken too: positions are interpolated (2-D).
    """

    blocks: Any  # ModuleList
    norm: nn.Module
    legacy_norm: nn.Module
    head: nn.Linear | None

    def __init__(
        self,
        dim: int,
        input_shape: Sequence[int],
        patch_size: int | Sequence[int],
        stride: int | Sequence[int] | None,
        depth: int,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        dims = len(input_shape) - 1
        require(1 <= dims <= 3, f"{op}: input_shape must be (channels, *sizes), 1 to 3 sizes, got {tuple(input_shape)}")
        require(dim > 0 and dim % 4 == 0, f"{op}: dim must be a positive multiple of 4, got {dim}")
        require(depth >= 0, f"{op}: depth must be >= 0, got {depth}")
        self.dim, self.input_shape, self.depth = dim, tuple(input_shape), depth
        self.patch_size = several(op, "patch_size", patch_size, dims)
        self.stride = self.patch_size if stride is None else several(op, "stride", stride, dims)
        self.patch_embed = PatchEmbed(self.input_shape[0], self.patch_size, self.stride, dim)
        self.grid = self.patch_embed.grid(self.input_shape[1:])
        sizes = zip(self.input_shape[1:], self.patch_size, strict=True)
        self.pos_embed = PositionEmbed([size // patch for size, patch in sizes], dim)  # as if patches did not overlap

    def _features(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Behind all blocks: (B, patches, D), and the grid of the patches."""
        x = self.pos_embed(self.patch_embed(x))
        grid = tuple(x.shape[1:-1])
        x = x.flatten(1, -2)
        for block in self._blocks_to_run():
            x = block(x, grid)
        return x, grid

    def _make_head(self, classes: Sequence[int] | None, features: int) -> nn.Linear:
        op = type(self).__name__
        given = tuple(classes or ())
        require(len(given) == 1, f"{op}: output_shape of a classifier must be (number of classes,), got {classes!r}")
        head = nn.Linear(features, given[0])
        nn.init.trunc_normal_(head.weight, std=2e-5)
        nn.init.zeros_(head.bias)
        return head

    def _check_pooling(self, mode: str | None, pooling: str | None, allowed: Sequence[str | None]) -> None:
        names = " or ".join(map(repr, allowed))
        op = type(self).__name__
        require(pooling in allowed, f"{op}: pooling must be {names} with mode={mode!r}, got {pooling!r}")

    def _drop_paths(self, rate: float, grows: bool) -> list[float]:
        """Of each block: `rate`, or from 0 to that."""
        require(0 <= rate < 1, f"{type(self).__name__}: drop_path_rate must be at least 0 and below 1, got {rate}")
        return torch.linspace(0, rate, self.depth).tolist() if grows else [rate] * self.depth

    def own_layout(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint for images of another size: its positions are interpolated. Without a head, its head is left."""
        found = dict(state_dict)
        embed = found.get("pos_embed.embed")
        if isinstance(embed, Tensor) and embed.ndim == self.pos_embed.embed.ndim == 4:
            found["pos_embed.embed"] = interpolated(embed, self.pos_embed.embed.shape[1:-1])
        if self.head is None:
            found = {key: value for key, value in found.items() if not key.startswith("head.")}
        return found

    def get_weight_decay_optim_group_param_names(self) -> tuple[list[str], list[str]]:
        """Names of the trainable parameters with and without weight decay: positions, norms and biases have none."""
        return weight_decay_names(self, ("pos_embed.embed",))

    def no_weight_decay(self) -> set[str]:
        """Names of matrices without weight decay, as timm asks for them."""
        return {"pos_embed.embed"}


class VisionLSTM(_Vision):
    """Images (B, C, H, W) -> logits (B, classes), or features (B, patches, dim).

    The first version of Vision-LSTM (arXiv 2406.04303): `depth` mLSTM blocks with a causal convolution, every second
    one from the last patch to the first. Arguments and names in state dicts are those of the public code.

    Args:
        dim: features of a patch; input_shape: (C, H, W); patch_size, stride: of each dimension or of all.
        depth: blocks.
        output_shape: (classes,), None without a head.
        mode: "classifier", or None for features.
        pooling: "bilateral_avg", the mean of the first and the last patch, or None: each patch is classified.
        drop_path_rate: share of rows that skip a block in training; with drop_path_decay it grows from 0 to that.
        alternation: "bidirectional".
        legacy_norm: a norm before pooling, which published checkpoints have.

    Raises ValueError for sizes that do not fit and names that there are not.
    """

    def __init__(
        self,
        dim: int = 192,
        input_shape: Sequence[int] = (3, 224, 224),
        patch_size: int | Sequence[int] = 16,
        depth: int = 24,
        output_shape: Sequence[int] | None = (1000,),
        mode: str | None = "classifier",
        pooling: str | None = "bilateral_avg",
        drop_path_rate: float = 0.0,
        stride: int | Sequence[int] | None = None,
        alternation: str = "bidirectional",
        drop_path_decay: bool = False,
        legacy_norm: bool = False,
    ) -> None:
        super().__init__(dim, input_shape, patch_size, stride, depth)
        known = alternation == "bidirectional"
        require(known, f"VisionLSTM: alternation must be 'bidirectional', got {alternation!r}")
        require(mode in (None, "classifier"), f"VisionLSTM: mode must be 'classifier' or None, got {mode!r}")
        self._check_pooling(mode, pooling, (None,) if mode is None else (None, "bilateral_avg"))
        self.mode, self.pooling = mode, pooling
        layer = {"conv_name": "conv1d", "conv_kind": "causal1d", "kernel_size": 4, "bias": False}
        self.blocks = nn.ModuleList(
            VisionBlock(dim, bool(index % 2), rate, norm_bias=False, **layer)
            for index, rate in enumerate(self._drop_paths(drop_path_rate, drop_path_decay))
        )
        self.legacy_norm = LayerNorm(dim) if legacy_norm else nn.Identity()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = None if mode is None else self._make_head(output_shape, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), H and W multiples of the patch's -> (B, classes) or, without pooling, (B, patches, ...)."""
        y, _ = self._features(x)
        y = self.legacy_norm(y)
        if self.pooling is not None:
            y = (y[:, 0] + y[:, -1]) / 2
        y = self.norm(y)
        return y if self.head is None else self.head(y)


class VisionLSTM2(_Vision):
    """Images (B, C, H, W) -> logits (B, classes), or features.

    The second version of Vision-LSTM (arXiv 2406.04303): `depth` pairs of mLSTM blocks, one from each end, with a 2-D
    convolution and biases. Arguments and names in state dicts are those of the public code.

    Args:
        dim, input_shape, patch_size, stride, output_shape, drop_path_rate, drop_path_decay: see VisionLSTM.
        depth: pairs of blocks.
        mode: "classifier" or "features".
        pooling: of a classifier "bilateral_flatten", the first and the last patch side by side, "bilateral_avg", their
            mean, or None. Of features None, (B, patches, dim), or "to_image", (B, dim, h, w).
        legacy_norm: a norm after pooling, which published checkpoints have.
        conv_kind, conv_kernel_size: "2d", of an odd size, or "causal1d". (The public code takes the size 3 always.)
        proj_bias, norm_bias: whether linear maps, and norms, have biases.
        init_weights: of the last linear map of each block: "original", as for one block, or "original-fixed", by depth.

    Raises ValueError for sizes that do not fit and names that there are not.
    """

    def __init__(
        self,
        dim: int = 192,
        input_shape: Sequence[int] = (3, 224, 224),
        patch_size: int | Sequence[int] = 16,
        depth: int = 12,
        output_shape: Sequence[int] | None = (1000,),
        mode: str = "classifier",
        pooling: str | None = "bilateral_flatten",
        drop_path_rate: float = 0.0,
        drop_path_decay: bool = False,
        stride: int | Sequence[int] | None = None,
        legacy_norm: bool = False,
        conv_kind: str = "2d",
        conv_kernel_size: int = 3,
        proj_bias: bool = True,
        norm_bias: bool = True,
        init_weights: str = "original",
    ) -> None:
        super().__init__(dim, input_shape, patch_size, stride, depth)
        op = type(self).__name__
        classifies = mode == "classifier"
        require(mode in ("classifier", "features"), f"{op}: mode must be 'classifier' or 'features', got {mode!r}")
        poolings = (None, "bilateral_flatten", "bilateral_avg") if classifies else (None, "to_image")
        self._check_pooling(mode, pooling, poolings)
        check_conv(op, conv_kind, conv_kernel_size, len(self.grid))
        known = init_weights in ("original", "original-fixed")
        require(known, f"{op}: init_weights must be 'original' or 'original-fixed', got {init_weights!r}")
        self.mode, self.pooling = mode, pooling
        block = {"norm_bias": norm_bias, "bias": proj_bias, "conv_name": "conv", "conv_kind": conv_kind}
        self.blocks = nn.ModuleList(
            VisionBlockPair(dim, drop_path=rate, kernel_size=conv_kernel_size, **block)
            for rate in self._drop_paths(drop_path_rate, drop_path_decay)
        )
        if init_weights == "original-fixed":
            for pair in self.blocks:
                for one in pair.children():
                    wang_init_(one.layer.proj_down.weight, dim, 2 * depth)
        features = 2 * dim if pooling == "bilateral_flatten" else dim
        self.norm = LayerNorm(dim, eps=1e-6, bias=norm_bias)
        self.legacy_norm = nn.LayerNorm(features) if legacy_norm else nn.Identity()
        self.head = self._make_head(output_shape, features) if classifies else None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), H and W multiples of the patch's -> (B, classes), or features as `pooling` says."""
        y, grid = self._features(x)
        y = self.legacy_norm(self._pooled(self.norm(y)))
        if self.pooling == "to_image":
            return y.mT.unflatten(-1, grid)
        return y if self.head is None else self.head(y)

    def _pooled(self, y: Tensor) -> Tensor:
        if self.pooling == "bilateral_flatten":
            return torch.cat([y[:, 0], y[:, -1]], 1)
        return (y[:, 0] + y[:, -1]) / 2 if self.pooling == "bilateral_avg" else y

    def own_layout(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """As for the first version; the norm of a classifier's two patches is no norm of features: its own stays."""
        found = super().own_layout(state_dict)
        if self.mode == "features" and isinstance(self.legacy_norm, nn.LayerNorm):
            own = {f"legacy_norm.{name}": value for name, value in self.legacy_norm.state_dict().items()}
            found |= {key: value for key, value in own.items() if _shape(found.get(key)) != value.shape}
        return found


def several(op: str, name: str, size: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One size for all dimensions, or one for each. Raises ValueError for another number of them, or one below 1."""
    sizes = (size,) * count if isinstance(size, int) else tuple(size)
    fits = len(sizes) == count and min(sizes) >= 1
    require(fits, f"{op}: {name} must be a positive number or {count} of them, got {size!r}")
    return sizes


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)
