"""LinearHeadwise: on kernels where blocks are small and dtypes stay, by products of matrices elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import functional
from xlstm_cuda import nn as xnn
from xlstm_cuda.nn.linear_headwise import LinearHeadwise, headwise_maps
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many maps each call of headwise_linear has."""
    seen: list[int] = []
    right = functional.headwise_linear

    def counted(x: Tensor, weight: Any, bias: Any = None, **options: Any) -> Any:
        seen.append(len(weight))
        return right(x, weight, bias, **options)

    monkeypatch.setattr(functional, "headwise_linear", counted)
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("features", "heads"), [(64, 16), (60, 20), (96, 6)])
@pytest.mark.parametrize("bias", [False, True])
def test_kernels_and_products_agree(
    dtype: torch.dtype, features: int, heads: int, bias: bool, calls: list[int]
) -> None:
    linear = LinearHeadwise(features, heads, bias).to(dtype)
    if bias:
        torch.nn.init.normal_(linear.bias)
    for length in (1, 9):
        x = torch.randn(2, length, features, dtype=dtype, requires_grad=True)
        dy = torch.randn_like(x)
        results = [
            (y, *torch.autograd.grad(y, [x, *linear.parameters()], dy)) for y in (linear(x), linear.by_products(x))
        ]
        assert results[0][0].dtype == results[1][0].dtype
        for actual, expected in zip(*results, strict=True):
            assert_close_relative(actual, expected, 4 * TOLERANCE[dtype].grad)
    assert calls == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_autocast_gives_the_dtype_of_products(dtype: torch.dtype, bias: bool, calls: list[int]) -> None:
    linear, x = LinearHeadwise(64, 16, bias), torch.randn(2, 9, 64, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = linear(x), linear.by_products(x)
    assert y.dtype == expected.dtype
    assert_close_relative(y, expected, 4 * TOLERANCE[torch.bfloat16].h)
    assert calls == ([1] if dtype == torch.bfloat16 and not bias else [])


def test_what_the_kernels_do_not_take(calls: list[int]) -> None:
    wide = LinearHeadwise(64, 2)
    assert torch.equal(wide(torch.ones(1, 3, 64)), wide.by_products(torch.ones(1, 3, 64)))
    with pytest.raises(RuntimeError, match="type"):
        LinearHeadwise(64, 16)(torch.ones(1, 3, 64).double())
    assert calls == []


def test_a_layer_computes_queries_and_keys_together(calls: list[int]) -> None:
    layer = xnn.mLSTMLayer(xnn.mLSTMLayerConfig(embedding_dim=32, num_heads=2))
    y = layer(torch.randn(2, 5, 32))
    assert calls == [2, 1]
    layer.q_proj.register_forward_hook(lambda *_: None)
    assert layer(torch.randn(2, 5, 32)).shape == y.shape
    assert calls == [2, 1, 1, 1, 1]


def test_maps_of_one_input() -> None:
    maps, x = [LinearHeadwise(24, 6) for _ in range(3)], torch.randn(2, 5, 24)
    for y, linear in zip(headwise_maps(x, *maps), maps, strict=True):
        assert_close_relative(y, linear.by_products(x), TOLERANCE[torch.float32].h)
