"""slstm and lstm by a launch per step, on the host executor: sizes, layouts, and every fault planted in the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.support.against_reference import check
from tests.support.executor import EXECUTOR, PLAIN, RACE, RACE_EXECUTOR, needs_race_build
from tests.support.mutants import missed, planted
from xlstm_cuda import _ops, lstm, slstm
from xlstm_cuda.testing import Tolerance, lstm_inputs, slstm_inputs

SOURCES = [f"csrc/cuda/recurrent/{name}" for name in ("stepwise_kernel.h", "stepwise_fwd.cu", "stepwise_bwd.cu")]
pytestmark = [pytest.mark.simt, needs_race_build]


@pytest.fixture(autouse=True)
def stepwise() -> Iterator[None]:
    """Both executors run a launch per step, whatever else would fit."""
    variants = [_ops.library(namespace).recurrent_variant for namespace in (PLAIN, RACE)]
    before = [use("launch") for use in variants]
    yield
    for use, name in zip(variants, before, strict=True):
        use(name)


def compare(
    B: int,
    S: int,
    H: int,
    D: int,
    dtype: torch.dtype,
    layout: str = "rows",
    *,
    backend: str = RACE_EXECUTOR,
    function: Any = slstm,
    padded: bool = True,
    reversed_heads: int = 0,
    tolerance: Tolerance | None = None,
    **options: Any,
) -> None:
    """Outputs, states and gradients. Those of R and b are another kernel's."""
    draw = slstm_inputs if function is slstm else lstm_inputs
    inputs = draw(B, S, H, D, dtype=dtype, state=True, requires_grad=True)
    inputs["R"] = weights(inputs["R"].detach(), layout)
    inputs["b"] = inputs["b"].detach()
    rows: dict[str, Any] = {"reversed_heads": reversed_heads}
    if padded:
        generator = torch.Generator().manual_seed(B + D)
        rows["lengths"] = torch.randint(0, S + 1, (B,), generator=generator)
        rows["lengths"][0] = S - 1
        rows["reset"] = torch.rand(B, S, generator=generator) < 0.25
        x = inputs["x"].detach()
        x[torch.arange(S) >= rows["lengths"][:, None]] = float("nan")
        inputs["x"] = x.requires_grad_()
    check(function, inputs, backend, tolerance=tolerance, **rows, **options)


def weights(R: Tensor, layout: str) -> Tensor:
    """R with contiguous rows or columns; in whole vectors, or misaligned by one element."""
    if "columns" in layout:
        return weights(R.mT, layout.replace("columns", "rows")).mT
    D = R.shape[-1]
    return pad(R, (1, -D % 8 + 7))[..., 1 : D + 1] if "misaligned" in layout else pad(R, (0, -D % 8))[..., :D]


# Edges of units, windows and groups of batch rows; warps without a window and with several.
SIZES = [
    (1, 3, 1, 1, torch.float64, "rows"),
    (2, 4, 2, 5, torch.float32, "columns"),
    (17, 3, 1, 18, torch.float64, "columns"),
    (33, 3, 2, 24, torch.bfloat16, "rows"),
    (70, 2, 1, 16, torch.bfloat16, "columns"),
    (40, 2, 1, 40, torch.float32, "rows"),
    (3, 2, 1, 300, torch.float16, "columns"),
    (9, 2, 1, 296, torch.bfloat16, "columns"),
    (9, 3, 1, 264, torch.float16, "rows"),
    (2, 2, 1, 300, torch.float32, "rows"),
    (10, 3, 1, 32, torch.bfloat16, "misaligned rows"),
    (10, 3, 1, 12, torch.float32, "misaligned columns"),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_and_layouts(size: tuple[Any, ...]) -> None:
    compare(*size, backend=EXECUTOR, function=lstm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_cells(dtype: torch.dtype, forget_gate: str) -> None:
    compare(3, 5, 2, 24, dtype, forget_gate=forget_gate)
    compare(3, 5, 3, 24, dtype, "columns", reversed_heads=2, forget_gate=forget_gate)


def test_strided_inputs() -> None:
    inputs = lstm_inputs(2, 3, 2, 9, state=True)
    x = torch.zeros(3, 4, 2, 2, 19)  # time, gate, batch, head
    x[..., 5:14] = inputs["x"].permute(1, 2, 0, 3, 4)
    inputs["x"] = x[..., 5:14].permute(2, 0, 1, 3, 4)
    check(lstm, inputs, RACE_EXECUTOR)


def test_one_pass_of_tf32() -> None:
    call = partial(compare, 9, 3, 1, 40, torch.float32, function=lstm)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        call(tolerance=Tolerance(1e-3, 2e-3, 2e-3))
        with pytest.raises(AssertionError):
            call()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    call()


Call = tuple[int, int, int, int, torch.dtype, str]
# Fault: a call that shows it.
FAULTS: dict[str, Call] = {
    "recurrent_stepwise: sums read before all warps wrote them": (2, 2, 1, 16, torch.bfloat16, "rows"),
    "recurrent_stepwise: sums of the first warps only": (2, 2, 1, 72, torch.bfloat16, "rows"),
    "recurrent_stepwise: rows past the batch": (3, 2, 1, 8, torch.float16, "rows"),
    "recurrent_stepwise: units of the next head": (2, 2, 2, 20, torch.float32, "rows"),
    "recurrent_stepwise: R of the first head for all": (2, 3, 2, 8, torch.float32, "columns"),
    "recurrent_stepwise: rows of R taken for columns": (2, 3, 1, 16, torch.float32, "rows"),
    "recurrent_stepwise: whole vectors at the edge": (2, 2, 1, 10, torch.bfloat16, "rows"),
    "recurrent_stepwise_fwd: h of the token itself": (2, 3, 1, 8, torch.float32, "rows"),
    "recurrent_stepwise_fwd: tokens past the end of a row": (3, 3, 1, 8, torch.float32, "rows"),
    "recurrent_stepwise_fwd: resets ignored": (3, 4, 1, 8, torch.float32, "rows"),
    "recurrent_stepwise_bwd: gates of the token itself": (2, 3, 1, 8, torch.float32, "rows"),
    "recurrent_stepwise_bwd: tokens past the end of a row": (3, 3, 1, 8, torch.float32, "rows"),
    "recurrent_stepwise_bwd: resets ignored": (3, 4, 1, 8, torch.float32, "rows"),
}


@pytest.mark.parametrize("mutant", FAULTS)
def test_fault_is_caught(mutant: str) -> None:
    assert missed(mutant, partial(compare, *FAULTS[mutant])) == []


def test_every_fault_has_a_case() -> None:
    assert set().union(*map(planted, SOURCES)) == set(FAULTS)
