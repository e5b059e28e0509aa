"""headwise_linear as a few products of matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._scan import dense

WIDTH = 64  # features of a product: for each small block one alone costs more than the zeros of a wide matrix


def headwise_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y (..., N O) in x's dtype for x (..., N I), weight (N, O, I) and bias (N O,) or None."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    weight = _side_by_side(weight.to(dtype))
    count, outputs, inputs = weight.shape
    blocks = dense(x.to(dtype)).reshape(-1, count, inputs).transpose(0, 1)  # (N, tokens, I)
    y = dense(torch.bmm(blocks, weight.mT).transpose(0, 1)).reshape(*x.shape[:-1], count * outputs)
    return (y if bias is None else y + bias.to(dtype)).to(x.dtype)


def _side_by_side(weight: Tensor) -> Tensor:
    """The same map with several blocks on the diagonal of each matrix."""
    count, outputs, inputs = weight.shape
    pack = math.gcd(count, max(WIDTH // max(outputs, inputs), 1))
    if pack == 1:
        return weight
    diagonal = torch.eye(pack, dtype=weight.dtype, device=weight.device)[:, None, :, None]
    packed = weight.view(-1, pack, outputs, 1, inputs) * diagonal  # (N / pack, pack, O, pack, I)
    return packed.reshape(count // pack, pack * outputs, pack * inputs)
