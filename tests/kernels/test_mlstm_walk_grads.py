"""dq, dk and dv of the chunkwise mLSTM, each in one walk, on the host executor, against autograd of the recurrence."""

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
    normaliser_factors,
    packed,
    plain,
    problem,
    with_boundaries,
)
from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops

pytestmark = [pytest.mark.simt, needs_race_build]
OUTPUTS = ("dq", "dk", "dv")
TOLERANCE = 6e-3  # relative, Frobenius
FOLDER = "csrc/cuda/mlstm_chunkwise/"
OWN_SOURCES = [FOLDER + name for name in ("walk_grads.cu", "walk_grads_consumer.h", "walk_grad_spans.h")]
SHARED_SOURCES = [FOLDER + name for name in ("walk_block.h", "walk_tile.h")]  # with the forward walk
X_OF = {"dq": "dh", "dk": "v", "dv": "k"}
Y_OF = {"dq": "v", "dk": "dh", "dv": "q"}
Z_OF = {"dq": "k", "dk": "q", "dv": "dh"}


@dataclass
class Results:
    out: Tensor
    row_sums: Tensor
    C: Tensor
    n: Tensor
    chunk_dots: Tensor
    start_dots: Tensor


@dataclass
class Run:
    p: Problem
    x: Plain
    segments: int = 1

    @classmethod
    def of(cls, p: Problem, segments: int = 1) -> Run:
        p = p.in_dtype(torch.bfloat16)
        return cls(p, plain(p), segments)

    def call(self, output: str, namespace: str = PLAIN) -> Results:
        p, x = self.p, self.x
        iota, rho, _ = normaliser_factors(p, x)
        initial = (None, None) if p.initial is None else tuple(s.float() for s in p.initial[:2])
        final = (None, None) if p.final_grad is None else tuple(s.float() for s in p.final_grad[:2])
        forward = (x.C.bfloat16(), x.n.float(), x.final[0].float(), x.final[1].float())
        return Results(
            *_ops.library(namespace).mlstm_walk_grads(
                _ops.OUTPUTS[output],
                *map(in_whole_pieces, (p.q, p.k, p.v, p.dh)),
                *(p.i, p.f, None if p.initial is None else p.initial[2], p.cu_seqlens, p.reset),
                *(iota.float(), rho.float()),
                *(initial if output == "dq" else final),
                *forward,
                *initial,
                *(p.sigmoid_gate, p.scale, p.chunk_size, self.segments),
            )
        )

    def check(self, output: str, namespace: str = PLAIN) -> None:
        x, got = self.x, self.call(output, namespace)
        expected = getattr(x, output)
        assert error(got.out, expected) < TOLERANCE, (output, error(got.out, expected))
        if output != "dv":
            factor = getattr(self.p, output[1]).double()
            sizes = factor.norm(dim=-1) * expected.norm(dim=-1)
            assert error(got.row_sums.sum(2), (factor * expected).sum(-1), sizes) < TOLERANCE
        if output == "dk":
            close(got.C, x.d_initial[0], 1e-2)
            close(got.n, x.d_initial[1], 1e-2)
            self.check_dots(got)

    def check_all(self, namespace: str = PLAIN) -> None:
        for output in OUTPUTS:
            self.check(output, namespace)

    def check_dots(self, got: Results) -> None:
        x, p = self.x, self.p
        used = ~x.n[:, :, :, 0].isnan()
        initial = (torch.zeros(()), torch.zeros(())) if p.initial is None else p.initial[:2]
        starts = (x.d_initial[0], initial[0], x.d_initial[1], initial[1])
        for actual, (dC, C, dn, n), where in (
            (got.chunk_dots, (x.dC, x.C_end, x.dn, x.n_end), used),
            (got.start_dots, starts, torch.ones(got.start_dots.shape[:2], dtype=torch.bool)),
        ):
            expected = (dC * C).sum((-2, -1)) + (dn * n).sum(-1)
            size = dC.square().sum((-2, -1)) * (C + 0 * dC).square().sum((-2, -1))
            size = size + dn.square().sum(-1) * (n + 0 * dn).square().sum(-1)
            difference = (actual.double().sum(-1) - expected).abs() / size.sqrt().clamp(min=1)
            assert (difference[where] < 1e-2).all()
            assert actual[~where].isnan().all()


def case(S: int = 40, *, B: int = 1, H: int = 1, Dqk: int = 16, Dv: int = 24, **options: Any) -> Problem:
    resets = options.pop("resets", ())
    p = problem(B, H, S, Dqk, Dv, **{"eps": 1.0, "scale": 0.3, **options})
    if resets:
        p.reset = torch.zeros(B, S, dtype=torch.bool)
        p.reset[-1, list(resets)] = True
    return p


@pytest.mark.parametrize("S", [1, 15, 63, 64, 65, 127, 128, 129, 200])
def test_lengths(S: int) -> None:
    for chunk_size in (64, 128, 256) if S == 200 else (128,):
        Run.of(case(S, B=2, H=2, chunk_size=chunk_size, seed=S)).check_all()


@pytest.mark.parametrize("Dqk,Dv", [(8, 8), (64, 64), (64, 72), (72, 64), (136, 256), (256, 128), (8, 136)])
def test_head_dims(Dqk: int, Dv: int) -> None:
    Run.of(case(150, Dqk=Dqk, Dv=Dv, scale=Dqk**-0.5, chunk_size=128)).check_all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("states", [True, False])
def test_variants(variant: str, states: bool) -> None:
    Run.of(case(200, H=2, Dqk=24, Dv=72, states=states, chunk_size=128, **VARIANTS[variant])).check_all()


CASES = {
    "resets": case(140, B=2, chunk_size=128, resets=(0, 5, 64, 65, 139)),
    "a reset before every token": case(70, resets=tuple(range(70))),
    "sequences": case(150, H=2, cu_seqlens=packed(0, 1, 69, 1, 0, 79, 0), resets=(20, 71)),
    "long chunks": case(330, H=2, chunk_size=256, resets=(100, 257)),
    "sequences, sigmoid": case(70, cu_seqlens=packed(30, 40), sigmoid_gate=True, chunk_size=256),
}


@pytest.mark.parametrize("p", CASES.values(), ids=CASES.keys())
def test_cases(p: Problem) -> None:
    Run.of(p).check_all()


@pytest.mark.parametrize("rate", [0.004, 0.03, 0.5])
def test_boundaries(rate: float) -> None:
    Run.of(with_boundaries(case(200, B=2, Dv=72, chunk_size=128), rate)).check_all()


def test_layouts() -> None:
    run = Run.of(case(70, B=2, H=2, Dqk=16, Dv=40))
    moved = {name: getattr(run.p, name).transpose(1, 2).contiguous().transpose(1, 2) for name in ("q", "k", "v", "dh")}
    for output in OUTPUTS:
        assert torch.equal(Run(run.p.with_(**moved), run.x).call(output).out, run.call(output).out)


@pytest.mark.parametrize("segments", [2, 16])
def test_segments(segments: int) -> None:
    p = case(330, Dqk=24, Dv=72)
    Run.of(with_boundaries(p.with_(f=p.f + 6), 0.003), segments).check_all()


# ---- what reaches a token ----


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("of", [X_OF, Y_OF, Z_OF], ids=["X", "Y", "Z"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_what_is_not_finite_reaches_its_side_only(output: str, of: dict[str, str], bad: float) -> None:
    """In the first, a middle and the last token of a span, also of one that begins at a reset; between two resets."""
    S, resets = 300, (50, 250)
    run = Run.of(case(S, Dqk=24, Dv=72, chunk_size=128, resets=resets))
    clean = run.call(output).out
    for token in (50, 55, 63, 64, 100, 127, 249):
        x = getattr(run.p, of[output]).clone()
        x[:, :, token] = bad
        got = Run(run.p.with_(**{of[output]: x}), run.x).call(output).out
        reached = range(token, resets[1]) if output == "dq" else range(resets[0], token + 1)
        rest = [t for t in range(S) if (t not in reached if of is not X_OF else t != token)]
        assert error(got[:, :, rest], clean[:, :, rest].double()) < 1e-3, token
        assert not got[:, :, token].isfinite().any()


@pytest.mark.parametrize("output", OUTPUTS)
def test_one_value_that_is_not_finite(output: str) -> None:
    """Columns beside it do not change."""
    check_one_value_that_is_not_finite(output, PLAIN)


def check_one_value_that_is_not_finite(output: str, namespace: str) -> None:
    run = Run.of(case(130, Dqk=72, Dv=72))
    z = getattr(run.p, Z_OF[output]).clone()
    z[0, 0, 70, 9] = torch.inf
    got = Run(run.p.with_(**{Z_OF[output]: z}), run.x).call(output, namespace).out
    clean = run.call(output, namespace).out
    beside = [column for column in range(72) if column != 9]
    reached = slice(70, None) if output == "dq" else slice(None, 71)
    others = slice(None, 70) if output == "dq" else slice(71, None)
    assert torch.equal(got[..., beside], clean[..., beside])
    assert torch.equal(got[:, :, others], clean[:, :, others])
    assert not got[:, :, reached, 9].isfinite().any()


@pytest.mark.parametrize("output", OUTPUTS)
def test_nan_of_another_sequence(output: str) -> None:
    """Its tokens lie before and behind, in the same 64 that TMA brings."""
    check_nan_of_another_sequence(output, PLAIN)


def check_nan_of_another_sequence(output: str, namespace: str) -> None:
    run = Run.of(case(150, Dqk=72, Dv=40, cu_seqlens=packed(70, 80)))
    clean = run.call(output, namespace)
    for spoilt, rest in ((slice(70, None), slice(None, 70)), (slice(None, 70), slice(70, None))):
        inputs = {name: getattr(run.p, name).clone() for name in ("q", "k", "v", "dh", "i", "f")}
        for x in inputs.values():
            x[:, :, spoilt] = torch.nan
        got = Run(run.p.with_(**inputs), run.x).call(output, namespace)
        assert torch.equal(got.out[:, :, rest], clean.out[:, :, rest])
        if output != "dv":
            assert torch.equal(got.row_sums[..., rest], clean.row_sums[..., rest])


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_state_that_is_not_finite_stays_behind_a_reset(output: str) -> None:
    run = Run.of(case(200, Dqk=24, Dv=72, resets=(90,)))
    assert run.p.initial is not None and run.p.final_grad is not None
    (C, n, m), (dC, dn, dm) = run.p.initial, run.p.final_grad
    spoilt = Run(run.p.with_(initial=(C * torch.nan, n * torch.inf, m), final_grad=(dC * torch.nan, dn, dm)), run.x)
    reached, rest = (slice(None, 90), slice(90, None)) if output == "dq" else (slice(90, None), slice(None, 90))
    for segments in (1, 3):
        spoilt.segments = run.segments = segments
        got, clean = spoilt.call(output).out, run.call(output).out
        assert torch.equal(got[:, :, rest], clean[:, :, rest])
        assert not got[:, :, reached].isfinite().any()


@pytest.mark.parametrize("name", ["q", "dh"])
def test_what_is_not_finite_reaches_no_state_before_a_reset(name: str) -> None:
    """Nor the dots at the ends of chunks there."""
    check_no_state_before_a_reset(name, PLAIN)


def check_no_state_before_a_reset(name: str, namespace: str) -> None:
    for reset in (55, 64, 128):  # inside of 64 tokens, between them, and between chunks
        run = Run.of(case(300, Dqk=24, Dv=72, chunk_size=128, resets=(reset,)))
        x = getattr(run.p, name).clone()
        x[:, :, reset] = torch.nan
        got, clean = Run(run.p.with_(**{name: x}), run.x).call("dk", namespace), run.call("dk", namespace)
        for of in ("C", "n", "start_dots"):
            assert torch.equal(getattr(got, of), getattr(clean, of)), (of, reset)
        assert got.chunk_dots[:, :, : reset // 128].isfinite().all()


# ---- races and planted faults ----


def races() -> list[Run]:
    """Stages come round; one warpgroup, two, and slices of both; spans that boundaries cut; segments."""
    return [
        Run.of(case(300, Dqk=24, Dv=40, chunk_size=128, resets=(70,))),
        Run.of(case(330, Dqk=72, Dv=136, chunk_size=128, resets=(10, 200))),
        Run.of(case(260, Dqk=136, Dv=72, scale=0.1, cu_seqlens=packed(30, 230)), 2),
    ]


@pytest.fixture(scope="module")
def raced() -> list[Run]:
    return races()


@pytest.mark.parametrize("seed", [1, 2])
def test_without_races(seed: int, raced: list[Run]) -> None:
    with simt_options(RACE, seed=seed):
        for run in raced:
            run.check_all(RACE)


@pytest.mark.parametrize("output", OUTPUTS)
def test_schedule_does_not_matter(output: str, raced: list[Run]) -> None:
    for run in raced[:2]:
        expected = run.call(output)
        with simt_options(PLAIN, seed=7):
            got = run.call(output)
        for name, x in vars(expected).items():
            assert torch.equal(getattr(got, name).nan_to_num(), x.nan_to_num()), name


OWN_FAULTS = {
    "mlstm_walk_grads: a NaN crosses a boundary",
    "mlstm_walk_grads: boundaries ignored",
    "mlstm_walk_grads: factors are read before they are there",
    "mlstm_walk_grads: gates are read before they are there",
}


def test_planted_faults_are_listed() -> None:
    assert set.union(*map(planted, OWN_SOURCES)) == OWN_FAULTS


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fault", sorted(OWN_FAULTS | set.union(*map(planted, SHARED_SOURCES))))
def test_planted_faults_are_caught(fault: str, seed: int, raced: list[Run]) -> None:
    """By one of the three walks."""

    def call() -> None:
        for output in OUTPUTS:
            for run in raced[:2]:
                run.check(output, RACE)
            check_nan_of_another_sequence(output, RACE)
            if "NaN" in fault:
                check_one_value_that_is_not_finite(output, RACE)
                check_no_state_before_a_reset("dh", RACE)

    assert caught(fault, seed, call)
