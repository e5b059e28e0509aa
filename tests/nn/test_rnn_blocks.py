"""Layers that project some tokens at a time: the results and gradients of one projection of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import xlstm_cuda
from xlstm_cuda import nn as xnn
from xlstm_cuda.functional import _blockwise
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")

B, S, F, D = 3, 9, 5, 6
IN_BLOCKS = [4, 4, 1]
CASES = [("LSTM", 1, False), ("LSTM", 2, True), ("sLSTM", 2, True)]


class Scans(TorchDispatchMode):
    """The numbers of tokens that the kernels are given."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.xlstm_cuda.recurrent_fwd.default:
            self.tokens.append(args[0].shape[1])
        return function(*args, **(kwargs or {}))

    def taken(self) -> list[int]:
        taken, self.tokens = self.tokens, []
        return taken


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scans]:
    """Blocks of few tokens."""
    monkeypatch.setattr(_blockwise, "BLOCK_BYTES", 1)
    monkeypatch.setattr(_blockwise, "MIN_TOKENS", IN_BLOCKS[0])
    with Scans() as mode:
        yield mode


def layers(name: str, heads: int, dtype: torch.dtype, **options: Any) -> Any:
    return getattr(xnn, name)(F, D, batch_first=True, num_heads=heads, dtype=dtype, **options)


def inputs(module: Any, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x and the initial state, leaves."""
    wide = torch.promote_types(dtype, torch.float32)
    hx = tuple(torch.rand(module.num_layers, B, D, dtype=wide, requires_grad=True) for _ in module.state_type._fields)
    return torch.randn(B, S, F, dtype=dtype, requires_grad=True), hx


def outputs(module: Any, x: Tensor, hx: Any, packed: bool = False) -> list[Tensor]:
    """packed: a row ends in each block, one of them at the edge between two."""
    if not packed:
        y, state = module(x, hx)
        return [y, *state]
    y, state = module(pack_padded_sequence(x, torch.tensor([3, S, 8]), batch_first=True, enforce_sorted=False), hx)
    return [y.data, *state]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "heads", "packed"), CASES)
def test_blocks_are_one_projection(name: str, heads: int, packed: bool, dtype: torch.dtype, scans: Scans) -> None:
    module = layers(name, heads, dtype, num_layers=2)
    x, hx = inputs(module, dtype)
    leaves = [x, *hx, *module.parameters()]
    found = []
    for expected, backend in ((IN_BLOCKS * 2, "cpu"), ([], "reference")):
        with xlstm_cuda.backend(backend):
            results = outputs(module, x, hx, packed)
        torch.manual_seed(0)
        weights = [torch.randn_like(y) for y in results]
        found.append((results, torch.autograd.grad(results, leaves, weights)))
        assert scans.taken() == expected
    with torch.no_grad():
        found[0][0].extend(outputs(module, x, hx, packed))
    assert scans.taken() == IN_BLOCKS * 2
    (in_blocks, grads), (at_once, expected_grads) = found
    for got, expected in zip(in_blocks, at_once * 2, strict=True):
        assert_close_relative(got, expected, TOLERANCE[dtype].h)
    for got, expected in zip(grads, expected_grads, strict=True):
        assert_close_relative(got, expected, TOLERANCE[dtype].grad)


@pytest.mark.parametrize(("name", "heads", "packed"), CASES)
def test_16_bits(name: str, heads: int, packed: bool, scans: Scans) -> None:
    module = layers(name, heads, torch.bfloat16)
    x, hx = inputs(module, torch.bfloat16)
    at_once = outputs(module, x, hx, packed)
    assert scans.taken() == [S]
    with torch.no_grad():
        in_blocks = outputs(module, x, hx, packed)
    assert scans.taken() == IN_BLOCKS
    for got, expected in zip(in_blocks, at_once, strict=True):
        assert_close_relative(got, expected, TOLERANCE[torch.bfloat16].h)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["LSTM", "sLSTM"])
def test_derivatives(name: str, bias: bool, scans: Scans) -> None:
    """First and second, for every input and many outputs' gradients at once."""
    module = getattr(xnn, name)(2, 2, batch_first=True, bias=bias, dtype=torch.float64)
    names, parameters = zip(*module.named_parameters(), strict=True)
    hx = [torch.rand(1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in module.state_type._fields]
    x = torch.randn(2, 8, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, rest, strict=False))
        return tuple(outputs(lambda *args: torch.func.functional_call(module, weights, args), x, rest[len(names) :]))

    everything = x, *parameters, *hx
    assert torch.autograd.gradcheck(function, everything, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, everything, fast_mode=True)
    assert set(scans.taken()) == {4}


def test_only_what_is_asked_for(scans: Scans) -> None:
    module = xnn.LSTM(F, D, batch_first=True)
    x = torch.randn(B, S, F)
    module.weight_ih_l0.requires_grad_(False)
    module(x)[0].sum().backward()
    assert module.weight_ih_l0.grad is None and module.weight_hh_l0.grad is not None
    module.requires_grad_(False)
    (dx,) = torch.autograd.grad(module(x.requires_grad_())[1].c.sum(), x)
    assert dx.shape == x.shape and scans.taken() == IN_BLOCKS * 2


def test_all_tokens_at_once_where_blocks_would_not_do(scans: Scans) -> None:
    x = torch.randn(B, S, F)
    for options in ({"bidirectional": True}, {"proj_size": 3}):
        xnn.LSTM(F, D, batch_first=True, **options)(x)
    module = xnn.LSTM(F, D, batch_first=True)
    with torch.autocast("cpu"):
        module(x)
    assert scans.taken() == [S] * 3
