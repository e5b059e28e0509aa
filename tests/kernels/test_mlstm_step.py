"""mlstm_step's CUDA kernels on the executor: planted faults are noticed, an unsuitable device says what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import pad

from tests.support.against_reference import check
from tests.support.executor import EXECUTOR, PLAIN, RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted, simt_options
from xlstm_cuda import _ops, mlstm_step
from xlstm_cuda.functional import MLSTMState
from xlstm_cuda.testing import mlstm_inputs

pytestmark = pytest.mark.simt

# Fault: calls that show it, as (B, tokens, Dqk, Dv, dtype, slots). A slab is 256 rows of C, a tile 32 floats.
FAULTS: dict[str, list[tuple[Any, ...]]] = {
    "mlstm_step: slots ignored": [(2, 1, 8, 8, torch.float32, [3, 1])],
    "mlstm_step: no barrier between the gates of tokens": [(1, 7, 8, 8, torch.float32, None)],
    "mlstm_step: m overwritten while others read it": [(1, 7, 8, 8, torch.float32, None)],
    "mlstm_step: no barrier before the sums of warps": [(1, 2, 130, 8, torch.float32, None)],
    "mlstm_step: whole vectors at the last column": [
        (1, 1, 8, 6, torch.float32, None),
        (1, 5, 4, 5, torch.float64, None),
    ],
    "mlstm_step: columns past the last one are updated": [(1, 1, 8, 8, torch.float32, None)],
    "mlstm_step: slab staged while it is read": [
        (1, 1, 300, 8, torch.float32, None),
        (1, 3, 260, 4, torch.bfloat16, None),
    ],
    "mlstm_step: slab read before it is staged": [(1, 1, 8, 40, torch.bfloat16, None)],
    "mlstm_step: h read before all warps wrote it": [(1, 1, 8, 8, torch.float64, None)],
}
CASES = [(name, call) for name, calls in FAULTS.items() for call in calls]


def draw(B: int, tokens: int, Dqk: int, Dv: int, dtype: torch.dtype, rows: int | None = None) -> dict[str, Any]:
    inputs = mlstm_inputs(B, 2, tokens, Dqk, Dv, dtype=dtype, state=True, state_rows=rows)
    state = inputs.pop("initial_state")
    return {**inputs, "state": state}


def compare(
    B: int, tokens: int, Dqk: int, Dv: int, dtype: torch.dtype, slots: list[int] | None, backend: str = RACE_EXECUTOR
) -> None:
    inputs = draw(B, tokens, Dqk, Dv, dtype, rows=4 if slots else None)
    C = pad(inputs["state"].C, (0, -Dv % 8))[..., :Dv]  # aligned rows, also where Dv is not a multiple of a vector
    state = inputs["state"]._replace(C=C)
    options = {} if slots is None else {"slots": torch.tensor(slots, dtype=torch.int32)}
    check(mlstm_step, {**inputs, "state": state}, backend, **options)
    if slots is None:
        compare_inplace({**inputs, "state": state}, backend)


def compare_inplace(inputs: dict[str, Any], backend: str) -> None:
    """In place, with memory beside every row of C that must stay as it is."""
    wide = torch.full((*inputs["state"].C.shape[:3], 16 * (inputs["v"].shape[-1] // 16 + 1)), 7.0).to(
        inputs["state"].C.dtype
    )
    C = wide[..., : inputs["v"].shape[-1]]
    C.copy_(inputs["state"].C)
    h, after = mlstm_step(**inputs, backend="reference")
    state = MLSTMState(C, inputs["state"].n.clone(), inputs["state"].m.clone())
    actual, _ = mlstm_step(**{**inputs, "state": state}, inplace=True, backend=backend)
    assert torch.allclose(actual, h, atol=0.05, rtol=0.05) and torch.allclose(C, after.C, atol=1e-4, rtol=1e-4)
    assert (wide[..., C.shape[-1] :] == 7).all()


@needs_race_build
@pytest.mark.parametrize(("mutant", "call"), CASES, ids=str)
def test_fault_is_caught(mutant: str, call: tuple[Any, ...]) -> None:
    assert missed(mutant, partial(compare, *call)) == []


def test_every_fault_has_a_case() -> None:
    assert planted("csrc/cuda/mlstm_step/mlstm_step.cu") == set(FAULTS)


@needs_race_build
@pytest.mark.slow
def test_no_false_alarm() -> None:
    for seed in range(40):
        with simt_options(seed=seed):
            compare(1, 1, 300, 40, torch.float32, None)
            compare(2, 9, 20, 70, torch.bfloat16, [2, 0])


# What a device cannot run: one sentence each.


@pytest.fixture
def simt() -> str:
    if not _ops.available(PLAIN):
        pytest.skip("make simt builds it")
    return PLAIN


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"compute_capability": 75},
            r"^mlstm_step: this GPU has compute capability 7\.5, the kernels need 8\.0 or later: use backend=",
        ),
        (
            {"compute_capability": 130},
            r"^mlstm_step: this build has kernels for sm_80, .* and the GPU has compute capability 13\.0: build again "
            r"with TORCH_CUDA_ARCH_LIST=13\.0",
        ),
        (
            {"max_shared_bytes": 1024},
            r"^mlstm_step: kernel 'mlstm_step state' needs \d+ bytes of shared memory for a block, this GPU has 1024: "
            r"use smaller head dimensions or backend='reference'",
        ),
    ],
    ids=["too old", "not built for it", "shared memory"],
)
def test_unsuitable_device(simt: str, options: dict[str, int], sentence: str) -> None:
    inputs = draw(1, 1, 8, 8, torch.float32)
    before = [s.clone() for s in inputs["state"]]
    with simt_options(simt, **options), pytest.raises(RuntimeError, match=sentence):
        mlstm_step(**inputs, inplace=True, backend=EXECUTOR)
    assert all(torch.equal(a, b) for a, b in zip(inputs["state"], before, strict=True))
    check(mlstm_step, inputs, EXECUTOR)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_suitable_devices(simt: str, capability: int) -> None:
    with simt_options(simt, compute_capability=capability, max_shared_bytes=99 << 10):
        check(mlstm_step, draw(1, 16, 300, 70, torch.float64), EXECUTOR)


def test_slots_out_of_range(simt: str) -> None:
    inputs = draw(2, 1, 8, 8, torch.float32, rows=3)
    cases = [([0, 3], r"slots\[1\] = 3 is not a row"), ([-1, 0], r"slots\[0\] = -1 is not a row"), ([1, 1], "twice")]
    for slots, sentence in cases:
        rows = torch.tensor(slots, dtype=torch.int32)
        state = inputs["state"]
        tokens = [inputs[name][:, :, 0] for name in "qkvif"]
        with pytest.raises(RuntimeError, match=sentence):
            getattr(torch.ops, PLAIN).mlstm_step_(*tokens, *state, rows, False, True, 1.0, 1e-6)
