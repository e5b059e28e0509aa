"""Sequences in chunks of one length, whatever the number of tokens.

In operators of ONNX by name: while torch records a graph, a size such as (S + 63) // 64 makes its own reshape and slice
decide, by the example, whether there is one chunk, and the graph would be for that number only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def cut(inputs: Sequence[Tensor], fillers: Sequence[float], length: int) -> list[Tensor]:
    """Each (G, S, ...) -> (chunks, G, length, ...), the last chunk filled up."""
    missing = torch.remainder(-_seqlen(inputs[0]), length)
    return [_cut(x, filler, length, missing) for x, filler in zip(inputs, fillers, strict=True)]


def _cut(x: Tensor, filler: float, length: int, missing: Tensor) -> Tensor:
    rows, seqlen, *rest = x.shape
    count = torch.sym_max(1, (seqlen + length - 1) // length)  # so that torch need not ask whether there is one
    zeros = torch.zeros(x.ndim + 1, dtype=torch.int64)
    padding = torch.cat([zeros, missing, zeros[: x.ndim - 2]])  # before each dimension, then after each
    value = torch.full((), filler, dtype=x.dtype)
    x = _operator("Pad", (x, padding, value), x, (rows, count * length, *rest))
    sizes = torch.tensor([0, -1, length, *rest])  # 0: as it is
    return _operator("Reshape", (x, sizes), x, (rows, count, length, *rest)).transpose(0, 1)


def joined(x: Tensor, like: Tensor) -> Tensor:
    """(chunks, G, length, D) -> (G, S, D), S that of `like` (G, S, D)."""
    count, rows, length, dim = x.shape
    x = _operator("Reshape", (x.transpose(0, 1), torch.tensor([0, -1, dim])), x, (rows, count * length, dim))
    start, axis = torch.zeros(1, dtype=torch.int64), torch.full((1,), 1)
    return _operator("Slice", (x, start, _seqlen(like), axis), x, like.shape)


def _seqlen(x: Tensor) -> Tensor:
    return _operator("Shape", (x,), torch.zeros(0, dtype=torch.int64), (1,), start=1, end=2)


def _operator(name: str, inputs: Sequence[Tensor], like: Tensor, shape: Sequence[Any], **attributes: Any) -> Tensor:
    y: Tensor = torch.onnx.ops.symbolic(name, inputs, attributes, dtype=like.dtype, shape=shape)
    return y.to(like.device)  # while it is recorded, what comes out is on the CPU
