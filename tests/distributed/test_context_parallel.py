"""Sequences in shards: several processes against one call, values and all gradients, in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.ranks import run_ranks
from xlstm_cuda import MLSTMState, distributed, functional
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
B, H, DQK, DV = 2, 3, 4, 5
SHARDS = ((4, 4, 4, 4), (1, 9, 4, 2), (0, 5, 0, 7), (3, 0, 0, 0))
bound = 1e-10


def inputs(seed: int, shards: tuple[int, ...], batch: int = B, rows: int = B) -> dict[str, Tensor]:
    """Of the whole sequence; gates from mild to strong."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    S = sum(shards)
    found = {name: draw(batch, H, S, D) for name, D in (("q", DQK), ("k", DQK), ("v", DV))}
    found |= {"i": 3 * draw(batch, H, S), "f": 3 * draw(batch, H, S)}
    return found | {"C": draw(rows, H, DQK, DV), "n": draw(rows, H, DQK), "m": draw(rows, H)}


def leaves(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone().requires_grad_() for name, x in given.items()}


def loss(h: Tensor, state: MLSTMState, weights: Tensor, share: float, gate: str) -> Tensor:
    """What a rank adds to the total: its tokens, and a share of the last state, without its scale."""
    C, n = unscaled(state, gate)
    return (h * weights).sum() + share * (C.sum() + 2 * n.sum())


def unscaled(state: MLSTMState, gate: str) -> tuple[Tensor, Tensor]:
    """C and n; with sigmoid gates they have no scale."""
    scale = torch.exp(state.m) if gate == "exp" else torch.ones_like(state.m)
    return state.C * scale[..., None, None], state.n * scale[..., None]


def compare(rank: int, seed: int, shards: tuple[int, ...], options: dict[str, Any]) -> None:
    """This rank's tokens, and its part of the gradients, of one call without ranks."""
    options = dict(options)
    carried, resets, bounds = options.pop("carried"), options.pop("resets"), options.pop("bounds")
    gate = options.get("input_gate", "exp")
    batch, rows = (1, len(bounds) - 1) if bounds else (B, B)
    given, size = inputs(seed, shards, batch, rows), len(shards)
    rng = torch.Generator().manual_seed(seed + 1)
    reset = torch.rand(batch, sum(shards), generator=rng) < 0.2 if resets else None
    if bounds:
        options["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    whole, own = leaves(given), leaves(given)
    weights = torch.randn(batch, H, sum(shards), DV, generator=rng, dtype=torch.float64)
    start = sum(shards[:rank])
    mine = slice(start, start + shards[rank])

    def state_of(x: dict[str, Tensor]) -> MLSTMState | None:
        return MLSTMState(x["C"], x["n"], x["m"]) if carried else None

    tokens = [whole[name] for name in "qkvif"]
    expected_h, expected = functional.mlstm(
        *tokens, initial_state=state_of(whole), return_state=True, reset=reset, **options
    )
    loss(expected_h, expected, weights, 1.0, gate).backward()
    part = [own[name][:, :, mine] for name in "qkvif"]
    own_reset = None if reset is None else reset[:, mine]
    state = state_of(own) if rank == 0 else None
    h, last = distributed.mlstm(*part, initial_state=state, return_state=True, reset=own_reset, **options)
    assert_close_relative(h, expected_h[:, :, mine], bound, "h")
    for name, found_part, wanted_part in zip("Cn", unscaled(last, gate), unscaled(expected, gate), strict=True):
        assert_close_relative(found_part, wanted_part, bound, name)
    assert_close_relative(last.m, expected.m, bound, "m")
    loss(h, last, weights[:, :, mine], 1 / size, gate).backward()
    for name in "qkvif":
        found, wanted = own[name].grad, whole[name].grad
        assert found is not None and wanted is not None
        error = (found - wanted)[:, :, mine].abs().sum() / wanted.abs().max()  # a rank's own part may be nothing
        assert error <= bound, f"{name}: {error:.1e}"
    if carried and rank == 0:
        for name in "Cn":
            found, wanted = own[name].grad, whole[name].grad
            assert found is not None and wanted is not None
            assert_close_relative(found, wanted, bound, name)


def several(rank: int, calls: list[tuple[int, tuple[int, ...], dict[str, Any]]]) -> None:
    for call in calls:
        compare(rank, *call)


def usual(**changed: Any) -> dict[str, Any]:
    return {"carried": False, "resets": False, "bounds": None, **changed}


def every_call(rank: int, seed: int) -> None:
    """States in and out, resets, both gates, packed sequences, shards of all sizes, every gradient."""
    gates = ("exp", "sigmoid")
    several(
        rank,
        [
            (seed + index, shards, usual(carried=carried, resets=resets, input_gate=gate))
            for index, (shards, carried, resets, gate) in enumerate(
                itertools.product(SHARDS, (False, True), (False, True), gates)
            )
        ],
    )
    several(rank, [(seed, shards, usual(input_gate="sigmoid", normalize=False)) for shards in SHARDS])
    # Bounds within shards, at their borders, over several of them; sequences without tokens.
    several(
        rank,
        [
            (seed, (5, 6, 3, 0), usual(bounds=[0, 2, 5, 5, 12, 14], carried=True)),
            (seed, (5, 6, 0, 3), usual(bounds=[0, 14], carried=True, resets=True)),
            (seed, (5, 0, 9, 1), usual(bounds=[0, 0, 5, 9, 15], resets=True)),
        ],
    )
    h_alone(rank, seed)
    wrong_bounds(rank)


def test_mlstm(fresh_seed: int) -> None:
    run_ranks(every_call, fresh_seed % 2**31, world_size=4)


def test_one_rank(fresh_seed: int) -> None:
    run_ranks(several, [(fresh_seed % 2**31, (11,), usual(carried=True))], world_size=1)


def h_alone(rank: int, seed: int) -> None:
    """No rank waits for another in the backward pass, though the first one needs nothing of the others."""
    given = leaves(inputs(seed, (4,) * 4))
    part = [given[name][:, :, 4 * rank : 4 * rank + 4] for name in "qkvif"]
    distributed.mlstm(*part).sum().backward()
    assert all(given[name].grad is not None for name in "qkvif")
    with torch.no_grad():
        assert torch.isfinite(distributed.mlstm(*part)).all()


def convolutions(rank: int, seed: int, shards: tuple[int, ...]) -> None:
    F = 3
    for width, resets, carried in itertools.product((1, 2, 4), (False, True), (False, True)):
        rng = torch.Generator().manual_seed(seed)
        x, weight, first = (
            torch.randn(shape, generator=rng, dtype=torch.float64)
            for shape in ((B, sum(shards), F), (F, width), (B, width - 1, F))
        )
        reset = torch.rand(B, sum(shards), generator=rng) < 0.3 if resets else None
        start = sum(shards[:rank])
        mine = slice(start, start + shards[rank])
        whole, own = x.clone().requires_grad_(), x.clone().requires_grad_()
        state = first if carried else None
        expected, after = functional.causal_conv1d(
            whole, weight, activation="silu", initial_state=state, return_state=True, reset=reset
        )
        own_reset = None if reset is None else reset[:, mine]
        y, last = distributed.causal_conv1d(
            own[:, mine], weight, activation="silu", initial_state=state, return_state=True, reset=own_reset
        )
        assert_close_relative(y, expected[:, mine], bound)
        assert torch.equal(last, after)
        (expected.square().sum() + after.sin().sum()).backward()
        (y.square().sum() + last.sin().sum() / len(shards)).backward()
        assert own.grad is not None and whole.grad is not None
        assert_close_relative(own.grad[:, mine], whole.grad[:, mine], bound)


def every_convolution(rank: int, seed: int) -> None:
    """Shards shorter than the window too."""
    for shards in ((5, 4, 2), (1, 2, 1), (0, 3, 0)):
        convolutions(rank, seed, shards)


def test_convolution(fresh_seed: int) -> None:
    run_ranks(every_convolution, fresh_seed % 2**31, world_size=3)


def wrong_bounds(rank: int) -> None:
    tokens = [torch.randn(1, H, 3, D) for D in (DQK, DQK, DV)] + [torch.randn(1, H, 3) for _ in range(2)]
    with pytest.raises(
        ValueError, match="^distributed.mlstm: cu_seqlens must end with the 12 tokens of all ranks, got 5"
    ):
        distributed.mlstm(*tokens, cu_seqlens=torch.tensor([0, 5], dtype=torch.int32))


def test_refusals() -> None:
    tokens = [torch.randn(1, H, 3, D) for D in (DQK, DQK, DV)] + [torch.randn(1, H, 3) for _ in range(2)]
    with pytest.raises(RuntimeError, match="^distributed.mlstm: needs torch.distributed.init_process_group"):
        distributed.mlstm(*tokens)
    with pytest.raises(RuntimeError, match="^distributed.causal_conv1d: needs torch.distributed.init_process_group"):
        distributed.causal_conv1d(torch.randn(1, 2, 3), torch.randn(3, 2))
