"""Norms of xLSTMLarge: what they compute, in which dtype, and for which shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xlstm_cuda.models.large.norms import LargeMultiHeadLayerNorm, RMSNorm
from xlstm_cuda.testing import assert_close_relative

HEADS, DIM = 3, 8
KINDS = {"rms": (RMSNorm, DIM), "layer": (LargeMultiHeadLayerNorm, HEADS * DIM)}
BFLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float32, torch.float64
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, dtype: torch.dtype, bias: bool = True) -> RMSNorm | LargeMultiHeadLayerNorm:
    cls, features = KINDS[kind]
    norm = cls(features, 1e-6, bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter += 0.5 * torch.randn(features, generator=generator)
    return norm.to(dtype)


def inputs(kind: str, *leading: int, dtype: torch.dtype = FLOAT64) -> Tensor:
    shape = (*leading, DIM) if kind == "rms" else (*leading, HEADS, DIM)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=FLOAT64).to(dtype)


def formula(norm: RMSNorm | LargeMultiHeadLayerNorm, x: Tensor) -> Tensor:
    """In float64."""
    x = x.double()
    y = F.rms_norm(x, (DIM,), eps=1e-6) if norm.kind == "rms" else F.layer_norm(x, (DIM,), eps=1e-6).flatten(-2)
    y = y * norm.weight.double()
    return y if norm.bias is None else y + norm.bias.double()


@every_kind
@pytest.mark.parametrize("leading", [(), (5,), (2, 5), (2, 0), (2, 3, 5)], ids=str)
def test_any_leading_dimensions(kind: str, leading: tuple[int, ...]) -> None:
    norm, x = build(kind, FLOAT64, bias=False), inputs(kind, *leading).requires_grad_()
    y, expected = norm(x), formula(norm, x)
    assert_close_relative(y, expected, 1e-13)
    grads = (torch.autograd.grad(z.square().sum(), [x, norm.weight]) for z in (y, expected))
    for actual, wanted in zip(*grads, strict=True):
        assert_close_relative(actual, wanted, 1e-13)


@every_kind
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("x_dtype", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("weight_dtype", [BFLOAT16, FLOAT32])
def test_rounded_once(kind: str, x_dtype: torch.dtype, weight_dtype: torch.dtype, autocast: bool) -> None:
    """To the dtype that x and the weights have together: half a unit in the last place, and what float32 leaves out."""
    norm, x = build(kind, weight_dtype), inputs(kind, 2, 9, dtype=x_dtype)
    with torch.autocast("cpu", BFLOAT16, enabled=autocast):
        y = norm(x)
    exact = formula(norm, x)
    assert y.dtype == torch.promote_types(x_dtype, weight_dtype)
    rounding = torch.finfo(BFLOAT16).eps / 2 if y.dtype == BFLOAT16 else 0
    terms = 4 + exact.abs().max() * norm.weight.abs().max()  # what cancels where weight and bias meet
    assert ((y - exact).abs() <= rounding * exact.abs() + terms * 8 * torch.finfo(FLOAT32).eps).all()


def test_gated_is_the_norm_times_the_gate() -> None:
    norm, x, gate = build("layer", FLOAT64), inputs("layer", 2, 5).mT.contiguous().mT, inputs("rms", 2, 5, HEADS)
    gate = gate.flatten(-2)
    assert_close_relative(norm.gated(x, gate), torch.sigmoid(gate) * formula(norm, x), 1e-13)


class Tagged(Tensor):
    pass


@every_kind
def test_weights_of_another_class(kind: str) -> None:
    norm, x = build(kind, FLOAT64), inputs(kind, 2, 5)
    expected = norm(x)
    norm.weight = torch.nn.Parameter(norm.weight.detach().as_subclass(Tagged))
    assert_close_relative(norm(x).as_subclass(Tensor), expected, 1e-13)
