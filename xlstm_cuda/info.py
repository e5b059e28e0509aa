"""What is installed: `xlstm_cuda.info()` and `python -m xlstm_cuda info`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from xlstm_cuda import _ops

try:
    __version__ = version("xlstm-cuda")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"


def info() -> dict[str, Any]:
    """Versions, compiler, CUDA kernels, the CPU's SIMD level and threads, as a plain dict.

    Raises ImportError where the compiled extension cannot be loaded.
    """
    _ops.library(_ops.NAMESPACE)
    from xlstm_cuda import _C  # type: ignore[attr-defined]

    built = _C.build_info()
    return {
        "xlstm_cuda": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built with torch": built["torch"],
        "compiler": built["compiler"],
        "CUDA kernels": "off" if built["cuda"] is None else f"built with CUDA {built['cuda']}",
        "CUDA archs": ", ".join(built["cuda_archs"]) or "none",
        "CPU SIMD level": built["simd"],
        "CPU SIMD levels": ", ".join(built["simd_levels"]),
        "threads": torch.get_num_threads(),
    }
