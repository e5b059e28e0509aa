"""A device that has no room for a plan of a recurrent scan: the next plan runs, or one sentence says what it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.against_reference import check
from tests.support.executor import EXECUTOR, PLAIN, needs_executor
from tests.support.mutants import simt_options
from tests.support.variants import has_clusters, only
from xlstm_cuda import _ops, lstm
from xlstm_cuda.testing import lstm_inputs

pytestmark = [
    pytest.mark.simt,
    needs_executor,
    pytest.mark.skipif(not has_clusters(PLAIN), reason="a device without clusters has fewer plans"),
]


@pytest.fixture
def inputs() -> Iterator[dict[str, torch.Tensor]]:
    """Of a head for which backward needs more shared memory in a cluster than in a grid, and there more than for dR; of
    an LSTM, whose gradients are well-conditioned in 16 bits whatever is drawn."""
    yield lstm_inputs(2, 2, 1, 264, dtype=torch.float16, state=True, requires_grad=True)
    _ops.library(PLAIN).simt_set("forget", "")


def kernels(inputs: dict[str, torch.Tensor], **options: int) -> dict[str, int]:
    """What a right call launches, and with how much shared memory."""
    ops = _ops.library(PLAIN)
    ops.simt_set("forget", "")
    with simt_options(PLAIN, **options):
        check(lstm, inputs, EXECUTOR)
    lines = (line.split("\t") for line in ops.simt_shared_memory().splitlines())
    return {name: int(most) for name, most in lines}


def test_next_plan(inputs: dict[str, torch.Tensor]) -> None:
    in_clusters = kernels(inputs)["resident_bwd"]
    in_a_grid = kernels(inputs, max_shared_bytes=in_clusters - 1)["resident_bwd"]
    assert in_a_grid < in_clusters
    step_by_step = kernels(inputs, max_shared_bytes=in_a_grid - 1)
    assert "resident_bwd" not in step_by_step and "recurrent_stepwise_bwd" in step_by_step


def test_sentence(inputs: dict[str, torch.Tensor]) -> None:
    needed = kernels(inputs)["resident_fwd"]
    sentence = (
        rf"^recurrent_fwd: kernel 'resident_fwd' needs {needed} bytes of shared memory for a block, this GPU has "
        rf"{needed - 1}: use smaller head dimensions or backend='reference'$"
    )
    refused = pytest.raises(RuntimeError, match=sentence)
    with only("cluster", PLAIN), simt_options(PLAIN, max_shared_bytes=needed - 1), refused:
        lstm(**inputs, backend=EXECUTOR)
