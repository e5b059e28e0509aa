"""mLSTM on the CPU, fewer sequences than threads (csrc/cpu/simd/mlstm_split.h): the bits of one thread alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.against_reference import gradients, run
from tests.support.threads import threads
from xlstm_cuda import mlstm
from xlstm_cuda.testing import mlstm_inputs

S, CHUNK = 150, 16
CASES: dict[str, dict[str, Any]] = {
    "one head": {},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "three heads": {"H": 3},
    "no state": {"state": False},
    "sigmoid": {"input_gate": "sigmoid"},
    "groups of chunks": {"S": 45, "chunk_size": 4, "Dqk": 512, "Dv": 1024},  # a group of them has 8 MiB of states
    "sequences of unequal length": {"chunk_size": 8, "cu_seqlens": torch.tensor([0, 0, 131, 150], dtype=torch.int32)},
}


def arguments(
    H: int = 1, Dqk: int = 24, Dv: int = 70, S: int = S, cu_seqlens: Tensor | None = None, state: bool = True,
    dtype: torch.dtype = torch.float32, **options: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Tensors and options of a call, with resets and with a forget gate that keeps nothing."""
    rows = None if cu_seqlens is None else len(cu_seqlens) - 1
    inputs = mlstm_inputs(1, H, S, Dqk, Dv, dtype=dtype, seed=0, state=state, state_rows=rows, requires_grad=True)
    with torch.no_grad():
        inputs["f"][..., 20] = -torch.inf
    reset = torch.arange(S).eq(37)[None]
    return inputs, {"chunk_size": CHUNK, "cu_seqlens": cu_seqlens, "reset": reset, **options}


def results(inputs: dict[str, Any], options: dict[str, Any]) -> list[Tensor]:
    outputs = run(mlstm, inputs, **options)
    return [*outputs.values(), *gradients(outputs, inputs).values()]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_number_of_threads_changes_no_bit(case: dict[str, Any]) -> None:
    call = arguments(**case)
    with threads(1):
        alone = results(*call)
    assert all(x.isfinite().all() for x in alone)
    for count in (2, 5):
        with threads(count):
            for got, expected in zip(results(*call), alone, strict=True):
                assert torch.equal(got, expected)


def test_split_chunks_are_right() -> None:
    """Against the reference, so that the bits above are also the right ones."""
    inputs, options = arguments(dtype=torch.float64)
    with threads(2):
        ours = results(inputs, options)
    for got, expected in zip(ours, results(inputs, {**options, "backend": "reference"}), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
