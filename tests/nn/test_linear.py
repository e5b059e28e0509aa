"""Linear maps of few rows: what they give, and when a child is called instead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_cuda.nn import linear
from xlstm_cuda.nn.linear import FEW_ROWS, few_rows, mapped
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lead", [(), (1,), (1, 1), (2, 1), (3,), (1, FEW_ROWS)], ids=str)
def test_against_float64(lead: tuple[int, ...], biased: bool) -> None:
    for fan_in, fan_out in ((7, 5), (64, 33), (1, 3), (300, 1)):
        x, weight = torch.randn(*lead, fan_in), torch.randn(fan_out, fan_in)
        bias = torch.randn(fan_out) if biased else None
        y = few_rows(x, weight, bias)
        assert y.shape == (*lead, fan_out) and y.is_contiguous()
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert_close_relative(y, expected, 1e-5)


def test_strides() -> None:
    weight, wide = torch.randn(5, 12), torch.randn(2, 3, 24)
    for x in (wide[:1, :1, ::2], wide[:, :1, :12], torch.randn(12, 2).t(), torch.randn(1, 12).expand(3, 12)):
        assert_close_relative(few_rows(x, weight.t().contiguous().t(), None), x.double() @ weight.double().t(), 1e-5)


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
        (plain, FEW_ROWS, torch.inference_mode, True),
        (plain, FEW_ROWS + 1, torch.no_grad, False),
        (plain, 0, torch.no_grad, False),
        (plain, 1, nullcontext, False),  # with gradients
        (hooked, 1, torch.no_grad, False),
        (lambda: Other(6, 4), 1, torch.no_grad, False),
        (lambda: nn.Linear(6, 4).double(), 1, torch.no_grad, False),
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
    monkeypatch.setattr(linear, "few_rows", lambda *args: calls.append(args[0]) or few_rows(*args))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    module = child()
    x = torch.randn(rows, 1, 6, dtype=next(module.parameters()).dtype)
    with context():
        y = mapped(module, x)
        assert_close_relative(y, module(x), 1e-6)
    assert bool(calls) == taken


def test_one_thread_takes_one_row_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(linear, "few_rows", lambda x, *rest: calls.append(len(x)) or few_rows(x, *rest))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad():
        for rows in (1, 2):
            mapped(nn.Linear(6, 4), torch.randn(rows, 6))
    assert calls == [2]


def test_autocast_and_compilers_see_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "few_rows", lambda *_: pytest.fail("not for them"))
    module, x = nn.Linear(6, 4), torch.randn(2, 6)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert mapped(module, x).dtype == torch.bfloat16
        compiled = torch.compile(mapped, backend="eager", fullgraph=True)
        assert torch.equal(compiled(module, x), module(x))
