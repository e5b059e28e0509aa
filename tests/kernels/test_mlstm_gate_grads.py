"""The normaliser and the gate gradients of the chunkwise mLSTM on CUDA kernels, run by the host executor.

The kernels get exact sums, computed in float64; the expected gradients are autograd's of the plain recurrence. The
losses read h and the final state, m included.
"""

from __future__ import annotations

from itertools import product
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
    normaliser_factors,
    packed,
    plain,
    problem,
    with_boundaries,
)
from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops

GATE_GRADS, NORMALISER = (f"csrc/cuda/mlstm_chunkwise/{name}.cu" for name in ("gate_grads", "normaliser"))
GATE_GRADS_FAULTS = {
    "mlstm_gate_grads: i compared with its own m",
    "mlstm_gate_grads: m goes on past a boundary",
    "mlstm_gate_grads: maps overwritten while they are read",
    "mlstm_gate_grads: no barrier before the maps are read",
    "mlstm_gate_grads: partial chunks end nowhere",
    "mlstm_gate_grads: sums run on from chunk to chunk",
}
NORMALISER_FAULTS = {
    "mlstm_normaliser: columns past the last vector ignored",
    "mlstm_normaliser: every lane finishes the last token",
    "mlstm_normaliser: gradient below the floor",
    "mlstm_normaliser: sign of r ignored",
    "mlstm_normaliser: sum without the other half of the lanes",
    "mlstm_normaliser: tokens past the last one are stored",
    "mlstm_normaliser: whole vectors in rows that are not aligned",
}

pytestmark = [pytest.mark.simt, needs_race_build]
variants = pytest.mark.parametrize("variant", VARIANTS)


# ---- exact inputs of the kernels ----


def parts(products: Tensor, count: int) -> Tensor:
    """Sums over pieces of the last dimension, (..., pieces)."""
    return torch.stack([x.sum(-1) for x in products.tensor_split(count, -1)], -1)


def dots(dC: Tensor, C: Tensor, dn: Tensor, n: Tensor, count: int) -> Tensor:
    return parts((dC * C).sum(-1) + dn * n, count)


def gate_grads(
    p: Problem, x: Plain, namespace: str = PLAIN, dtype: torch.dtype = torch.float64, like: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """di, df, dm0 of the kernel; like: how di and df are stored."""
    rows = [parts(g * a.double(), 2).movedim(-1, 2) for g, a in ((x.dq, p.q), (x.dk, p.k))]
    starts = None if p.initial is None else dots(x.d_initial[0], p.initial[0], x.d_initial[1], p.initial[1], 3)
    like = p.i if like is None else like
    di, df = torch.full_like(like, torch.nan), torch.full_like(like, torch.nan)
    dm0 = _ops.library(namespace).mlstm_gate_grads(
        p.i,
        p.f,
        None if p.initial is None else p.initial[2],
        p.cu_seqlens,
        p.reset,
        *(row.to(dtype) for row in rows),
        normaliser_factors(p, x)[2].to(dtype),
        dots(x.dC, x.C_end, x.dn, x.n_end, 3).to(dtype),
        None if starts is None else starts.to(dtype),
        None if p.final_grad is None else p.final_grad[2],
        di,
        df,
        p.sigmoid_gate,
        p.chunk_size,
    )
    return di, df, dm0


def check(p: Problem, namespace: str = PLAIN, dtype: torch.dtype = torch.float64, x: Plain | None = None) -> None:
    x = plain(p) if x is None else x
    tolerance = 1e-11 if dtype == torch.float64 else 3e-6
    di, df, dm0 = gate_grads(p, x, namespace, dtype)
    close(di, x.di, tolerance)
    close(df, x.df, tolerance)
    close(dm0, x.d_initial[2], tolerance)


# ---- gate gradients ----


@variants
@pytest.mark.parametrize("S", [1, 15, 63, 64, 65, 130, 257])
def test_lengths(S: int, variant: str) -> None:
    p = problem(2, 2, S, seed=S, eps=0.1, **VARIANTS[variant])
    x = plain(p)
    check(p, x=x)
    check(p, x=x, dtype=torch.float32)


@variants
@pytest.mark.parametrize("chunk_size", [64, 128, 256])
def test_chunk_sizes(chunk_size: int, variant: str) -> None:
    check(problem(1, 2, 600, chunk_size=chunk_size, eps=0.1, **VARIANTS[variant]))


@variants
@pytest.mark.parametrize(("eps", "norm_grad"), [(0.0, True), (1e-6, True), (0.1, True), (0.1, False)])
def test_paths_through_the_stabiliser(eps: float, norm_grad: bool, variant: str) -> None:
    for states in (True, False):
        check(problem(2, 1, 130, states=states, eps=eps, norm_grad=norm_grad, **VARIANTS[variant]))


@variants
@pytest.mark.parametrize("rate", [0.004, 0.03, 0.5])
def test_boundaries(rate: float, variant: str) -> None:
    for chunk_size in (64, 256) if rate == 0.03 else (128,):
        p = problem(2, 2, 300, chunk_size=chunk_size, eps=0.1, **VARIANTS[variant])
        check(with_boundaries(p, rate))


@variants
def test_packed_sequences(variant: str) -> None:
    cu = packed(0, 5, 0, 64, 64, 1, 130, 1, 0)
    p = problem(1, 2, int(cu[-1]), cu_seqlens=cu, eps=0.1, **VARIANTS[variant])
    check(p)
    check(with_boundaries(p, 0.02))
    check(p.with_(initial=None, final_grad=None))


@variants
def test_no_tokens(variant: str) -> None:
    for cu in (None, packed(0, 0), packed()):
        p = problem(1, 2, 0, cu_seqlens=cu, **VARIANTS[variant])
        if cu is not None and len(cu) == 1:
            assert gate_grads(p.with_(final_grad=None, initial=None), plain_of_nothing(p))[2].shape == (0, 2)
            continue
        check(p)


def plain_of_nothing(p: Problem) -> Plain:
    """plain() cannot join the states of no sequence."""
    none = problem(1, 2, 0, cu_seqlens=packed(0))
    x = plain(none)
    empty = [t[:, :, :0] for t in (x.C_end, x.n_end, x.dC, x.dn)]
    x.C_end, x.n_end, x.dC, x.dn = empty
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtypes_and_strides(dtype: torch.dtype) -> None:
    p = problem(2, 3, 75, eps=0.1)
    p = p.with_(i=p.i.to(dtype), f=p.f.to(dtype))
    x = plain(p)
    tokens_first, uneven = torch.zeros(75, 2, 3, dtype=dtype).permute(1, 2, 0), torch.zeros(2, 3, 78, dtype=dtype)
    for like in (p.i, tokens_first, uneven[..., 3:]):
        strided = p.with_(i=like.clone().copy_(p.i), f=torch.stack([p.f, p.f], -1)[..., 1])
        di, df, _ = gate_grads(strided, x, like=like)
        tolerance = max(1e-11, torch.finfo(dtype).eps)
        close(di, x.di, tolerance)
        close(df, x.df, tolerance)


def test_extreme_gates() -> None:
    for i, f in product((50, -50), repeat=2):
        p = problem(1, 2, 150, eps=1e-6)
        check(p.with_(i=p.i + i, f=p.f + f))


def test_initial_stabiliser_is_clamped() -> None:
    p = problem(1, 2, 70, eps=0.1)
    assert p.initial is not None
    C, n, m = p.initial
    for value in (-torch.inf, -40.0, 40.0):
        start = (C, n, torch.full_like(m, value))
        p = p.with_(initial=start, i=p.i.index_fill(2, torch.arange(3), -torch.inf) if value < 0 else p.i)
        if value == -torch.inf:
            p = p.with_(initial=(torch.zeros_like(C), torch.zeros_like(n), start[2]))
        x = plain(p)
        di, df, _ = gate_grads(p, x)
        close(di, x.di, 1e-11)
        close(df, x.df, 1e-11)


def several_tiles() -> tuple[Problem, Plain]:
    """Tiles of several warps, and a block that walks several tiles: most sequences are empty."""
    cu = packed(0, 37, 1163, 0, 128, 96, 0, 12, 0, 0, 0, 0)
    p = with_boundaries(problem(1, 1, int(cu[-1]), cu_seqlens=cu, eps=0.1), 0.005)
    return p, plain(p)


@pytest.fixture(scope="module")
def tiles() -> tuple[Problem, Plain]:
    return several_tiles()


@pytest.mark.parametrize("namespace", [PLAIN, RACE])
def test_schedule_does_not_matter(namespace: str, tiles: tuple[Problem, Plain]) -> None:
    expected = gate_grads(*tiles, namespace)
    check(tiles[0], namespace, x=tiles[1])
    for seed in range(1, 4):
        with simt_options(namespace, seed=seed):
            for a, b in zip(gate_grads(*tiles, namespace), expected, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("fault", sorted(GATE_GRADS_FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_are_caught(fault: str, seed: int, tiles: tuple[Problem, Plain]) -> None:
    assert caught(fault, seed, lambda: check(tiles[0], RACE, x=tiles[1]))


def test_planted_faults_are_listed() -> None:
    assert planted(GATE_GRADS) == GATE_GRADS_FAULTS
    assert planted(NORMALISER) == NORMALISER_FAULTS


# ---- normaliser ----


def check_normaliser(p: Problem, x: Plain, namespace: str = PLAIN) -> None:
    """p.dh and x.h are what the kernel reads."""
    exact = p.dh.dtype == torch.float64
    r, m = (x.r, x.m) if exact else (x.r.float(), x.m.float())
    x.r, x.m = r.double(), m.double()
    options = (p.sigmoid_gate, p.normalize, p.norm_grad, p.eps)
    factors = _ops.library(namespace).mlstm_normaliser(x.h, p.dh, r, m, *options)
    x.h = x.h.double()
    for actual, expected in zip(factors, normaliser_factors(p, x), strict=True):
        close(actual, expected, 1e-13 if exact else 1e-6)


def normaliser_case(shape: tuple[int, ...], dtype: torch.dtype, layout: str, **options: Any) -> tuple[Problem, Plain]:
    """h and dh of any values; both signs of r, on both sides of the floor."""
    g = torch.Generator().manual_seed(shape[-1])
    B, H, S, Dv = shape

    def rows() -> Tensor:
        if layout == "tokens first":
            return torch.randn(B, S, H, Dv, generator=g).to(dtype).transpose(1, 2)
        if layout == "padded":  # aligned rows of any length
            return torch.randn(B, H, S, -(-Dv // 8) * 8, generator=g).to(dtype)[..., :Dv]
        if layout == "misaligned":
            return torch.randn(B, H, S, Dv + 1, generator=g).to(dtype)[..., 1:]
        return torch.randn(shape, generator=g).to(dtype)

    p = problem(1, 1, 1, **options).with_(dh=rows())
    x = plain(problem(1, 1, 1))
    x.h, x.r, x.m = rows(), *(2 * torch.randn(2, B, H, S, generator=g, dtype=torch.float64))
    return p, x


@variants
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_normaliser(dtype: torch.dtype, variant: str) -> None:
    for Dv, layout in product((1, 5, 33, 64, 300), ("contiguous", "tokens first", "padded", "misaligned")):
        check_normaliser(*normaliser_case((2, 3, 7, Dv), dtype, layout, eps=0.1, **VARIANTS[variant]))
    for eps, norm_grad in ((0.0, True), (1e-6, False)):
        options = {"eps": eps, "norm_grad": norm_grad, **VARIANTS[variant]}
        check_normaliser(*normaliser_case((1, 2, 9, 8), dtype, "contiguous", **options))


def test_normaliser_without_tokens() -> None:
    check_normaliser(*normaliser_case((2, 2, 0, 8), torch.float32, "contiguous"))


def test_normaliser_reads_no_h_where_the_denominator_has_no_gradient() -> None:
    for options in ({"norm_grad": False}, {"sigmoid_gate": True, "normalize": False}):
        p, x = normaliser_case((1, 2, 9, 8), torch.float64, "contiguous", **options)
        x.h[:] = torch.nan
        factors = _ops.library(PLAIN).mlstm_normaliser(
            x.h, p.dh, x.r, x.m, p.sigmoid_gate, p.normalize, p.norm_grad, p.eps
        )
        assert not any(factor.isnan().any() for factor in factors)


def test_normaliser_without_races() -> None:
    check_normaliser(*normaliser_case((2, 1, 5, 33), torch.bfloat16, "contiguous"), RACE)


@pytest.mark.parametrize("fault", sorted(NORMALISER_FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_of_the_normaliser_are_caught(fault: str, seed: int) -> None:
    cases = [normaliser_case((1, 2, 7, 41), torch.float32, layout, eps=0.1) for layout in ("padded", "misaligned")]
    assert caught(fault, seed, lambda: [check_normaliser(*case, RACE) for case in cases])
