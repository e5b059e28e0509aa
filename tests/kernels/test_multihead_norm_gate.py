"""multihead_norm_gate's CUDA kernels on the executor: planted faults are noticed, teams and runs of every size meet."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.functional.test_norm import check, draw
from tests.support.executor import EXECUTOR, RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from tests.support.paths import ROOT

pytestmark = pytest.mark.simt

# Fault: calls that show it, as (B, S, H, D, dtype). A run has 32 tokens, a team 8 threads and more, a pack 4 features.
FAULTS: dict[str, list[tuple[Any, ...]]] = {
    "multihead_norm_gate: one place for the sums of warps": [
        (1, 3, 1, 600, torch.float32),
        (1, 2, 2, 2048, torch.bfloat16),
        (1, 2, 1, 2100, torch.float32),
        (1, 2, 1, 40, torch.float64),
    ],
    "multihead_norm_gate: no barrier before the sums of warps": [
        (1, 3, 1, 600, torch.float16),
        (1, 1, 1, 70, torch.float64),
    ],
    "multihead_norm_gate: the variance counts what lies past a row": [
        (1, 2, 1, 100, torch.float32),
        (1, 2, 2, 5, torch.bfloat16),
    ],
    "multihead_norm_gate: whole packs in rows that are not aligned": [
        (1, 5, 2, 7, torch.float32),
        (1, 3, 1, 18, torch.bfloat16),
    ],
    "multihead_norm_gate_bwd: half of the teams of a run": [(1, 5, 1, 8, torch.float32), (1, 4, 2, 256, torch.float16)],
    "multihead_norm_gate_bwd: the mean has no gradient": [(1, 2, 1, 12, torch.float32)],
    "multihead_norm_gate_sums: half of the groups": [(1, 70, 1, 4, torch.float32), (2, 40, 2, 3, torch.float64)],
}
CASES = [(name, call) for name, calls in FAULTS.items() for call in calls]


def compare(B: int, S: int, H: int, D: int, dtype: torch.dtype, backend: str = RACE_EXECUTOR) -> None:
    """With a mean, which a wrong norm does not forgive."""
    inputs = draw(B, S, H, D, dtype)
    check(inputs | {"h": (inputs["h"].detach() + 1).requires_grad_()}, backend, weight_offset=1.0)


@needs_race_build
@pytest.mark.parametrize(("mutant", "call"), CASES, ids=str)
def test_fault_is_caught(mutant: str, call: tuple[Any, ...], fresh_seed: int) -> None:
    assert missed(mutant, partial(compare, *call)) == []


def test_every_fault_has_a_case() -> None:
    sources = (ROOT / "csrc" / "cuda" / "norm").glob("*.*")
    assert set().union(*(planted(str(source.relative_to(ROOT))) for source in sources)) == set(FAULTS)


@pytest.mark.parametrize("S", [1, 2, 31, 32, 33, 65, 128, 129, 300])
def test_runs_meet(S: int, fresh_seed: int) -> None:
    for D, dtype in ((8, torch.float32), (130, torch.bfloat16), (600, torch.float32), (5, torch.float64)):
        compare(2, S, 2 if D < 100 else 1, D, dtype, EXECUTOR)


def test_many_features(fresh_seed: int) -> None:
    compare(1, 2, 37, 30, torch.float32, EXECUTOR)
    compare(1, 2, 3, 700, torch.bfloat16, EXECUTOR)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_an_eps_of_zero_reaches_no_row_that_is_not_there(norm: str, fresh_seed: int) -> None:
    """A team that has no more tokens divides by the root of eps."""
    check(draw(1, 33, 1, 20), EXECUTOR, norm=norm, eps=0.0)
