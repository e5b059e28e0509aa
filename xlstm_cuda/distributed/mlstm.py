"""The mLSTM over a sequence that is spread over the ranks of a group (context parallel)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import _ops, functional
from .._states import MLSTMState
from . import states
from .collectives import check_group, gather, joined
from .states import Shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    group: ProcessGroup | None = None,
    initial_state: MLSTMState | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> Tensor | tuple[Tensor, MLSTMState]:
    """`xlstm_cuda.mlstm` of a sequence of which each rank has some tokens, in the order of the ranks: exact.

    Args:
        q, k, v, i, f: (B, H, S, ...) as for `xlstm_cuda.mlstm`, S the number of this rank's tokens, 0 or more.
        group: of ranks; None: all of them.
        initial_state: before the first token of all; that of the first rank counts, others give any or None.
        return_state: also return the state behind the last token of all, the same on every rank.
        reset: bool (B, S), of this rank's tokens: the state is emptied before those, across the shards.
        cu_seqlens: int32 (N + 1,), bounds of N sequences that are packed in the whole row (B = 1) of all ranks, the
            same on all of them. States have N rows.
        options: of `xlstm_cuda.mlstm`.

    Returns:
        h (B, H, S, Dv) of this rank's tokens. With return_state (h, MLSTMState).

    Each rank computes the state that its own tokens lead to, (C, n, m) and the sum G of its log forget gates. One
    all-gather hands all of them round, Dqk Dv + Dqk + 2 values of dtype A for each row and head. Then the usual call
    goes on from what came before. Backward it is one reduce-scatter, which all ranks have to take part in. The states
    of a shard are computed twice: a call takes up to twice the time of its tokens alone.

    Raises:
        RuntimeError without a process group; TypeError, ValueError: as `xlstm_cuda.mlstm`.
    """
    check_group("distributed.mlstm", group)
    call = cast(Any, functional.mlstm)
    packed = {} if cu_seqlens is None else {"cu_seqlens": _own(cu_seqlens, q.shape[2], group)}
    if dist.get_world_size(group) == 1:
        whole = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        given = {"initial_state": initial_state, "return_state": return_state, "reset": reset}
        result: Tensor | tuple[Tensor, MLSTMState] = call(q, k, v, i, f, **given, **whole, **options)
        return result
    scaled = options.get("input_gate", "exp") == "exp"
    rank, shard = dist.get_rank(group), _shard(k, v, i, f, reset, packed, scaled, options)
    first = MLSTMState(*map(torch.zeros_like, shard[:3]))
    if rank == 0 and initial_state is not None:
        first = MLSTMState(*(s.to(own.dtype) for s, own in zip(initial_state, first, strict=True)))
    if rank == 0:
        C, n, m = states.after(first, shard, scaled)
        shard = Shard(C, n, m, shard.G)
    gathered = Shard(*gather(list(shard), group))
    own, last = states.before_and_after(gathered, rank, scaled)
    own = first if rank == 0 else own
    own = own._replace(n=joined(own.n, gathered.n))
    h = cast(Tensor, call(q, k, v, i, f, initial_state=own, reset=reset, **packed, **options))
    return (h, last) if return_state else h


def _shard(
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    reset: Tensor | None,
    packed: dict[str, Tensor],
    scaled: bool,
    options: dict[str, Any],
) -> Shard:
    """What this rank's tokens do."""
    bounds = packed.get("cu_seqlens")
    rows, heads, dtype = len(k) if bounds is None else len(bounds) - 1, k.shape[1], _ops.accumulate_dtype(k.dtype)
    C, n, m = (k.new_zeros(rows, heads, *shape, dtype=dtype) for shape in ((k.shape[3], v.shape[3]), (k.shape[3],), ()))
    start = states.nothing(C, n, m) if scaled else MLSTMState(C, n, m)
    given = {"initial_state": start, "return_state": True, "reset": reset}
    _, state = cast(Any, functional.mlstm)(k, k, v, i, f, **given, **packed, **options)
    G = _sums(logsigmoid(f.to(dtype)), bounds)
    if reset is not None:
        G = G.masked_fill(_sums(reset[:, None].to(dtype), bounds) > 0, -torch.inf)
    return Shard(state.C, state.n, state.m, G)


def _sums(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Of x (B, H, S) over the tokens of each row or, packed, sequence: (N, H)."""
    if cu_seqlens is None:
        return x.sum(2)
    lengths = cu_seqlens.diff()
    index = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths.long())
    return x.new_zeros(len(lengths), x.shape[1]).index_add(0, index, x[0].mT)


def _own(cu_seqlens: Tensor, tokens: int, group: ProcessGroup | None) -> Tensor:
    """The bounds within this rank's tokens; sequences of other ranks are empty there."""
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=cu_seqlens.device)
    counts[dist.get_rank(group)] = tokens
    dist.all_reduce(counts, group=group)
    before = int(counts[: dist.get_rank(group)].sum())
    total = int(counts.sum())
    if cu_seqlens.ndim != 1 or int(cu_seqlens[-1]) != total:
        raise ValueError(
            f"distributed.mlstm: cu_seqlens must end with the {total} tokens of all ranks, got {int(cu_seqlens[-1])}"
        )
    return (cu_seqlens - before).clamp(0, tokens).int()
