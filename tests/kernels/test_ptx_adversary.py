"""Kernels are right whatever the ISA leaves open: the error of approximations, contraction, old values."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_recurrent_variants import only
from tests.support.against_reference import check
from tests.support.mutants import simt_options
from xlstm_cuda import _ops
from xlstm_cuda.functional import mlstm, slstm
from xlstm_cuda.testing import mlstm_inputs, slstm_inputs

NAMESPACE, BACKEND = _ops.PTX_RACE_NAMESPACE, "ptx_race"
pytestmark = [
    pytest.mark.simt,
    pytest.mark.skipif(not _ops.available(NAMESPACE), reason="make ptx builds it"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
SEEDS = pytest.mark.parametrize("seed", range(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@SEEDS
@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
def test_mlstm(dtype: torch.dtype, seed: int, input_gate: str) -> None:
    inputs = mlstm_inputs(1, 1, 70, 24, 40, dtype=dtype, state=True, requires_grad=True, seed=seed)
    with simt_options(NAMESPACE, adversary=1, seed=seed):
        check(mlstm, inputs, BACKEND, input_gate=input_gate, eps=1.0)


@SEEDS
@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
def test_mlstm_in_bfloat16(seed: int, input_gate: str) -> None:
    """Forward: gradients of few tokens in 16 bits are ill-conditioned for some of these inputs."""
    inputs = mlstm_inputs(1, 1, 70, 24, 40, dtype=torch.bfloat16, state=True, seed=seed)
    with simt_options(NAMESPACE, adversary=1, seed=seed):
        check(mlstm, inputs, BACKEND, input_gate=input_gate, eps=1.0)


@DTYPES
@SEEDS
@pytest.mark.parametrize(("variant", "D"), [("block", 24), ("cluster", 72), ("grid", 72), ("launch", 24)])
def test_slstm(dtype: torch.dtype, seed: int, variant: str, D: int) -> None:
    """The grid variant exchanges h through relaxed loads of global memory, which may give old values."""
    inputs = slstm_inputs(3, 4, 1, D, dtype=dtype, state=True, requires_grad=True, seed=seed)
    with only(BACKEND, variant), simt_options(NAMESPACE, adversary=1, seed=seed):
        check(slstm, inputs, BACKEND, outputs=["h", "state.h"])  # m has branches that rounding may exchange
