"""Fixtures shared by all tests: every test with a `backend` runs once per backend that this machine can run."""

from __future__ import annotations

import os

import pytest
import torch

from xlstm_cuda import _ops

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def has_cuda() -> bool:
    """Whether the extension holds CUDA kernels and there is a device to run them."""
    if not (torch.cuda.is_available() and _ops.available(_ops.NAMESPACE)):
        return False
    from xlstm_cuda import _C

    return _C.build_info()["cuda"] is not None


BACKENDS = [
    "cpu",  # always: where the extension is missing the tests fail
    *(["simt"] if _ops.available(_ops.SIMT_NAMESPACE) else []),
    *(["cuda"] if has_cuda() else []),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    """Where the backend's tensors live."""
    return "cuda" if backend == "cuda" else "cpu"
