"""Planted faults (csrc/cuda/device/mutant.h): a test chooses one by name, on the executor with the race detector."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.executor import CAPABILITY, FORM, RACE
from tests.support.paths import ROOT
from xlstm_cuda import _ops


@contextmanager
def simt_options(namespace: str = RACE, **options: str | int) -> Iterator[None]:
    """Options of an executor, by the names in csrc/ops/kernel_ops/simt_control.cpp; their defaults afterwards."""
    ops = _ops.library(namespace)
    code = "sm_90a" if options.get("compute_capability", CAPABILITY) == 90 else "sm_80"
    if FORM == "ptx" and code not in ops.ptx_kernels():
        pytest.skip(f"make ptx PTX_ARCHS={code} builds its code")
    try:
        for name, value in options.items():
            ops.simt_set(name, str(value))
        yield
    finally:
        ops.simt_set("defaults", "")


def planted(source: str) -> set[str]:
    """The names of the faults in a CUDA source, given by its path from the root."""
    return set(re.findall(r'XLSTM_MUTANT\(\s*"([^"]+)"', (ROOT / source).read_text()))


SEEDS = range(4)


def missed(mutant: str, call: Callable[[], object]) -> list[int]:
    """Seeds with which `call` does not notice the fault. Without it, it must find nothing wrong with any of them."""
    for seed in SEEDS:
        with simt_options(seed=seed):
            call()
    return [seed for seed in SEEDS if not caught(mutant, seed, call)]


def caught(mutant: str, seed: int, call: Callable[[], object]) -> bool:
    """Whether `call`, which raises AssertionError where a result is wrong, notices the fault with this seed."""
    if not _ops.library(RACE).has_planted_faults():
        pytest.skip("this is the PTX that ships: it has no planted faults")
    with simt_options(mutant=mutant, seed=seed):
        try:
            call()
        except AssertionError:
            return True
        except RuntimeError as error:
            if "simt: kernel" not in str(error):
                raise
            return True
    return False
