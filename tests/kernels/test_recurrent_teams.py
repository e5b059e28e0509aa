"""Batch tiles of a few rows (csrc/cuda/recurrent/plan.h): how many teams share a batch changes no bit of a result."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.functional.test_recurrent import CELLS, Cell
from tests.support import variants
from tests.support.against_reference import gradients, run
from tests.support.executor import RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from xlstm_cuda import _backend

B, S, H = 9, 4, 2
TEAMS = (5, 3, 2)  # asked for of a head: tiles of 2, 4 and 6 rows
LENGTHS = (4, 0, 2, 4, 1, 3, 4, 4, 2)
CASES: list[tuple[str, int, torch.dtype]] = [
    ("block", 20, torch.bfloat16),
    ("block", 7, torch.float32),
    ("block", 5, torch.float64),
    ("block", 72, torch.float16),  # a wide one
    ("cluster", 72, torch.bfloat16),
    ("cluster units=32", 44, torch.float32),
    ("grid", 72, torch.float32),
    ("grid units=16", 24, torch.bfloat16),
]


def results(backend: str, cell: Cell, variant: str, D: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Outputs, final states and gradients, with everything that is about single rows. The second head is reversed."""
    inputs: dict[str, Any] = cell.draw(B, S, H, D, dtype=dtype, device=device)
    reset = torch.arange(B * S, device=device).view(B, S) % 5 == 3
    rows = {"lengths": torch.tensor(LENGTHS, device=device), "reset": reset, "reversed_heads": 1}
    with variants.only(variant, _backend._BACKENDS[backend][1]):
        outputs = run(cell.function, inputs, backend=backend, **cell.options, **rows)
        return [*outputs.values(), *gradients(outputs, inputs).values()]


def same_with(teams: int, backend: str, cell: Cell, variant: str, *of_case: Any) -> None:
    """As with one team, which has a whole tile and one that ends early."""
    whole, cut = (results(backend, cell, f"{variant} teams={n}", *of_case) for n in (1, teams))
    for a, b in zip(whole, cut, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("teams", TEAMS)
@pytest.mark.parametrize(("variant", "D", "dtype"), CASES, ids=str)
def test_same_bits(backend: str, device: str, variant: str, D: int, dtype: torch.dtype, teams: int, cell: Cell) -> None:
    if backend == "cpu":
        pytest.skip("has no teams")
    same_with(teams, backend, cell, variant, D, dtype, device)


@pytest.mark.simt
@needs_race_build
@pytest.mark.parametrize("teams", TEAMS)
@pytest.mark.parametrize(("variant", "D", "dtype"), CASES, ids=str)
def test_no_races(variant: str, D: int, dtype: torch.dtype, teams: int) -> None:
    same_with(teams, RACE_EXECUTOR, CELLS["slstm"], variant, D, dtype)


FAULTS = {"recurrent: rows of the next team are stored too"}


@pytest.mark.simt
@needs_race_build
@pytest.mark.parametrize("variant", ["block", "cluster units=32", "grid units=32"])
@pytest.mark.parametrize("mutant", FAULTS)
def test_fault_is_caught(mutant: str, variant: str) -> None:
    call = partial(same_with, 5, RACE_EXECUTOR, CELLS["lstm"], variant, 20, torch.bfloat16)
    assert missed(mutant, call) == []


def test_every_fault_has_a_case() -> None:
    assert planted("csrc/cuda/recurrent/team.h") == FAULTS
