"""causal_conv1d's CUDA kernels on the executor: planted faults are noticed, runs meet, steps in place are one run."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch

from tests.functional.test_conv import check, draw
from tests.support.executor import EXECUTOR, RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from tests.support.paths import ROOT
from xlstm_cuda import _checks

pytestmark = pytest.mark.simt

# Fault: calls that show it, as (B, S, F, K, dtype). A run has 32 tokens forward and 64 backward, a vector 16 bytes.
FAULTS: dict[str, list[tuple[Any, ...]]] = {
    "causal_conv1d_fwd: the window of a run starts empty": [
        (1, 40, 8, 4, torch.bfloat16),
        (1, 33, 4, 2, torch.float32),
        (2, 1, 8, 3, torch.float16),
    ],
    "causal_conv1d_fwd: resets ignored": [(2, 9, 8, 4, torch.float32)],
    "causal_conv1d_fwd: the state keeps what a reset hides": [(2, 4, 8, 4, torch.float32)],
    "causal_conv1d_fwd: whole vectors in rows that are not aligned": [
        (1, 5, 7, 4, torch.float32),
        (2, 3, 12, 3, torch.bfloat16),
    ],
    "causal_conv1d_bwd: tokens after a run ignored": [(1, 70, 4, 4, torch.bfloat16), (1, 65, 5, 2, torch.float32)],
    "causal_conv1d_bwd: the state sees itself": [(2, 5, 4, 4, torch.float32), (1, 1, 4, 2, torch.float16)],
    "causal_conv1d_any: resets ignored": [(2, 9, 3, 6, torch.float32), (1, 9, 2, 3, torch.float64)],
    "causal_conv1d_sums: half of the groups": [(4, 5, 3, 3, torch.float32)],
}
CASES = [(name, call) for name, calls in FAULTS.items() for call in calls]


def compare(B: int, S: int, F: int, K: int, dtype: torch.dtype, backend: str = RACE_EXECUTOR) -> None:
    inputs = draw(B, S, F, K, dtype)
    reset = torch.zeros(B, S, dtype=torch.bool)
    reset[0, S // 2 :: 7] = S > 1
    check(inputs, backend, activation="silu", reset=reset)


@needs_race_build
@pytest.mark.parametrize(("mutant", "call"), CASES, ids=str)
def test_fault_is_caught(mutant: str, call: tuple[Any, ...], fresh_seed: int) -> None:
    assert missed(mutant, partial(compare, *call)) == []


def test_every_fault_has_a_case() -> None:
    sources = (ROOT / "csrc" / "cuda" / "conv").glob("*.cu")
    assert set().union(*(planted(str(source.relative_to(ROOT))) for source in sources)) == set(FAULTS)


@pytest.mark.parametrize("K", [2, 4, 7])
@pytest.mark.parametrize("S", [31, 32, 33, 63, 64, 65, 67, 129, 200])
def test_runs_meet(S: int, K: int, fresh_seed: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        compare(2, S, 10, K, dtype, EXECUTOR)


@pytest.mark.parametrize("K", [3, 4, 6])
def test_packed_sequences_of_every_length(K: int, fresh_seed: int) -> None:
    lengths = [0, 1, 2, 31, 32, 33, 0, 63, 64, 65, 0]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    inputs = draw(1, int(bounds[-1]), 8, K, torch.float32, rows=len(lengths))
    check(inputs, EXECUTOR, activation="silu", cu_seqlens=bounds)


def test_more_features_than_a_block_has(fresh_seed: int) -> None:
    for F, K in ((1100, 4), (300, 5)):
        compare(1, 4, F, K, torch.float32, EXECUTOR)


def test_a_step_in_place_is_one_run() -> None:
    source = (ROOT / "csrc" / "cuda" / "conv" / "conv.h").read_text()
    (tokens,) = re.findall(r"kConvTokens = (\d+)", source)
    assert int(tokens) >= _checks.MAX_STEP
