"""lstm and slstm behind the projection of their gates, some tokens at a time: on a CPU, where new memory is slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xlstm_cuda import _autocast, _checks
from xlstm_cuda._autograd import BlockwiseRecurrent
from xlstm_cuda._backend import resolve
from xlstm_cuda._ops import CELLS, NAMESPACE, library
from xlstm_cuda._transforms import in_forward_mode, in_transform
from xlstm_cuda.functional._calls import computed
from xlstm_cuda.functional._recurrent import RecurrentOptions
from xlstm_cuda.functional._steps import is_bare

BLOCK_BYTES = 8 << 20  # of projected gates: fewer than a cache holds, and the allocator hands the same memory out again
MIN_TOKENS = 32  # the kernels pack the recurrent weights once a block


class BlockwiseOptions(NamedTuple):
    """What BlockwiseRecurrent takes after its namespace."""

    recurrent: RecurrentOptions
    block: int  # tokens

    def plain(self, x: Tensor, W: Tensor, R: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        """rest: b, h0, c0, n0, m0, lengths."""
        return self.recurrent.plain(gates(x, W), R, *rest, None)

    def parts(self, seqlen: int) -> list[slice]:
        return [slice(first, min(first + self.block, seqlen)) for first in range(0, seqlen, self.block)]

    def left(self, lengths: Tensor | None, part: slice) -> Tensor | None:
        """How many tokens of each row are in a block."""
        return None if lengths is None else (lengths - part.start).clamp(0, part.stop - part.start)

    def carried(self, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of h, c, n, m and what may follow, as the ops return them: what the cell has."""
        return tuple(state[: 2 if self.recurrent.cell == CELLS["lstm"] else 4])

    def scan(
        self, namespace: str, inputs: Sequence[Tensor | None], save: bool
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """h, and of each block h, c, n, m behind it and what is saved. inputs: those of BlockwiseRecurrent."""
        x, W, R, b, *state, lengths = inputs
        assert x is not None and W is not None
        outputs, blocks = [], []
        for part in self.parts(x.shape[1]):
            order = self.left(lengths, part), None, *self.recurrent
            h, *block = library(namespace).recurrent_fwd.default(gates(x[:, part], W), R, b, *state, *order, save)
            state = [*self.carried(block), None, None][:4]
            outputs.append(h)
            blocks.append(tuple(block))
        return torch.cat(outputs, 1), blocks


def gates(x: Tensor, W: Tensor) -> Tensor:
    """x (B, S, F) and W (4, H, D, F) -> (B, S, 4, H, D)."""
    return F.linear(x, W.flatten(0, 2)).unflatten(-1, W.shape[:3])


def tokens_per_block(op: str, x: Tensor, W: Tensor, *others: Tensor | None) -> int:
    """Tokens of x (B, S, F) for the gates of W (4, H, D, F): all S of them, but where much new memory would be filled.

    That is on a CPU, with at least two blocks. Transforms and what records a graph get all tokens at once, as do
    gradients in 16 bits: sums over blocks would be rounded after each of them.
    """
    S = x.shape[1]
    if x.device.type != "cpu" or _is_traced() or _autocast.enabled("cpu"):  # first: traced sizes must not be compared
        return S
    block = BLOCK_BYTES // max(1, x.shape[0] * W[..., 0].numel() * x.element_size())
    if 2 * block > S:
        return S
    every = [tensor for tensor in (x, W, *others) if tensor is not None]
    if _checks.needs_grad(*every) and x.dtype not in (torch.float32, torch.float64):
        return S
    known = all(map(is_bare, every)) and W.dtype == x.dtype
    return max(MIN_TOKENS, block) if known and resolve(op, None, x.device, "recurrent_fwd") == NAMESPACE else S


def blockwise_scan(
    cell: str, x: Tensor, W: Tensor, R: Tensor, b: Tensor | None, state: Sequence[Tensor] | None,
    lengths: Tensor | None, block: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """The cell's function of x W^T, `block` tokens at a time: h (B, S, H, D) and the final state."""
    options = BlockwiseOptions(RecurrentOptions(CELLS[cell]), block)
    absent = [None] * (4 - len(state or ()))
    h, *final = computed(BlockwiseRecurrent, NAMESPACE, options, [x, W, R, b, *(state or ()), *absent, lengths])
    return h, tuple(final)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or in_transform() or in_forward_mode()
