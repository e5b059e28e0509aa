"""Linear maps that act on each head, or on each small block of features, by itself."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import _autocast, functional
from .._children import is_ordinary
from ..functional._headwise import MAX_BLOCK
from .config import require
from .init import small_init_

_PACKED_WIDTH = 64  # features per matrix product: tiny blocks leave a GEMM idle


class LinearHeadwise(nn.Module):
    """x (B, S, F) -> (B, S, F), the features cut into `num_heads` blocks of F / num_heads, each mapped by itself.

    weight (num_heads, F / num_heads out, F / num_heads in).
    """

    def __init__(self, features: int, num_heads: int, bias: bool = False) -> None:
        super().__init__()
        require(features % num_heads == 0, f"LinearHeadwise: {features} features do not divide into {num_heads} heads")
        self.features = features
        self.num_heads = num_heads
        block = features // num_heads
        self.weight = nn.Parameter(torch.empty(num_heads, block, block))
        self.bias = nn.Parameter(torch.empty(features)) if bias else None
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return headwise_maps(x, self)[0]

    def by_products(self, x: Tensor) -> Tensor:
        """The same by products of matrices."""
        weight = self.weight if x.shape[1] == 1 else self._packed_weight()
        y = torch.einsum("bshd,hod->bsho", torch.unflatten(x, -1, (weight.shape[0], -1)), weight).flatten(-2)
        return y if self.bias is None else y + self.bias

    def _packed_weight(self) -> Tensor:
        """The same map with several blocks on the diagonal of each matrix: fewer, wider products."""
        heads, block, _ = self.weight.shape
        pack = math.gcd(heads, max(_PACKED_WIDTH // block, 1))
        diagonal = torch.eye(pack, dtype=self.weight.dtype, device=self.weight.device)
        packed = self.weight.view(-1, pack, block, 1, block) * diagonal[:, None, :, None]  # (groups, pack, o, pack, d)
        return packed.reshape(heads // pack, pack * block, pack * block)

    def reset_parameters(self, dim: int | None = None) -> None:
        """dim: the fan-in the initial variance is computed from; default the block's."""
        small_init_(self.weight, dim or self.weight.shape[-1])
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.features}, num_heads={self.num_heads}, bias={self.bias is not None}"


def headwise_maps(x: Tensor, *maps: LinearHeadwise) -> list[Tensor]:
    """The maps of one x, two in one pass over it where the kernels take them."""
    if not for_kernels(x, *maps):
        return [linear.by_products(x) for linear in maps]
    y = functional.headwise_linear(x, [linear.weight for linear in maps], [linear.bias for linear in maps])
    return list(cast(tuple[Tensor, ...], y))


def for_kernels(x: Tensor, *maps: Any) -> bool:
    """Whether the blocks are small, and what comes out has the dtype of x either way. maps: with weight and bias."""
    weights = [linear.weight for linear in maps]
    biases = [linear.bias for linear in maps if linear.bias is not None]
    if not all(map(is_ordinary, (x, *weights, *biases))) or any(max(w.shape[1:]) > MAX_BLOCK for w in weights):
        return False
    if _autocast.enabled(x.device.type):  # which rounds weights for a product, and no bias
        return all(x.dtype == dtype for dtype in (torch.get_autocast_dtype(x.device.type), *(b.dtype for b in biases)))
    return all(x.dtype == t.dtype for t in (*weights, *biases))
