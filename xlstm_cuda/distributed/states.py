"""What a shard does to a state, and what several of them do one after the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._states import MLSTMState

NO_SCALE = -1e30  # m of a state that has nothing in it and takes no part: any other m is larger


class Shard(NamedTuple):
    """(..., H, ...): C, n and m that the tokens of a shard lead to, from nothing; G (..., H): the logarithm of what the
    shard leaves of a state before it, -inf where a reset is among its tokens.
    """

    C: Tensor
    n: Tensor
    m: Tensor
    G: Tensor


def after(state: MLSTMState, shard: Shard, scaled: bool) -> MLSTMState:
    """The state behind a shard, with the m that the recurrence itself would have.

    scaled: m is the scale of C and n; else, with sigmoid gates, it says nothing, and comes out as it went in.
    """
    if scaled:
        kept = shard.G + state.m
        m = torch.maximum(kept, shard.m)
        old, new = torch.exp(kept - m), torch.exp(shard.m - m)
    else:
        m = torch.where(shard.G.isneginf(), shard.m, state.m)
        old, new = torch.exp(shard.G), torch.ones_like(shard.G)
    C = old[..., None, None] * state.C + new[..., None, None] * shard.C
    return MLSTMState(C, old[..., None] * state.n + new[..., None] * shard.n, m)


def before_and_after(shards: Shard, rank: int, scaled: bool) -> tuple[MLSTMState, MLSTMState]:
    """The state before the shard of a rank, and the one behind the last one.

    shards (R, ...), the first of them with what was before it; of rank 0 the former is not to be had.
    """
    first, *others = (Shard(*parts) for parts in zip(*shards, strict=True))
    own = state = MLSTMState(first.C, first.n, first.m)
    for index, shard in enumerate(others, 1):
        own = state if index == rank else own
        state = after(state, shard, scaled)
    return own, state


def nothing(C: Tensor, n: Tensor, m: Tensor) -> MLSTMState:
    """Of these shapes. The empty state of a sequence is another one: its m is 0, and has part in the scale."""
    return MLSTMState(torch.zeros_like(C), torch.zeros_like(n), torch.full_like(m, NO_SCALE))
