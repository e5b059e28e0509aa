"""Linear maps of few rows: what they give, and when a child is called instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

import xlstm_cuda
from tests.support.threads import threads
from xlstm_cuda.functional._linear import MOST_ROWS, few_rows_linear
from xlstm_cuda.nn import linear
from xlstm_cuda.nn.linear import mapped
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")

# Sums of n products in float32: an error of at most n roundings; results in 16 bits are rounded once more.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def check(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = few_rows_linear(x, weight, bias)
    assert y.shape == (*x.shape[:-1], weight.shape[0]) and y.is_contiguous() and y.dtype == x.dtype
    exact, sizes = (f(x.double()) @ f(weight.double()).t() for f in (lambda t: t, torch.abs))
    if bias is not None:
        exact, sizes = exact + bias.double(), sizes + bias.double().abs()
    bound = sizes * (x.shape[-1] + 2) * 2.0**-24 + exact.abs() * ROUNDING[x.dtype] + 1e-7
    assert torch.all((y.double() - exact).abs() <= bound)
    return y


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("lead", [(), (1,), (2, 1), (3,), (1, 5), (2, 8)], ids=str)
def test_against_float64(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    for fan_in, fan_out in ((7, 5), (64, 33), (1, 3), (300, 1), (33, 17), (16, 0)):
        x, weight = torch.randn(*lead, fan_in).to(dtype), torch.randn(fan_out, fan_in).to(dtype)
        check(x, weight)
        check(x, weight, torch.randn(fan_out).to(dtype))


def test_strides() -> None:
    weight, wide = torch.randn(5, 12), torch.randn(2, 3, 24)
    for x in (wide[:1, :1, ::2], wide[:, :1, :12], torch.randn(12, 2).t(), torch.randn(1, 12).expand(3, 12)):
        check(x, weight)
        check(x, weight.t().contiguous().t())
        check(x, torch.randn(9, 30)[2:7, 3:15], torch.randn(10)[::2])


def test_a_row_does_not_depend_on_the_others_or_on_threads() -> None:
    x, weight = torch.randn(16, 300), torch.randn(501, 300)
    rows = few_rows_linear(x, weight, None)
    for count in (1, 2, 3, 7):
        assert torch.equal(few_rows_linear(x[:count], weight, None), rows[:count])
    with threads(1):
        assert torch.equal(few_rows_linear(x, weight, None), rows)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    x, weight = torch.randn(5, 19), torch.randn(18, 19)
    x[1, 18] = bad
    y = few_rows_linear(x, weight, None)
    assert torch.equal(y.isfinite().all(1), torch.tensor([True, False, True, True, True]))


def test_wrong_calls() -> None:
    x, weight = torch.randn(2, 4), torch.randn(3, 4)
    for arguments, words in (
        ((torch.randn(17, 4), weight, None), "M at most 16"),
        ((x, torch.randn(3, 5), None), "weight must have shape"),
        ((x, weight, torch.randn(4)), "bias must have shape"),
        ((x, weight.bfloat16(), None), "weight must have the dtype of x"),
        ((x.double(), weight.double(), None), "at most 32 bits"),
    ):
        with pytest.raises(RuntimeError, match=words):
            few_rows_linear(*arguments)


class Other(nn.Linear):
    pass


def hooked() -> nn.Module:
    child = nn.Linear(6, 4)
    child.register_forward_hook(lambda *_: None)
    return child


def plain() -> nn.Module:
    return nn.Linear(6, 4)


@pytest.mark.parametrize(
    "child, rows, context, taken",
    [
        (plain, 1, torch.no_grad, True),
        (plain, 2, torch.no_grad, True),
        (plain, MOST_ROWS[torch.float32], torch.inference_mode, True),
        (plain, MOST_ROWS[torch.float32] + 1, torch.no_grad, False),
        (plain, 0, torch.no_grad, False),
        (plain, 1, nullcontext, False),  # with gradients
        (lambda: plain().requires_grad_(False), 1, nullcontext, True),
        (lambda: plain().requires_grad_(False), 1, lambda: xlstm_cuda.backend("reference"), False),
        (hooked, 1, torch.no_grad, False),
        (lambda: Other(6, 4), 1, torch.no_grad, False),
        (lambda: nn.Linear(6, 4).double(), 1, torch.no_grad, False),
        (lambda: nn.Linear(6, 4).bfloat16(), MOST_ROWS[torch.bfloat16], torch.no_grad, True),
        (lambda: nn.Linear(6, 4).bfloat16(), MOST_ROWS[torch.bfloat16] + 1, torch.no_grad, False),
    ],
)
def test_when_the_child_is_called(
    child: Callable[[], nn.Module],
    rows: int,
    context: Callable[[], AbstractContextManager[Any]],
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Tensor] = []
    monkeypatch.setattr(linear, "few_rows_linear", lambda *args: calls.append(args[0]) or few_rows_linear(*args))
    module = child()
    x = torch.randn(rows, 1, 6).to(next(module.parameters()).dtype)
    with context():
        y = mapped(module, x)
        assert_close_relative(y, module(x), 1e-2 if x.dtype == torch.bfloat16 else 1e-6)
    assert bool(calls) == taken


def test_autocast_compilers_and_transforms_see_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "few_rows_linear", lambda *_: pytest.fail("not for them"))
    module, x = nn.Linear(6, 4), torch.randn(2, 6)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert mapped(module, x).dtype == torch.bfloat16
        compiled = torch.compile(mapped, backend="eager", fullgraph=True)
        assert torch.equal(compiled(module, x), module(x))
        assert torch.equal(vmap(lambda row: mapped(module, row))(x), F.linear(x, module.weight, module.bias))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            tangent = torch.autograd.forward_ad.unpack_dual(mapped(module, dual)).tangent
            assert_close_relative(tangent, module.weight.sum(1).expand(2, 4), 1e-6)
