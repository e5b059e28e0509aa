"""headwise_linear's CUDA kernels on the executor: planted faults are noticed, runs of every length meet."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch

from tests.functional.test_headwise import check, draw
from tests.support.executor import EXECUTOR, RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from tests.support.paths import ROOT
from xlstm_cuda.functional import _headwise

pytestmark = pytest.mark.simt

# Fault: calls that show it, as (leading sizes, N, features in, features out of each map, dtype). A run has 32 tokens
# forward and 64 backward. Blocks of four features, but in float64, are those of the fast kernels.
FAULTS: dict[str, list[tuple[Any, ...]]] = {
    "headwise_linear: the blocks are transposed": [
        ((1, 3), 2, 4, (4,), torch.float32),
        ((2, 5), 40, 4, (4, 4), torch.bfloat16),
    ],
    "headwise_linear_fwd: the last token of a run is left out": [
        ((1, 3), 2, 4, (4,), torch.float16),
        ((1, 33), 2, 4, (4, 4), torch.float32),
    ],
    "headwise_linear_fwd: whole packs in rows that are not aligned": [((1, 5), 3, 4, (4,), torch.float32)],
    "headwise_linear_bwd: whole packs in rows that are not aligned": [((1, 5), 3, 4, (4, 4), torch.bfloat16)],
    "headwise_linear_bwd: the first map alone": [
        ((1, 3), 2, 4, (4, 4), torch.float32),
        ((1, 70), 2, 4, (4, 4), torch.bfloat16),
    ],
    "headwise_linear_any: the first term alone": [
        ((1, 3), 2, 4, (4, 4), torch.float64),
        ((1, 40), 2, 3, (5, 2), torch.bfloat16),
    ],
    "headwise_linear_sums: half of the groups": [
        ((1, 200), 1, 4, (4,), torch.float32),
        ((2, 100), 2, 3, (2,), torch.float64),
    ],
}
CASES = [(name, call) for name, calls in FAULTS.items() for call in calls]


def compare(lead: tuple[int, ...], N: int, D: int, outs: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    check(draw(lead, N, D, outs, dtype), backend)


def compare_shifted(*call: Any) -> None:
    """x one element past a multiple of everything."""
    inputs = draw(*call[:-1])
    x = inputs["x"].detach()
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    check(inputs | {"x": moved.requires_grad_()}, call[-1])


@needs_race_build
@pytest.mark.parametrize(("mutant", "call"), CASES, ids=str)
def test_fault_is_caught(mutant: str, call: tuple[Any, ...], fresh_seed: int) -> None:
    run = compare_shifted if "not aligned" in mutant else compare
    assert missed(mutant, partial(run, *call, RACE_EXECUTOR)) == []


def test_every_fault_has_a_case() -> None:
    sources = (ROOT / "csrc" / "cuda" / "headwise").glob("*.*")
    assert set().union(*(planted(str(source.relative_to(ROOT))) for source in sources)) == set(FAULTS)


def test_limits_are_those_of_the_kernels() -> None:
    source = (ROOT / "csrc" / "core" / "headwise.h").read_text()
    found = dict(re.findall(r"constexpr int (\w+) = (\d+);", source))
    assert (int(found["kHeadwiseBlock"]), int(found["kHeadwiseMaps"])) == (_headwise.MAX_BLOCK, _headwise.MAPS)


@pytest.mark.parametrize("S", [1, 2, 31, 32, 33, 65, 128, 129, 300])
def test_runs_meet(S: int, fresh_seed: int) -> None:
    for D, dtype in ((4, torch.float32), (4, torch.bfloat16), (3, torch.float32), (4, torch.float64)):
        compare((2, S), 3, D, (D, 4), dtype, EXECUTOR)


def test_rows_apart_from_each_other(fresh_seed: int) -> None:
    """Runs end with the rows of x where these do not follow one another."""
    for D, dtype in ((4, torch.float32), (3, torch.bfloat16)):
        inputs = draw((3, 41), 5, D, (4, 4), dtype)
        wide = torch.cat([inputs["x"].detach()] * 2, 1)
        check(inputs | {"x": wide[:, 30:71].requires_grad_()}, EXECUTOR)


def test_many_features(fresh_seed: int) -> None:
    compare((1, 2), 300, 4, (4, 4), torch.float32, EXECUTOR)
    compare((1, 2), 90, 7, (16,), torch.bfloat16, EXECUTOR)
