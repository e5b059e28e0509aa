"""How many tokens a layer projects at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._checks import needs_grad

BLOCK_BYTES = 8 << 20  # of projected gates: fewer than a cache holds, and the allocator hands the same memory out again
MIN_TOKENS = 32  # the kernels pack the recurrent weights once a block


def tokens_per_block(x: Tensor, W: Tensor, *others: Tensor | None) -> int:
    """Tokens of x (B, S, F) for the gates of W (4, H, D, F): all S of them, but where much new memory would be filled.

    That is on a CPU without gradients, with at least two blocks. With gradients each block would be a node of a graph;
    what is traced would hold a loop of this length.
    """
    S = x.shape[1]
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing() or needs_grad(x, W, *others):
        return S
    block = BLOCK_BYTES // max(1, x.shape[0] * W[..., 0].numel() * x.element_size())
    return S if 2 * block > S else max(MIN_TOKENS, block)
