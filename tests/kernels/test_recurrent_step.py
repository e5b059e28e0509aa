"""Every fault planted in the CUDA kernel of slstm_step and lstm_step is noticed, whatever the order of threads."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from tests.support.against_reference import check
from tests.support.executor import RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from xlstm_cuda import slstm_step
from xlstm_cuda.testing import slstm_inputs

pytestmark = pytest.mark.simt

# Fault: calls that show it, as (B, H, D, dtype, whether rows of R are contiguous).
FAULTS: dict[str, list[tuple[int, int, int, torch.dtype, bool]]] = {
    "recurrent_step: h read before it is staged": [(2, 1, 24, torch.bfloat16, True), (1, 1, 8, torch.float32, False)],
    "recurrent_step: h staged while it is read": [(2, 1, 136, torch.float32, True), (1, 1, 264, torch.float32, False)],
    "recurrent_step: sums read before all warps wrote them": [
        (1, 1, 64, torch.bfloat16, True),
        (3, 1, 16, torch.float64, False),
    ],
    "recurrent_step: whole vectors at the edge": [(2, 2, 10, torch.bfloat16, True), (1, 1, 6, torch.float32, False)],
    "recurrent_step: rows past the batch": [(3, 1, 8, torch.float16, True), (9, 1, 4, torch.float32, False)],
    "recurrent_step: R of the first head for all": [(1, 2, 16, torch.bfloat16, True), (2, 3, 5, torch.float64, False)],
    "recurrent_step: rows of R taken for columns": [(1, 1, 16, torch.float32, True), (2, 1, 16, torch.float16, False)],
}
CASES = [(name, call) for name, calls in FAULTS.items() for call in calls]


def compare(B: int, H: int, D: int, dtype: torch.dtype, rows: bool) -> None:
    inputs: dict[str, Any] = slstm_inputs(B, 1, H, D, dtype=dtype, state=True)
    R = inputs["R"] if rows else inputs["R"].mT
    R = pad(R, (0, -D % 8))[..., :D]  # aligned rows, also where D is not a multiple of a vector
    state = inputs.pop("initial_state")
    check(slstm_step, {**inputs, "x": inputs["x"][:, 0], "R": R if rows else R.mT, "state": state}, RACE_EXECUTOR)


@needs_race_build
@pytest.mark.parametrize(("mutant", "call"), CASES, ids=str)
def test_fault_is_caught(mutant: str, call: tuple[Any, ...]) -> None:
    assert missed(mutant, partial(compare, *call)) == []


def test_every_fault_has_a_case() -> None:
    assert planted("csrc/cuda/recurrent/step.cu") == set(FAULTS)
