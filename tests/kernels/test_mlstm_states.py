"""The states between the chunks of the mLSTM on a CUDA kernel, run by the host executor, against the recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.support.against_reference import check
from tests.support.executor import EXECUTOR, PLAIN, RACE, needs_race_build
from tests.support.mlstm_plain import (
    VARIANTS,
    Plain,
    Problem,
    close,
    in_whole_pieces,
    normaliser_factors,
    packed,
    plain,
    problem,
    with_boundaries,
)
from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops, mlstm
from xlstm_cuda.testing import mlstm_inputs

SOURCES = [f"csrc/cuda/mlstm_chunkwise/{name}" for name in ("states.cu", "states_block.h", "states_wgmma.cu")]
FAULTS = {
    "mlstm_states: boundaries ignored",
    "mlstm_states: dots with the state before a chunk",
    "mlstm_states: no barrier before the dots of warps",
    "mlstm_states: no barrier between steps",
    "mlstm_states: one copy too many in flight",
    "mlstm_states: stage overwritten while it is read",
    "mlstm_states: the state decays before it is stored",
    "mlstm_states: weights overwritten while they are read",
}
WGMMA_FAULTS = {
    "mlstm_states_wgmma: a stage is filled while it is read",
    "mlstm_states_wgmma: a stage is read before it is filled",
    "mlstm_states_wgmma: no barrier before weights are read",
    "mlstm_states_wgmma: tokens past the span are kept",
    "mlstm_states_wgmma: weights overwritten while they are read",
}
SEGMENT_FAULTS = {
    "mlstm_states: a NaN crosses the boundary of a segment",
    "mlstm_states: a segment by itself starts from the sequence's start",
    "mlstm_states: every segment stores the end",
    "mlstm_states: no decay over a segment",
    "mlstm_states: segments in the wrong order",
}

# Of a product: its data, and errors relative to the largest value of a tensor.
PRODUCTS = {
    "f64": (torch.float64, 1e-11),
    "tf32x3": (torch.float32, 1e-5),
    "tf32": (torch.float32, 2e-3),
    "tf32 of f16": (torch.float16, 2e-3),
    "bf16": (torch.bfloat16, 1e-2),
    "wgmma": (torch.bfloat16, 1e-2),  # the kernel of compute capability 9.0; the others are those of mma
}
MMA, WGMMA = 0, 1

pytestmark = [pytest.mark.simt, needs_race_build]
products = pytest.mark.parametrize("product", PRODUCTS)
variants = pytest.mark.parametrize("variant", VARIANTS)


@dataclass
class Results:
    states: Tensor
    normalisers: Tensor
    C: Tensor
    n: Tensor
    chunk_dots: Tensor
    start_dots: Tensor


@dataclass
class Run:
    """One problem in the data type of a product."""

    product: str
    p: Problem
    x: Plain
    segments: int = 1

    @classmethod
    def of(cls, product: str, p: Problem, segments: int = 1) -> Run:
        p = p.in_dtype(PRODUCTS[product][0])
        return cls(product, p, plain(p), segments)

    @property
    def A(self) -> torch.dtype:
        return torch.float64 if self.product == "f64" else torch.float32

    def call(self, namespace: str, rows: Tensor, columns: Tensor, *rest: Tensor | None) -> Results:
        p = self.p
        m0 = None if p.initial is None else p.initial[2]
        wide = (None if x is None else x if x.dtype == torch.bfloat16 else x.to(self.A) for x in rest)
        wgmma = self.product == "wgmma"
        results = _ops.library(namespace).mlstm_states(
            *(map(in_whole_pieces, (rows, columns)) if wgmma else (rows, columns)),
            p.i,
            p.f,
            m0,
            p.cu_seqlens,
            p.reset,
            *wide,
            p.sigmoid_gate,
            p.scale,
            p.chunk_size,
            _ops.PRODUCTS["bf16" if wgmma else self.product.split()[0]],
            self.segments,
            WGMMA if wgmma else MMA,
        )
        return Results(*results)

    def forward(self, namespace: str = PLAIN) -> Results:
        start = (None, None) if self.p.initial is None else self.p.initial[:2]
        return self.call(namespace, self.p.k, self.p.v, *start, *[None] * 8)

    def backward(self, forward: Results, namespace: str = PLAIN) -> Results:
        p = self.p
        iota, rho, _ = normaliser_factors(p, self.x)
        start = (None, None) if p.final_grad is None else p.final_grad[:2]
        initial = (None, None) if p.initial is None else p.initial[:2]
        done = (forward.states, forward.normalisers, forward.C, forward.n)
        return self.call(namespace, p.q, p.dh, *start, iota, rho, *done, *initial)

    def check(self, namespace: str = PLAIN) -> tuple[Results, Results]:
        x, tolerance = self.x, PRODUCTS[self.product][1]
        forward = self.forward(namespace)
        used = ~x.n[:, :, :, 0].isnan()
        for actual, expected in ((forward.states, x.C), (forward.normalisers, x.n)):
            close(actual[used], expected[used], tolerance)
            assert actual[~used].isnan().all()  # not written
        close(forward.C, x.final[0], tolerance)
        close(forward.n, x.final[1], tolerance)
        backward = self.backward(forward, namespace)
        for actual, expected in ((backward.states, x.dC), (backward.normalisers, x.dn)):
            close(actual[used], expected[used], tolerance)
            assert actual[~used].isnan().all()
        close(backward.C, x.d_initial[0], tolerance)
        close(backward.n, x.d_initial[1], tolerance)
        self.check_dots(backward, used, tolerance)
        return forward, backward

    def check_dots(self, backward: Results, used: Tensor, tolerance: float) -> None:
        """Relative to the product of norms."""
        x, p = self.x, self.p
        initial = (torch.zeros(()), torch.zeros(())) if p.initial is None else p.initial[:2]
        starts = (x.d_initial[0], initial[0], x.d_initial[1], initial[1])
        for actual, (dC, C, dn, n), where in (
            (backward.chunk_dots, (x.dC, x.C_end, x.dn, x.n_end), used),
            (backward.start_dots, starts, torch.ones(backward.start_dots.shape[:2], dtype=torch.bool)),
        ):
            expected = (dC * C).sum((-2, -1)) + (dn * n).sum(-1)
            size = dC.square().sum((-2, -1)) * (C + 0 * dC).square().sum((-2, -1))
            size = size + dn.square().sum(-1) * (n + 0 * dn).square().sum(-1)
            error = (actual.double().sum(-1) - expected).abs() / size.sqrt().clamp(min=1)
            assert (error[where] < tolerance).all()
            assert actual[~where].isnan().all()


def assert_same(actual: Results, expected: Results) -> None:
    for name, x in vars(expected).items():
        assert torch.equal(getattr(actual, name).nan_to_num(), x.nan_to_num()), name


# ---- tests ----


@products
@pytest.mark.parametrize("S", [1, 15, 63, 64, 65, 130])
def test_lengths(S: int, product: str) -> None:
    Run.of(product, problem(1, 2, S, 5, 7, seed=S)).check()


@products
@pytest.mark.parametrize("Dqk,Dv", [(33, 65), (64, 64), (65, 128), (128, 33), (7, 130)])
def test_head_dims(Dqk: int, Dv: int, product: str) -> None:
    Run.of(product, problem(1, 1, 70, Dqk, Dv)).check()


@variants
@pytest.mark.parametrize("chunk_size", [64, 128, 256])
def test_chunk_sizes(chunk_size: int, variant: str) -> None:
    for S in (257, 600) if variant == "exp" else (257,):
        Run.of("f64", problem(1, 1, S, 5, 7, chunk_size=chunk_size, **VARIANTS[variant])).check()


@products
@variants
def test_variants(variant: str, product: str) -> None:
    for states in (False, True):
        Run.of(product, problem(2, 1, 100, 8, 16, states=states, eps=0.1, **VARIANTS[variant])).check()


def test_no_gradient_of_the_denominator() -> None:
    Run.of("f64", problem(2, 1, 100, 8, 16, norm_grad=False)).check()


@pytest.mark.parametrize("product", ["f64", "bf16", "wgmma"])
@variants
@pytest.mark.parametrize("rate", [0.004, 0.03, 0.5])
def test_boundaries(rate: float, variant: str, product: str) -> None:
    p = problem(2, 2, 200, 5, 7, chunk_size=128 if rate < 0.01 else 64, **VARIANTS[variant])
    Run.of(product, with_boundaries(p, rate)).check()


@pytest.mark.parametrize("product", ["f64", "tf32"])
def test_packed_sequences(product: str) -> None:
    cu = packed(0, 5, 0, 64, 64, 1, 130, 1, 0)
    for states in (True, False):
        p = problem(1, 2, int(cu[-1]), 5, 7, cu_seqlens=cu, states=states)
        Run.of(product, p).check()
    Run.of(product, with_boundaries(p, 0.02)).check()


def test_no_tokens() -> None:
    for states in (True, False):
        for cu in (None, packed(0, 0)):
            Run.of("f64", problem(2 if cu is None else 1, 2, 0, 5, 7, cu_seqlens=cu, states=states)).check()


@products
def test_strides(product: str) -> None:
    """Tokens before heads, rows that start between two vectors, every other row."""
    run = Run.of(product, problem(1, 2, 70, 64, 72))
    expected = run.check()

    def tokens_first(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def misaligned(x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x], -1)[..., 1:]

    def every_other(x: Tensor) -> Tensor:
        return torch.stack([x * torch.nan, x], 3).flatten(2, 3)[:, :, 1::2]

    p = run.p
    for layout in (tokens_first, misaligned, every_other):
        run.p = p.with_(q=layout(p.q), k=layout(p.k), v=layout(p.v), dh=layout(p.dh))
        forward = run.forward()
        for actual, wanted in zip((forward, run.backward(forward)), expected, strict=True):
            assert_same(actual, wanted)


@pytest.mark.parametrize("product", ["f64", "bf16", "wgmma"])
def test_nan_does_not_cross_a_boundary(product: str) -> None:
    p = problem(1, 1, 100, 8, 8)
    reset = torch.zeros(1, 100, dtype=torch.bool)
    reset[0, 70] = True
    p = p.with_(reset=reset)
    run = Run.of(product, p)
    before = {name: getattr(run.p, name).clone() for name in ("k", "v")}
    after = {name: getattr(run.p, name).clone() for name in ("q", "dh")}
    for x in before.values():
        x[:, :, 64:70] = torch.nan
    for x in after.values():
        x[:, :, 70:] = torch.nan
    forward = run.forward()
    clean = run.backward(forward)
    run.p = run.p.with_(**before, **after)
    assert torch.equal(run.forward().C, forward.C)
    for name in ("states", "normalisers", "C", "n"):
        assert torch.equal(getattr(run.backward(forward), name), getattr(clean, name)), name


def check_nan_of_the_next_sequence(product: str, namespace: str = PLAIN) -> None:
    """Its tokens follow in memory, where the last span of a sequence is not full."""
    run = Run.of(product, problem(1, 1, 150, 72, 40, cu_seqlens=packed(70, 80)))
    clean = run.forward(namespace)
    k, v = run.p.k.clone(), run.p.v.clone()
    k[:, :, 70:] = v[:, :, 70:] = torch.nan
    run.p = run.p.with_(k=k, v=v)
    foreign = run.forward(namespace)
    assert torch.equal(foreign.C[0], clean.C[0]) and torch.equal(foreign.n[0], clean.n[0])


@products
def test_nan_of_the_next_sequence(product: str) -> None:
    check_nan_of_the_next_sequence(product)


@products
def test_extreme_gates(product: str) -> None:
    for i, f in ((40, 20), (-40, -5), (40, -20)):
        p = problem(1, 1, 130, 5, 7)
        Run.of(product, p.with_(i=p.i + i, f=p.f + f)).check()


# ---- sequences in segments ----

UNKNOWN = plain(problem(1, 1, 0))  # of runs that are compared with each other


def check_segments(run: Run) -> None:
    for run.segments in (3, 16):
        run.check()


def remembering(p: Problem) -> Problem:
    """With forget gates that let a state reach far beyond a segment."""
    return p.with_(f=p.f + 6)


def at_tokens(S: int, *tokens: int) -> Tensor:
    """Resets before these tokens of one batch row."""
    return torch.zeros(1, S, dtype=torch.bool).index_fill(1, torch.tensor(tokens), True)


@products
@pytest.mark.parametrize("states", [True, False])
def test_segments(states: bool, product: str) -> None:
    """Ten chunks: also with fewer chunks than segments."""
    check_segments(Run.of(product, remembering(problem(2, 1, 600, 5, 7, states=states))))


@variants
def test_segments_of_variants(variant: str) -> None:
    for chunk_size in (64, 128):
        p = remembering(problem(1, 2, 600, 5, 7, chunk_size=chunk_size, **VARIANTS[variant]))
        Run.of("f64", p, 3).check()


@products
@pytest.mark.parametrize("Dqk,Dv", [(33, 65), (65, 128), (7, 130)])
def test_segments_of_several_tiles(Dqk: int, Dv: int, product: str) -> None:
    Run.of(product, remembering(problem(1, 1, 200, Dqk, Dv)), 3).check()


@pytest.mark.parametrize("product", ["f64", "bf16", "wgmma"])
@pytest.mark.parametrize("rate", [0.002, 0.03])
def test_boundaries_in_segments(rate: float, product: str) -> None:
    check_segments(Run.of(product, with_boundaries(remembering(problem(2, 2, 450, 5, 7)), rate)))


@pytest.mark.parametrize("token", [0, 63, 64, 191, 192, 193, 255, 383, 384, 449])
def test_boundary_at_the_end_of_a_segment(token: int) -> None:
    """Three segments of up to three chunks."""
    p = remembering(problem(1, 1, 450, 5, 7))
    Run.of("f64", p.with_(reset=at_tokens(450, token)), 3).check()


@pytest.mark.parametrize("product", ["f64", "tf32"])
def test_packed_sequences_in_segments(product: str) -> None:
    """Also sequences without tokens, and with fewer chunks than segments."""
    cu = packed(0, 5, 0, 64, 330, 1, 130, 1, 0)
    for states in (True, False):
        p = remembering(problem(1, 2, int(cu[-1]), 5, 7, cu_seqlens=cu, states=states))
        check_segments(Run.of(product, p))
    check_segments(Run.of(product, with_boundaries(p, 0.01)))


def test_segments_without_tokens() -> None:
    for cu in (None, packed(0, 0)):
        Run.of("f64", problem(2 if cu is None else 1, 2, 0, 5, 7, cu_seqlens=cu), 3).check()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("product", ["f64", "bf16", "wgmma"])
def test_nothing_crosses_a_boundary_in_a_segment(product: str, bad: float) -> None:
    """Not from tokens of the segment nor from those before it, nor from the states at the sequence's ends."""
    p = remembering(problem(1, 1, 450, 8, 8)).with_(reset=at_tokens(450, 230))
    run = Run.of(product, p, 3)
    clean_forward = run.forward()
    clean = run.backward(clean_forward)
    for chunk in (1, 3):  # the boundary is in the fourth one, in the second segment
        spoilt = {name: getattr(run.p, name).clone() for name in ("k", "v", "q", "dh")}
        for name in ("k", "v"):
            spoilt[name][:, :, 64 * chunk : 64 * chunk + 20] = bad
        for name in ("q", "dh"):
            spoilt[name][:, :, 450 - 20 * chunk :] = bad
        initial, final_grad = (tuple(x + bad for x in state[:2]) + state[2:] for state in (p.initial, p.final_grad))
        other = Run(product, run.p.with_(**spoilt, initial=initial, final_grad=final_grad), run.x, 3)
        forward = other.forward()
        assert torch.equal(forward.C, clean_forward.C) and torch.equal(forward.n, clean_forward.n)
        assert torch.equal(forward.states[:, :, 4:], clean_forward.states[:, :, 4:])
        backward = other.backward(clean_forward)
        assert torch.equal(backward.C, clean.C) and torch.equal(backward.n, clean.n)
        assert torch.equal(backward.states[:, :, :3], clean.states[:, :, :3])


def check_nan_gates(product: str, namespace: str) -> None:
    """Of a chunk that a boundary in the same segment cuts off."""
    p = remembering(problem(1, 1, 300, 8, 8)).with_(reset=at_tokens(300, 70)).in_dtype(PRODUCTS[product][0])
    i = p.i.clone()
    i[:, :, 10] = torch.nan
    clean, spoilt = (Run(product, q, UNKNOWN, 2) for q in (p, p.with_(i=i)))
    expected, actual = clean.forward(namespace), spoilt.forward(namespace)
    assert torch.equal(actual.C, expected.C) and torch.equal(actual.n, expected.n)
    assert torch.equal(actual.states[:, :, 2:], expected.states[:, :, 2:])


@products
def test_nan_gates_in_a_segment(product: str) -> None:
    check_nan_gates(product, PLAIN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer_in_segments(dtype: torch.dtype) -> None:
    """Both walks have one launch more: forward, whose states are kept, and backward."""
    inputs = mlstm_inputs(1, 2, 400, 8, 8, dtype=dtype, state=True, requires_grad=True)
    count = _ops.library(PLAIN).simt_count
    launches = []
    for multiprocessors in (0, 132):
        before = count("launches")
        with simt_options(PLAIN, multiprocessors=multiprocessors):
            check(mlstm, inputs, EXECUTOR, chunk_size=64)
        launches.append(count("launches") - before)
    assert launches[1] - launches[0] == 2


# ---- schedules, races and faults ----


def race_case(product: str) -> Run:
    """Several steps of several chunks, boundaries, an empty sequence; two tiles of columns."""
    cu = packed(0, 150, 70)
    Dv = 66 if product == "f64" else 16
    p = problem(1, 1, int(cu[-1]), 8, Dv, cu_seqlens=cu, chunk_size=128)
    reset = torch.zeros(1, int(cu[-1]), dtype=torch.bool)
    reset[0, 10] = True
    return Run.of(product, p.with_(reset=reset))


def segments_case(product: str) -> Run:
    """Three segments, of sequences with enough chunks and with fewer; a boundary in one of them."""
    cu = packed(0, 330, 70)
    Dv = 66 if product == "f64" else 16
    p = remembering(problem(1, 1, int(cu[-1]), 8, Dv, cu_seqlens=cu))
    return Run.of(product, p.with_(reset=at_tokens(int(cu[-1]), 310)), 3)


@pytest.fixture(scope="module")
def raced() -> dict[str, Run]:
    return {product: race_case(product) for product in PRODUCTS}


@pytest.fixture(scope="module")
def raced_segments() -> dict[str, Run]:
    return {product: segments_case(product) for product in PRODUCTS}


@pytest.fixture(scope="module")
def rings() -> Run:
    """Stages come round; two warpgroups, and spans that a boundary cuts."""
    S = 400
    return Run.of("wgmma", problem(1, 1, S, 72, 40, chunk_size=128).with_(reset=at_tokens(S, 10, 200)))


@products
def test_without_races(product: str, raced: dict[str, Run], raced_segments: dict[str, Run]) -> None:
    raced[product].check(RACE)
    raced_segments[product].check(RACE)


@pytest.mark.parametrize("product", ["f64", "bf16", "wgmma"])
def test_schedule_does_not_matter(product: str, raced: dict[str, Run], raced_segments: dict[str, Run]) -> None:
    for run in (raced[product], raced_segments[product]):
        expected = run.check()
        for seed in range(1, 4):
            with simt_options(PLAIN, seed=seed):
                for actual, wanted in zip(run.check(), expected, strict=True):
                    assert_same(actual, wanted)


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_are_caught(fault: str, seed: int, raced: dict[str, Run]) -> None:
    assert caught(fault, seed, lambda: raced["bf16" if seed % 2 else "tf32"].check(RACE))


@pytest.mark.parametrize("fault", sorted(WGMMA_FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_of_wgmma_are_caught(fault: str, seed: int, rings: Run) -> None:
    def call() -> None:
        rings.check(RACE)
        check_nan_of_the_next_sequence("wgmma", RACE)

    assert caught(fault, seed, call)


@pytest.mark.parametrize("fault", sorted(SEGMENT_FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_of_segments_are_caught(fault: str, seed: int, raced_segments: dict[str, Run]) -> None:
    product = "bf16" if seed % 2 else "tf32"

    def call() -> None:
        raced_segments[product].check(RACE)
        check_nan_gates(product, RACE)

    assert caught(fault, seed, call)


def test_planted_faults_are_listed() -> None:
    assert set.union(*map(planted, SOURCES)) == FAULTS | SEGMENT_FAULTS | WGMMA_FAULTS


def test_tiles() -> None:
    """Parts of the dots: 64 rows by 128 columns, by 64 where that is all or for fp64; wgmma: 128 or 256."""
    for product, Dqk, Dv, tiles in (
        ("bf16", 65, 129, 4),
        ("bf16", 64, 64, 1),
        ("f64", 64, 128, 2),
        ("wgmma", 65, 257, 4),
    ):
        run = Run.of(product, problem(1, 1, 3, Dqk, Dv))
        assert run.backward(run.forward()).chunk_dots.shape == (1, 1, 1, tiles)
