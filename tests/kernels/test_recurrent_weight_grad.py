"""The gradients of R and b of the recurrent cells on a CUDA kernel, run by the host executor."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.support.executor import PLAIN, RACE, needs_race_build
from tests.support.mutants import missed, planted
from xlstm_cuda import _ops

SOURCE = "csrc/cuda/recurrent/weight_grad.cu"

# Of a product: its data, and errors relative to the largest value of a tensor. 16-bit results are rounded.
PRODUCTS = {
    "f64": (torch.float64, 1e-14),
    "tf32x3": (torch.float32, 1e-6),
    "tf32": (torch.float32, 1e-3),
    "f16": (torch.float16, 5e-4),
    "bf16": (torch.bfloat16, 4e-3),
}

pytestmark = [pytest.mark.simt, needs_race_build]
products = pytest.mark.parametrize("product", PRODUCTS)


@dataclass
class Problem:
    product: str
    dx: Tensor
    h: Tensor
    h0: Tensor | None
    reset: Tensor | None
    splits: int = 0
    lengths: Tensor | None = None
    reversed_heads: int = 0

    def run(self, namespace: str = PLAIN) -> tuple[Tensor, Tensor]:
        tf32 = self.product == "tf32"
        rows = self.lengths, self.reset, self.reversed_heads
        dR, db = _ops.library(namespace).recurrent_weight_grad(self.dx, self.h, self.h0, *rows, tf32, self.splits)
        return dR, db

    def expected(self) -> tuple[Tensor, Tensor]:
        dx, h = self.dx.double(), self.h.double()
        B, S, H, _ = h.shape
        before = torch.zeros_like(h)
        for b, head in itertools.product(range(B), range(H)):
            length = S if self.lengths is None else int(self.lengths[b])
            order = list(range(length))[:: -1 if head >= H - self.reversed_heads else 1]
            for previous, t in zip([None, *order], order, strict=False):
                if self.reset is not None and self.reset[b, t]:
                    continue
                if previous is not None:
                    before[b, t, head] = h[b, previous, head]
                elif self.h0 is not None:
                    before[b, t, head] = self.h0[b, head]
        return torch.einsum("btgho,bthi->ghoi", dx, before), dx.sum((0, 1))

    def check(self, namespace: str = PLAIN) -> None:
        dtype, tolerance = PRODUCTS[self.product]
        dR, db = self.run(namespace)
        assert dR.dtype == dtype and db.dtype == torch.promote_types(dtype, torch.float32)
        for actual, expected in zip((dR, db), self.expected(), strict=True):
            assert actual.shape == expected.shape
            size = expected.abs().max().clamp(min=1) if expected.numel() else 1
            assert ((actual.double() - expected).abs() <= tolerance * size).all()


def problem(
    product: str, B: int, S: int, H: int, D: int, *, h0: bool = True, resets: float = 0.0, splits: int = 0
) -> Problem:
    dtype = PRODUCTS[product][0]
    random = torch.Generator().manual_seed(B + S + H + D)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    state = torch.promote_types(dtype, torch.float32)
    return Problem(
        product,
        normal(B, S, 4, H, D),
        normal(B, S, H, D),
        normal(B, H, D).to(state) if h0 else None,
        torch.rand(B, S, generator=random) < resets if resets else None,
        splits,
    )


# ---- tests ----


@products
@pytest.mark.parametrize("D", [1, 7, 24, 64, 65])
def test_head_dims(D: int, product: str) -> None:
    problem(product, 3, 21, 1 if D > 24 else 2, D, resets=0.1).check()


@pytest.mark.parametrize("product", ["f64", "bf16"])
def test_tiles(product: str) -> None:
    """Several tiles along both sides of a matrix."""
    problem(product, 1, 9, 1, 130).check()


@products
@pytest.mark.parametrize("B,S", [(1, 1), (5, 1), (1, 300), (60, 5), (2, 65)])
def test_tokens(B: int, S: int, product: str) -> None:
    """With 300 tokens there are two splits."""
    problem(product, B, S, 1, 8, resets=0.2).check()


@pytest.mark.parametrize("splits", [1, 2, 3, 100])
def test_splits(splits: int) -> None:
    problem("f64", 1, 130, 3, 8, splits=splits).check()


def test_long_splits() -> None:
    """Sums go to the slab and on from there more than once."""
    problem("f64", 1, 2048 * 2 + 1, 1, 8, splits=1).check()


def test_without_initial_state() -> None:
    problem("bf16", 3, 20, 1, 8, h0=False).check()


@products
@pytest.mark.parametrize("B,S", [(0, 3), (2, 0)])
def test_no_tokens(B: int, S: int, product: str) -> None:
    p = problem(product, B, S, 2, 5)
    p.check()
    assert not any(x.any() for x in p.run())


@products
def test_misaligned(product: str) -> None:
    """Rows that begin between two vectors give the same bits."""
    p = problem(product, 2, 20, 1, 24)
    expected = p.run()

    def misaligned(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)

    assert p.h0 is not None
    actual = replace(p, dx=misaligned(p.dx), h=misaligned(p.h), h0=misaligned(p.h0)).run()
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("reversed_heads", [0, 1, 3])
def test_lengths_and_directions(reversed_heads: int) -> None:
    p = problem("f64", 4, 9, 3, 7, resets=0.2)
    lengths = torch.tensor([9, 5, 0, 1])
    past = torch.arange(9) >= lengths[:, None]
    p.dx[past] = 0
    replace(p, lengths=lengths, reversed_heads=reversed_heads).check()
    p.h[past] = float("nan")  # what a row holds past its end does not count
    replace(p, h0=None, lengths=lengths, reversed_heads=reversed_heads).check()


def test_strides_of_reset() -> None:
    p = problem("f64", 4, 20, 1, 8, resets=0.3)
    assert p.reset is not None
    replace(p, reset=p.reset.T.contiguous().T).check()


@pytest.mark.parametrize("product", ["f64", "bf16"])
def test_nan(product: str) -> None:
    """One in h or dx is seen where it belongs; one in front of a reset or in the last token is not."""
    p = problem(product, 2, 5, 2, 8)
    p.reset = torch.zeros(2, 5, dtype=torch.bool)
    p.reset[1, 3] = True
    p.h[0, 4], p.h[1, 2] = torch.nan, torch.nan
    p.check()
    p.h[0, 1, 1, 3] = torch.nan
    dR, db = p.run()
    assert dR[:, 1, :, 3].isnan().all() and not db.isnan().any()
    dR[:, 1, :, 3] = 0
    assert not dR.isnan().any()
    p.dx[1, 3, 2, 0, 6] = torch.nan
    dR, db = p.run()
    assert dR[2, 0, 6].isnan().all() and db[2, 0, 6].isnan() and db.isnan().sum() == 1


# Fault: calls that show it.
FAULTS = {
    "a split left out": [problem("f64", 1, 100, 1, 4, splits=2)],
    "first tokens take the row before": [problem("bf16", 3, 4, 1, 8), problem("tf32x3", 3, 4, 1, 5)],
    "h of the token itself": [problem("bf16", 1, 9, 1, 8)],
    "no barrier between stages": [problem("f64", 1, 60, 1, 16), problem("tf32", 1, 70, 1, 5)],
    "one copy too many in flight": [problem("f64", 1, 60, 1, 16), problem("bf16", 1, 70, 1, 8)],
    "resets ignored": [problem("bf16", 2, 9, 1, 8, resets=0.3)],
    "splits overlap": [problem("f64", 1, 100, 1, 4, splits=2)],
    "stage overwritten while it is read": [problem("f64", 1, 70, 1, 16)],
    "sums stored earlier are lost": [problem("f64", 1, 2100, 1, 4, splits=1)],
}
CASES = [(name, p) for name, calls in FAULTS.items() for p in calls]


@pytest.mark.parametrize("name,p", CASES, ids=[f"{name} {p.product}" for name, p in CASES])
def test_fault_is_caught(name: str, p: Problem) -> None:
    assert missed(f"recurrent_weight_grad: {name}", lambda: p.check(RACE)) == []


def test_every_fault_has_a_case() -> None:
    assert planted(SOURCE) == {f"recurrent_weight_grad: {name}" for name in FAULTS}
