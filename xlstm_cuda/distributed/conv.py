"""The causal convolution over a sequence that is spread over the ranks of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .. import functional
from .collectives import check_group, gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group: ProcessGroup | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`xlstm_cuda.causal_conv1d` of a sequence of which each rank has some tokens, in the order of the ranks: exact.

    Args:
        x: (B, S, F), S the number of this rank's tokens, 0 or more; shards may be shorter than the window.
        weight, bias, activation: as for `xlstm_cuda.causal_conv1d`, the same on all ranks.
        group: of ranks; None: all of them.
        initial_state: (B, K - 1, F) before the first token of all; that of the first rank counts.
        return_state: also return the last K - 1 inputs of all, the same on every rank.
        reset: bool (B, S), of this rank's tokens.

    Returns y (B, S, F) of this rank's tokens; with return_state (y, state). One all-gather of B (K - 1) F values.
    Raises RuntimeError without a process group; TypeError, ValueError: as `xlstm_cuda.causal_conv1d`.
    """
    check_group("distributed.causal_conv1d", group)
    call: Any = cast(Any, functional.causal_conv1d)
    before, tokens = weight.shape[-1] - 1, x.shape[1]
    _, window = call(x, weight, bias, return_state=True, reset=reset)  # (B, K - 1, F), zeros where others' tokens go
    first = torch.zeros_like(window) if initial_state is None else initial_state.to(window.dtype)
    kept = torch.ones(len(x), 1, 1, device=x.device) if reset is None else (~reset.any(1))[:, None, None]
    lengths = torch.full_like(window[:, :1, :1], min(tokens, before))
    windows, firsts, keeps, counts = gather([window, first, kept.to(window.dtype), lengths], group)
    state, rank, own = firsts[0], dist.get_rank(group), firsts[0]
    for index in range(len(windows)):
        if index == rank:
            own = state
        count = int(counts[index].max()) if counts[index].numel() else 0
        earlier = torch.where(keeps[index] > 0, state[:, count:], 0)
        state = torch.cat([earlier, windows[index][:, before - count :]], 1)
    y: Tensor = call(x, weight, bias, activation=activation, initial_state=own, reset=reset)
    return (y, state) if return_state else y
