"""What the machine that runs the tests has, and what follows from it for them."""

from __future__ import annotations

import pytest
import torch

from xlstm_cuda import _ops


def has_cuda() -> bool:
    """Whether the extension holds CUDA kernels and there is a device to run them."""
    if not (torch.cuda.is_available() and _ops.available(_ops.NAMESPACE)):
        return False
    from xlstm_cuda import _C

    return _C.build_info()["cuda"] is not None


def device_is_lost() -> bool:
    """Whether a kernel has ended in an error: then every later call of this process to the device fails too."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


MODULE_BACKENDS = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), "reference"]
traced = pytest.mark.parametrize(  # where the reference would be unrolled over time
    "module_backend", MODULE_BACKENDS[:-1], indirect=True
)
