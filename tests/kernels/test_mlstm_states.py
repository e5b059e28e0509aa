"""The states between the chunks of the mLSTM on a CUDA kernel, run by the host executor, against the recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.support.executor import PLAIN, RACE, needs_race_build
from tests.support.mlstm_plain import (
    VARIANTS,
    Plain,
    Problem,
    close,
    normaliser_factors,
    packed,
    plain,
    problem,
    with_boundaries,
)
from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops

SOURCE = "csrc/cuda/mlstm_chunkwise/states.cu"
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

# Of a product: its data, and errors relative to the largest value of a tensor.
PRODUCTS = {
    "f64": (torch.float64, 1e-11),
    "tf32x3": (torch.float32, 1e-5),
    "tf32": (torch.float32, 2e-3),
    "tf32 of f16": (torch.float16, 2e-3),
    "bf16": (torch.bfloat16, 1e-2),
}

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

    @classmethod
    def of(cls, product: str, p: Problem) -> Run:
        p = p.in_dtype(PRODUCTS[product][0])
        return cls(product, p, plain(p))

    @property
    def A(self) -> torch.dtype:
        return torch.float64 if self.product == "f64" else torch.float32

    def call(self, namespace: str, rows: Tensor, columns: Tensor, *rest: Tensor | None) -> Results:
        p = self.p
        m0 = None if p.initial is None else p.initial[2]
        wide = (None if x is None else x if x.dtype == torch.bfloat16 else x.to(self.A) for x in rest)
        results = _ops.library(namespace).mlstm_states(
            rows,
            columns,
            p.i,
            p.f,
            m0,
            p.cu_seqlens,
            p.reset,
            *wide,
            p.sigmoid_gate,
            p.scale,
            p.chunk_size,
            _ops.PRODUCTS[self.product.split()[0]],
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


@pytest.mark.parametrize("product", ["f64", "bf16"])
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
            for name, x in vars(wanted).items():
                assert torch.equal(getattr(actual, name).nan_to_num(), x.nan_to_num()), name


@pytest.mark.parametrize("product", ["f64", "bf16"])
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


@products
def test_extreme_gates(product: str) -> None:
    for i, f in ((40, 20), (-40, -5), (40, -20)):
        p = problem(1, 1, 130, 5, 7)
        Run.of(product, p.with_(i=p.i + i, f=p.f + f)).check()


def race_case(product: str) -> Run:
    """Several steps of several chunks, boundaries, an empty sequence; two tiles of columns."""
    cu = packed(0, 150, 70)
    Dv = 66 if product == "f64" else 16
    p = problem(1, 1, int(cu[-1]), 8, Dv, cu_seqlens=cu, chunk_size=128)
    reset = torch.zeros(1, int(cu[-1]), dtype=torch.bool)
    reset[0, 10] = True
    return Run.of(product, p.with_(reset=reset))


@pytest.fixture(scope="module")
def raced() -> dict[str, Run]:
    return {product: race_case(product) for product in PRODUCTS}


@products
def test_without_races(product: str, raced: dict[str, Run]) -> None:
    raced[product].check(RACE)


@pytest.mark.parametrize("product", ["f64", "bf16"])
def test_schedule_does_not_matter(product: str, raced: dict[str, Run]) -> None:
    expected = raced[product].check()
    for seed in range(1, 4):
        with simt_options(PLAIN, seed=seed):
            for actual, wanted in zip(raced[product].check(), expected, strict=True):
                for name, x in vars(wanted).items():
                    assert torch.equal(getattr(actual, name).nan_to_num(), x.nan_to_num()), name


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_are_caught(fault: str, seed: int, raced: dict[str, Run]) -> None:
    assert caught(fault, seed, lambda: raced["bf16" if seed % 2 else "tf32"].check(RACE))


def test_planted_faults_are_listed() -> None:
    assert planted(SOURCE) == FAULTS


def test_tiles() -> None:
    """Parts of the dots: 64 rows by 128 columns, by 64 where there are no more or the product is fp64."""
    for product, Dqk, Dv, tiles in (("bf16", 65, 129, 4), ("bf16", 64, 64, 1), ("f64", 64, 128, 2)):
        run = Run.of(product, problem(1, 1, 3, Dqk, Dv))
        assert run.backward(run.forward()).chunk_dots.shape == (1, 1, 1, tiles)
