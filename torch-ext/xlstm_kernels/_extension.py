"""The compiled library of this variant, in the place of the extension of the installed package."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FOLDER = Path(__file__).parent


def refuse_second_copy(namespace: str) -> None:
    """Its namespace is its own: other versions, and the installed package, may be loaded beside it."""


def load(namespace: str) -> Any:
    """Defines torch.ops.<namespace>; what it was built with, as far as the package asks. Raises ImportError."""
    files = sorted(FOLDER.glob("*.so"))
    if len(files) != 1:
        raise ImportError(f"xlstm_kernels: {FOLDER} must hold one library, found {[file.name for file in files]}")
    torch.ops.load_library(str(files[0]))
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::mlstm_fwd", "CUDA")
    return SimpleNamespace(build_info=lambda: {"cuda": "yes" if has_cuda else None})
