"""What a forward pass of mlstm keeps on a GPU, so that the backward pass need not compute it again: gate vectors, and
the states that enter chunks.

csrc/cuda/mlstm_chunkwise/chunkwise.cpp has the same sizes: torch.compile must know them without the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes, of each piece
SHARE = 2 / 3  # of the bytes of q, k, v and h, which autograd keeps anyway


def worth_keeping(q: Tensor, v: Tensor, asked: int) -> bool:
    """Whether to keep: where states take at most SHARE, and there are two chunks. asked: chunk_size of the call."""
    size = _chunk_size(q, asked)
    state, token = q.shape[-1] * v.shape[-1], 2 * (q.shape[-1] + v.shape[-1])
    return _state_width(q) * state <= SHARE * q.element_size() * token * size and q.shape[2] >= 2 * size


def kept_bytes(q: Tensor, v: Tensor, sequences: Any, packed: bool, asked: int) -> Any:
    """packed: whether there are cu_seqlens. Lengths may be symbols of torch.compile."""
    batch, heads, seqlen, dim_qk = q.shape
    size, width = _chunk_size(q, asked), _width(q)
    tokens = batch * heads * seqlen
    slots = batch * heads * (seqlen // size + sequences if packed else (seqlen + size - 1) // size)
    y = z = 2 * width * tokens
    m, start = width * tokens, 4 * tokens
    M, g_bar = 2 * width * slots, width * slots
    C, n = _state_width(q) * slots * dim_qk * v.shape[-1], width * slots * dim_qk
    pieces = y, z, m, start, M, g_bar, C, n
    return sum((piece + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT for piece in pieces)


def _chunk_size(q: Tensor, asked: int) -> int:
    """choose_chunk_size of chunkwise.cpp."""
    return max([64, *(size for size in (128, 256) if size <= (asked or 128) and size // 2 < q.shape[2])])


def _width(q: Tensor) -> int:
    """Bytes of a number of the arithmetic."""
    return 8 if q.dtype == torch.float64 else 4


def _state_width(q: Tensor) -> int:
    """Bytes of an element of C: an operand of products, which take float16 as tf32."""
    return 2 if q.dtype == torch.bfloat16 else _width(q)
