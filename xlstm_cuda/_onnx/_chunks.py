"""Sequences in chunks of one length, whatever the number of tokens.

In operators of ONNX by name: while torch records a graph, a size such as (S + 63) // 64 makes its own reshape and slice
decide, by the example, whether there is one chunk, and the graph would be for that number only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def cut(x: Tensor, length: int, filler: float = 0.0) -> Tensor:
    """(B, H, S, ...) -> (chunks, B, H, length, ...), the last chunk filled up."""
    batch, heads, seqlen, *rest = x.shape
    count = (seqlen + length - 1) // length
    missing = torch.remainder(-_seqlen(x), length)
    before = torch.zeros(x.ndim + 2, dtype=torch.int64)
    padding = torch.cat([before, missing, before[: x.ndim - 3]])  # before each dimension, then after each
    value = torch.full((), filler, dtype=x.dtype)
    x = _operator("Pad", (x, padding, value), x, (batch, heads, count * length, *rest))
    sizes = torch.tensor([0, 0, -1, length, *rest])  # 0: as it is
    return _operator("Reshape", (x, sizes), x, (batch, heads, count, length, *rest)).movedim(2, 0)


def joined(x: Tensor, like: Tensor) -> Tensor:
    """(chunks, B, H, length, D) -> (B, H, S, D), S that of `like` (B, H, S, D)."""
    count, batch, heads, length, dim = x.shape
    sizes = torch.tensor([0, 0, -1, dim])
    x = _operator("Reshape", (x.movedim(0, 2), sizes), x, (batch, heads, count * length, dim))
    start, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2)
    return _operator("Slice", (x, start, _seqlen(like), axis), x, (batch, heads, like.shape[2], dim))


def _seqlen(x: Tensor) -> Tensor:
    return _operator("Shape", (x,), torch.zeros(0, dtype=torch.int64), (1,), start=2, end=3)


def _operator(name: str, inputs: Sequence[Tensor], like: Tensor, shape: Sequence[Any], **attributes: int) -> Tensor:
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=like.dtype, shape=shape)
