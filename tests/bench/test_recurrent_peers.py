"""bench/: flashrnn, here with a stand-in for the package; the suites of the recurrent cells and their goals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xlstm_cuda
from bench.cases import SUITES, Case
from bench.check import Checker, WrongResult
from bench.goals import GOALS
from bench.implementations import IMPLEMENTATIONS
from tests.support.bench_runs import stand_in

pytestmark = pytest.mark.usefixtures("quick")

SHAPE = {"B": 2, "S": 6, "H": 1, "D": 16}
NAMES = {"flashrnn": "cuda_fused", "flashrnn-alternating": "cuda", "flashrnn-triton": "triton_fused"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """flashrnn with the signature of version 1.0.8; what was called, by which backend and in which dtype."""
    called: list[tuple[str, str, str]] = []

    def flashrnn(x: Tensor, R: Tensor, b: Tensor, *, function: str, backend: str, dtype: str) -> Any:
        assert x.dtype == R.dtype == b.dtype == getattr(torch, dtype)
        called.append((function, backend, dtype))
        h, state = getattr(xlstm_cuda, function)(x, R, b, return_state=True)
        return torch.stack([h, h * 0]), torch.stack(list(state))

    stand_in(monkeypatch, "flashrnn", flashrnn=flashrnn)
    return called


@pytest.mark.parametrize("op", ["slstm", "lstm"])
@pytest.mark.parametrize("name", NAMES)
def test_flashrnn_computes_the_cells(name: str, op: str, calls: list[tuple[str, str, str]]) -> None:
    errors = Checker(Case(op, SHAPE, "fwdbwd")).errors(IMPLEMENTATIONS[name].builders[op])
    assert set(errors) == {"h", "db", "dR", *(("dx",) if op == "slstm" else ("du", "dW"))}
    assert set(calls) == {(op, NAMES[name], "float32")}


def test_another_cell_is_wrong(calls: list[tuple[str, str, str]]) -> None:
    with pytest.raises(WrongResult, match="relative error of h"):
        Checker(Case("slstm", SHAPE, "fwd")).errors(lambda t: IMPLEMENTATIONS["flashrnn"].builders["lstm"](as_lstm(t)))


def as_lstm(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of the op lstm whose projection is that x."""
    B, S, _, H, D = t["x"].shape
    return {**t, "u": t["x"][:, :, 0].flatten(2), "W": torch.eye(H * D).repeat(4, 1)}


def test_triton_kernels_are_for_small_heads() -> None:
    assert IMPLEMENTATIONS["flashrnn-triton"].refuses("slstm", {**SHAPE, "D": 128}) == "has D at most 64"
    assert IMPLEMENTATIONS["flashrnn-triton"].refuses("slstm", {**SHAPE, "D": 64}) is None


def test_suites() -> None:
    cases = SUITES["paper-flashrnn"]
    assert all(case.shape["H"] * case.shape["D"] == 768 and case.device == "cuda" for case in cases)
    assert {(case.shape["B"], case.shape["S"]) for case in cases} == {(16, 1024)}
    assert {case.shape["D"] for case in cases if case.op == "slstm"} == {16, 32, 64, 128, 256, 768}
    assert {name for case in cases for name in case.impls or ()} == {"cuda", "torch.nn.LSTM", *NAMES}
    assert {name for case in SUITES["cuda-recurrent"] for name in case.impls or ()} == {"cuda", "torch.nn.LSTM"}
    assert {case.label for case in SUITES["cuda-recurrent"]} <= {case.label for case in cases}


def test_goals_are_cases_of_the_suite() -> None:
    """Each goal's two implementations are in its case."""
    listed = {case.label: case.impls for case in SUITES["paper-flashrnn"]}
    goals = [goal for goal in GOALS["cuda"] if goal.case.op in ("slstm", "lstm")]
    assert len(goals) == 4 + 3 + 4 + 1
    for goal in goals:
        assert {goal.impl, goal.over or goal.impl} <= set(listed[goal.case.label] or ())
    bounds = [goal.bound for goal in goals if goal.over is None]
    assert bounds == pytest.approx([1.024 * x for x in (0.67, 0.96, 1.02, 1.97)])  # milliseconds of 1024 steps
