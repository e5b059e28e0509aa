"""The forward pass of the chunkwise mLSTM in one walk, on the host executor, against the recurrence in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.executor import PLAIN, RACE, needs_race_build
from tests.support.mlstm_plain import (
    VARIANTS,
    Plain,
    Problem,
    close,
    error,
    in_whole_pieces,
    packed,
    plain,
    problem,
    with_boundaries,
)
from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops

SOURCES = [
    f"csrc/cuda/mlstm_chunkwise/{name}"
    for name in ("walk_block.h", "walk_consumer.h", "walk_spans.h", "walk_tile.h", "walk_wgmma.cu")
]
TOLERANCE = 1e-2  # relative to the largest value of a tensor
H_TOLERANCE = 4e-3  # relative, Frobenius: of h and r

pytestmark = [pytest.mark.simt, needs_race_build]


@dataclass
class Results:
    h: Tensor
    r: Tensor
    C: Tensor
    n: Tensor
    states: Tensor
    normalisers: Tensor


@dataclass
class Run:
    """One problem, in bfloat16."""

    p: Problem
    x: Plain
    segments: int = 1

    @classmethod
    def of(cls, p: Problem, segments: int = 1) -> Run:
        p = p.in_dtype(torch.bfloat16)
        return cls(p, plain(p), segments)

    def call(self, namespace: str = PLAIN, *, keep: bool = True) -> Results:
        p = self.p
        C, n, m = (None, None, None) if p.initial is None else p.initial
        return Results(
            *_ops.library(namespace).mlstm_walk(
                *map(in_whole_pieces, (p.q, p.k, p.v)),
                *(p.i, p.f, m, p.cu_seqlens, p.reset, C, n),
                *(p.sigmoid_gate, p.normalize, p.scale, p.eps, p.chunk_size, self.segments, keep),
            )
        )

    def check(self, namespace: str = PLAIN) -> Results:
        x, got = self.x, self.call(namespace)
        assert error(got.h, x.h) < H_TOLERANCE, error(got.h, x.h)
        assert error(got.r, x.r) < H_TOLERANCE, error(got.r, x.r)
        close(got.C, x.final[0], TOLERANCE)
        close(got.n, x.final[1], TOLERANCE)
        used = ~x.n[:, :, :, 0].isnan()
        for actual, expected in ((got.states, x.C), (got.normalisers, x.n)):
            close(actual[used], expected[used], TOLERANCE)
            assert actual[~used].isnan().all()  # not written
        return got


def case(S: int = 40, *, B: int = 1, H: int = 1, Dqk: int = 16, Dv: int = 24, **options: Any) -> Problem:
    """eps keeps h well-conditioned where q.n vanishes."""
    resets = options.pop("resets", ())
    p = problem(B, H, S, Dqk, Dv, **{"eps": 1.0, "scale": 0.3, **options})
    if resets:
        p.reset = torch.zeros(B, S, dtype=torch.bool)
        p.reset[-1, list(resets)] = True
    return p


def remembering(p: Problem) -> Problem:
    """With forget gates that let a state reach far beyond a segment."""
    return p.with_(f=p.f + 6)


# ---- shapes and options ----


@pytest.mark.parametrize("S", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 450])
def test_lengths(S: int) -> None:
    for chunk_size in (64, 128, 256) if S in (65, 129, 450) else (128,):
        Run.of(case(S, B=2, H=2, chunk_size=chunk_size, seed=S)).check()


DIMS = [
    (8, 8),
    (5, 16),
    (64, 64),
    (64, 72),
    (65, 64),
    (33, 128),
    (128, 136),
    (129, 8),
    (200, 72),
    (256, 128),
    (256, 264),
]


@pytest.mark.parametrize("Dqk,Dv", DIMS)
def test_head_dims(Dqk: int, Dv: int) -> None:
    """Each instance, one warpgroup and two, slices that are not full, rows that are not whole pieces."""
    Run.of(case(150, Dqk=Dqk, Dv=Dv, scale=Dqk**-0.5, chunk_size=128)).check()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("states", [True, False])
def test_variants(variant: str, states: bool) -> None:
    Run.of(case(200, H=2, Dqk=24, Dv=72, states=states, chunk_size=128, **VARIANTS[variant])).check()


CASES = {
    "eps 0": case(100, eps=0.0, seed=3),
    "resets": case(140, B=2, chunk_size=128, resets=(0, 5, 64, 65, 139)),
    "a reset before every token": case(70, resets=tuple(range(70))),
    "sequences": case(150, H=2, cu_seqlens=packed(0, 1, 69, 1, 0, 79, 0), resets=(20, 71)),
    "sequences, sigmoid": case(70, cu_seqlens=packed(30, 40), sigmoid_gate=True, chunk_size=256),
    "one long sequence": case(140, cu_seqlens=packed(140), chunk_size=128),
    "negative scale": case(70, seed=5, scale=-0.5),
}


@pytest.mark.parametrize("p", CASES.values(), ids=CASES.keys())
def test_cases(p: Problem) -> None:
    Run.of(p).check()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rate", [0.004, 0.03, 0.5])
def test_boundaries(rate: float, variant: str) -> None:
    """Resets, zero forget gates, and both."""
    p = case(200, B=2, Dv=72, chunk_size=128, **VARIANTS[variant])
    Run.of(with_boundaries(p, rate)).check()


def test_extreme_gates() -> None:
    for i, f in ((40, 20), (-40, -5), (40, -20)):
        p = case(130)
        Run.of(p.with_(i=p.i + i, f=p.f + f)).check()


def test_states_are_stored_where_they_are_wanted() -> None:
    run = Run.of(case(200, Dv=72))
    kept, not_kept = run.call(), run.call(keep=False)
    for name in ("h", "r", "C", "n"):
        assert torch.equal(getattr(kept, name), getattr(not_kept, name))
    assert not_kept.states.isnan().all() and not_kept.normalisers.isnan().all()


def test_results_do_not_depend_on_chunks() -> None:
    p = case(300, B=2, Dv=72).in_dtype(torch.bfloat16)
    results = [Run(p.with_(chunk_size=size), plain(case(0))).call() for size in (64, 128, 256)]
    for got in results[1:]:
        assert error(got.h, results[0].h.double()) < 1e-3 and error(got.C, results[0].C.double()) < 1e-4


def test_layouts() -> None:
    run = Run.of(case(70, B=2, H=2, Dqk=16, Dv=40))
    p, expected = run.p, run.call()
    moved = {name: getattr(p, name).transpose(1, 2).contiguous().transpose(1, 2) for name in ("q", "k", "v")}
    assert torch.equal(Run(p.with_(**moved), run.x).call().h, expected.h)


# ---- segments ----


@pytest.mark.parametrize("segments", [2, 16])
def test_segments(segments: int) -> None:
    """Also with fewer chunks than segments."""
    Run.of(remembering(case(600, B=2, Dqk=24, Dv=72)), segments).check()
    Run.of(with_boundaries(remembering(case(450, H=2)), 0.01), segments).check()
    cu = packed(0, 5, 0, 64, 330, 1, 130, 1, 0)
    Run.of(remembering(case(int(cu[-1]), H=2, cu_seqlens=cu, sigmoid_gate=True)), segments).check()


def test_segments_of_wide_heads() -> None:
    Run.of(remembering(case(300, Dqk=256, Dv=136, scale=0.06)), 3).check()


# ---- what reaches a token ----


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["q", "k", "v", "i", "f"])
def test_what_is_not_finite_reaches_later_tokens_only(name: str, bad: float) -> None:
    """In the first, a middle and the last token of a span; up to a reset. Its own h is what the recurrence says."""
    if (name, bad) == ("f", torch.inf):
        return  # a forget gate of 1
    S, reset = 200, 150
    p = case(S, Dqk=24, Dv=72, chunk_size=128, resets=(reset,))
    run = Run.of(p)
    clean = run.call()
    for token in (64, 100, 127):
        x = getattr(run.p, name).clone()
        x[:, :, token, ...] = bad
        got = Run(run.p.with_(**{name: x}), run.x).call()
        rest = [t for t in range(S) if not token <= t < (token + 1 if name == "q" else reset)]
        assert error(got.h[:, :, rest], clean.h[:, :, rest].double()) < 1e-3, token
        if name in ("q", "k", "v") or bad != bad:
            assert not got.h[:, :, token].isfinite().any()


def test_one_value_that_is_not_finite() -> None:
    """Columns of h beside it do not change."""
    check_one_value_that_is_not_finite(PLAIN)


def check_one_value_that_is_not_finite(namespace: str) -> None:
    run = Run.of(case(130, Dqk=24, Dv=72))
    v = run.p.v.clone()
    v[0, 0, 70, 9] = torch.inf
    got, clean = Run(run.p.with_(v=v), run.x).call(namespace), run.call(namespace)
    beside = [column for column in range(72) if column != 9]
    assert torch.equal(got.h[..., beside], clean.h[..., beside])
    assert torch.equal(got.h[:, :, :70], clean.h[:, :, :70])
    assert not got.h[:, :, 70:, 9].isfinite().any()


def test_nan_of_the_next_sequence() -> None:
    """Its tokens follow in memory, where the last span of a sequence is not full."""
    check_nan_of_the_next_sequence(PLAIN)


def check_nan_of_the_next_sequence(namespace: str) -> None:
    run = Run.of(case(150, Dqk=72, Dv=40, cu_seqlens=packed(70, 80)))
    clean = run.call(namespace)
    spoilt = {name: getattr(run.p, name).clone() for name in ("q", "k", "v", "i", "f")}
    for x in spoilt.values():
        x[:, :, 70:] = torch.nan
    got = Run(run.p.with_(**spoilt), run.x).call(namespace)
    assert torch.equal(got.h[:, :, :70], clean.h[:, :, :70])
    assert torch.equal(got.C[0], clean.C[0]) and torch.equal(got.n[0], clean.n[0])


def test_a_state_that_is_not_finite_stays_before_a_reset() -> None:
    run = Run.of(case(200, Dqk=24, Dv=72, resets=(90,)))
    assert run.p.initial is not None
    C, n, m = run.p.initial
    spoilt = Run(run.p.with_(initial=(C * torch.nan, n * torch.inf, m)), run.x)
    for segments in (1, 3):
        spoilt.segments = run.segments = segments
        got, clean = spoilt.call(), run.call()
        assert torch.equal(got.h[:, :, 90:], clean.h[:, :, 90:]) and torch.equal(got.C, clean.C)
        assert not got.h[:, :, :90].isfinite().any()


# ---- races and planted faults ----


def races() -> list[Run]:
    """Stages come round; one warpgroup, two, and slices of both; spans that boundaries cut; segments."""
    return [
        Run.of(case(300, Dqk=20, Dv=40, chunk_size=128, resets=(70,))),
        Run.of(case(330, Dqk=72, Dv=136, chunk_size=128, resets=(10, 200))),
        Run.of(remembering(case(260, Dqk=136, Dv=72, scale=0.1, cu_seqlens=packed(30, 230))), 2),
    ]


@pytest.fixture(scope="module")
def raced() -> list[Run]:
    return races()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_without_races(seed: int, raced: list[Run]) -> None:
    with simt_options(RACE, seed=seed):
        for run in raced:
            run.check(RACE)


def test_schedule_does_not_matter(raced: list[Run]) -> None:
    for run in raced:
        expected = run.call()
        for seed in (1, 7):
            with simt_options(PLAIN, seed=seed):
                got = run.call()
            for name, x in vars(expected).items():
                assert torch.equal(getattr(got, name).nan_to_num(), x.nan_to_num()), name


FAULTS = {
    "mlstm_walk: a NaN reaches earlier tokens",
    "mlstm_walk: a stage is filled while it is read",
    "mlstm_walk: a stage is read before it is filled",
    "mlstm_walk: a tile is overwritten while it is stored",
    "mlstm_walk: a tile is stored before it is there",
    "mlstm_walk: a token does not see itself",
    "mlstm_walk: boundaries ignored",
    "mlstm_walk: n is read before it is there",
    "mlstm_walk: scores are read before they are there",
    "mlstm_walk: the state does not decay",
    "mlstm_walk: tokens past the span are kept",
}


def test_planted_faults_are_listed() -> None:
    assert set.union(*map(planted, SOURCES)) == FAULTS


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_planted_faults_are_caught(fault: str, seed: int, raced: list[Run]) -> None:
    def call() -> None:
        for run in raced[:2]:
            run.check(RACE)
        check_nan_of_the_next_sequence(RACE)
        if "NaN" in fault:
            check_one_value_that_is_not_finite(RACE)

    assert caught(fault, seed, call)
