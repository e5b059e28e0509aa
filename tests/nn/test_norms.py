"""The norm over heads: its values, gradients and dtypes, for any leading dimensions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xlstm_cuda.nn.norms import MultiHeadLayerNorm
from xlstm_cuda.testing import assert_close_relative

HEADS, DIM = 3, 8


def build(dtype: torch.dtype) -> MultiHeadLayerNorm:
    norm = MultiHeadLayerNorm(HEADS * DIM)
    with torch.no_grad():
        norm.weight += torch.randn(HEADS * DIM, generator=torch.Generator().manual_seed(0))
    return norm.to(dtype)


@pytest.mark.parametrize("leading", [(), (5,), (2, 5), (2, 0), (2, 3, 5)], ids=str)
def test_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    norm, x = build(torch.float64), torch.randn(*leading, HEADS, DIM, dtype=torch.float64, requires_grad=True)
    y, expected = norm(x), F.layer_norm(x, (DIM,)).flatten(-2) * (1 + norm.weight)
    assert_close_relative(y, expected, 1e-12)
    grads = (torch.autograd.grad(z.square().sum(), [x, norm.weight]) for z in (y, expected))
    for actual, wanted in zip(*grads, strict=True):
        assert_close_relative(actual, wanted, 1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_dtypes(x_dtype: torch.dtype, weight_dtype: torch.dtype, autocast: bool) -> None:
    norm, x = build(weight_dtype), torch.randn(2, 5, HEADS, DIM).to(x_dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = norm(x)
    assert y.dtype == torch.promote_types(x_dtype, weight_dtype)
    exact = F.layer_norm(x.double(), (DIM,)).flatten(-2) * (1 + norm.weight.double())
    assert_close_relative(y, exact.to(y.dtype), 3 * torch.finfo(y.dtype).eps)
