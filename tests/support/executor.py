"""The form of the CUDA kernels that tests run on the executor: sources, or with XLSTM_EXECUTOR=ptx what nvcc makes.

XLSTM_SIMT_OPTIONS="compute_capability=80 ..." gives the executor's options other defaults, so that it imitates another
device (docs/simt.md).
"""

from __future__ import annotations

import os

import pytest

from xlstm_cuda import _ops

FORM = os.environ.get("XLSTM_EXECUTOR", "simt")
assert FORM in ("simt", "ptx"), FORM
EXECUTOR, RACE_EXECUTOR = FORM, f"{FORM}_race"  # backends
PLAIN, RACE = f"xlstm_cuda_{EXECUTOR}", f"xlstm_cuda_{RACE_EXECUTOR}"  # their namespaces
OPTIONS = dict(option.split("=", 1) for option in os.environ.get("XLSTM_SIMT_OPTIONS", "").split())
CAPABILITY = int(OPTIONS.get("compute_capability", 90))  # of the device that the executor imitates
needs_executor = pytest.mark.skipif(not _ops.available(PLAIN), reason=f"make {FORM} builds it")
needs_race_build = pytest.mark.skipif(not _ops.available(RACE), reason=f"make {FORM} builds it")
