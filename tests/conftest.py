"""Fixtures shared by all tests: every test with a `backend` runs once per backend that this machine can run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.support import variants
from tests.support.executor import EXECUTOR, PLAIN
from tests.support.fresh import (  # noqa: F401  hooks and fixtures
    fresh_seed,
    global_generators,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_generate_tests,
)
from tests.support.machine import MODULE_BACKENDS, device_is_lost, has_cuda
from xlstm_cuda import _ops, functional

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


BACKENDS = [
    "cpu",  # always: where the extension is missing the tests fail
    *([pytest.param(EXECUTOR, marks=pytest.mark.simt)] if _ops.available(PLAIN) else []),
    *(["cuda"] if has_cuda() else []),
]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Iterator[object]:
    """The test that loses the device ends its process: the others are not failed for it, but run in a new worker."""
    done = yield
    if device_is_lost():
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit("a kernel ended in an error: nothing more can run on the device in this process", returncode=1)
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip where a backend has no kernel yet."""
    try:
        return (yield)
    except Exception as error:  # also a pytest.raises that waited for another message
        if re.search("there is no CUDA kernel for this call yet|Could not run 'xlstm_cuda_(simt|ptx)::", str(error)):
            pytest.skip("there is no CUDA kernel for this call yet")
        raise


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[str]:
    record_property("backend", request.param)  # into the report that make gpu-check counts
    if request.param == EXECUTOR:
        # Few blocks, whose tiles have many rows: the executor runs them in turn. tests/kernels has the others.
        with variants.only("teams=1", PLAIN):
            yield request.param
    else:
        yield request.param


@pytest.fixture
def device(backend: str) -> str:
    """Where the backend's tensors live."""
    return "cuda" if backend == "cuda" else "cpu"


@pytest.fixture(params=MODULE_BACKENDS)
def module_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """For tests of modules, which leave the backend to the functions: tensors are made where it runs."""
    torch.set_default_device("cuda" if request.param == "cuda" else "cpu")
    with functional.backend(request.param):
        yield request.param
    torch.set_default_device(None)
