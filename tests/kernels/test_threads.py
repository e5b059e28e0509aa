"""Threads that share one head, and several callers at once: the same bits as one thread alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import xlstm_cuda
from xlstm_cuda import LSTMState, SLSTMState

# One head of seven panels and more work in a step than two threads need to be worth their meeting.
S, H, D = 7, 1, 200


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(name: str, B: int, dtype: torch.dtype, D: int = D) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = (B, H, D)
    state = [torch.rand(shape) for _ in range(4 if name == "slstm" else 2)]
    return {
        "x": torch.randn(B, S, 4, H, D, dtype=dtype, requires_grad=True),
        "R": (torch.randn(4, H, D, D) / D**0.5).to(dtype).requires_grad_(),
        "b": torch.randn(4, H, D, requires_grad=True),
        "initial_state": (SLSTMState if name == "slstm" else LSTMState)(*(s.requires_grad_() for s in state)),
        "lengths": torch.arange(B) % 3 + S - 2,
        "reset": torch.rand(B, S) < 0.2,
    }


def results(name: str, call: dict[str, Any]) -> list[Tensor]:
    h, state = getattr(xlstm_cuda, name)(**call, return_state=True)
    weights = [torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view(y.shape[1:]) for y in (h, *state)]
    loss = sum((y * w).sum().double() for y, w in zip((h, *state), weights, strict=True))
    leaves = [call["x"], call["R"], call["b"], *call["initial_state"]]
    return [h.detach(), *(s.detach() for s in state), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("B", [1, 2, 3, 9, 13])  # 9 on 5 threads: rows are cut, and units too
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["slstm", "lstm"])
def test_number_of_threads_changes_no_bit(name: str, dtype: torch.dtype, B: int) -> None:
    call = arguments(name, B, dtype)
    torch.set_num_threads(1)
    alone = results(name, call)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for got, expected in zip(results(name, call), alone, strict=True):
            assert torch.equal(got, expected)


def first_rows(call: dict[str, Any], rows: int) -> dict[str, Any]:
    state = type(call["initial_state"])(*(s.detach()[:rows].requires_grad_() for s in call["initial_state"]))
    x = call["x"].detach()[:rows].requires_grad_()
    return {**call, "x": x, "initial_state": state, "lengths": call["lengths"][:rows], "reset": call["reset"][:rows]}


@pytest.mark.parametrize("name", ["slstm", "lstm"])
def test_large_bfloat16_weights(name: str) -> None:
    """So large that the kernels keep them in 16 bits, but for more than four rows: no bit may differ."""
    many = arguments(name, 5, torch.bfloat16, D=640)
    few = first_rows(many, 2)
    fields = few["initial_state"]._fields
    names = ["h", *fields, "dx", "dR", "db", *(f"d{field}0" for field in fields)]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for what, got, expected in zip(names, results(name, few), results(name, many), strict=True):
            if what not in ("dR", "db"):  # sums over all rows
                assert torch.equal(got, expected[:2]), what


def test_callers_at_once() -> None:
    calls = [arguments(name, B, torch.float32) for name, B in (("slstm", 1), ("lstm", 2)) for _ in range(2)]
    names = ["slstm", "slstm", "lstm", "lstm"]
    torch.set_num_threads(1)
    alone = [results(name, call) for name, call in zip(names, calls, strict=True)]
    torch.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for got, expected in zip(pool.map(results, names, calls), alone, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_one_head_in_parts_is_right() -> None:
    """Against the reference, so that the bits above are also the right ones."""
    call = arguments("slstm", 1, torch.float64)
    torch.set_num_threads(2)
    ours = results("slstm", call)
    with xlstm_cuda.backend("reference"):
        for got, expected in zip(ours, results("slstm", call), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
