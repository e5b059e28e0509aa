"""What the machine that runs the tests has."""

from __future__ import annotations

import torch

from xlstm_cuda import _ops


def has_cuda() -> bool:
    """Whether the extension holds CUDA kernels and there is a device to run them."""
    if not (torch.cuda.is_available() and _ops.available(_ops.NAMESPACE)):
        return False
    from xlstm_cuda import _C

    return _C.build_info()["cuda"] is not None
