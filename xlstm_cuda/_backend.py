"""Which implementation runs a call: by device, by the `backend` argument, or by the context manager `backend(...)`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xlstm_cuda import _ops

# name: (device type of the tensors, operator namespace)
_BACKENDS: dict[str, tuple[str | None, str]] = {
    "cpu": ("cpu", _ops.NAMESPACE),
    "cuda": ("cuda", _ops.NAMESPACE),
    "simt": ("cpu", _ops.SIMT_NAMESPACE),
    "reference": (None, "reference"),
}


class _Selected(threading.local):
    # threading.local, not contextvars: torch.compile guards on it
    def __init__(self) -> None:
        self.name: str | None = None


_selected = _Selected()


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Context manager: calls without a `backend` argument use this one, in this thread. None: chosen by device again.

    name: "cpu", "cuda", "reference" (pure PyTorch), or "simt" (the CUDA kernels executed on the CPU; a test library).
    Raises ValueError for other names.
    """
    _known("backend", name)
    previous, _selected.name = _selected.name, name
    try:
        yield
    finally:
        _selected.name = previous


def default_backend() -> bool:
    """Whether no `backend(...)` is in force in this thread."""
    return _selected.name is None


def resolve(op: str, name: str | None, device: torch.device) -> str:
    """Operator namespace for a call, or "reference". Raises ValueError for an unknown backend or a wrong device."""
    name = _selected.name if name is None else name
    if name is None:
        if device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{op}: tensors must be on a cpu or cuda device, or backend='reference', got {device}")
        return _without_cuda() if device.type == "cuda" and not _ops.has_cuda() else _ops.NAMESPACE
    _known(op, name)
    expected, namespace = _BACKENDS[name]
    if expected is not None and device.type != expected:
        raise ValueError(f"{op}: backend={name!r} needs tensors on a {expected} device, got {device}")
    if name == "cuda" and not _ops.has_cuda():
        raise ValueError(f"{op}: backend='cuda': this build of xlstm_cuda has no CUDA kernels")
    return namespace


def _without_cuda() -> str:
    """CUDA tensors still compute where the library has no CUDA kernels; nobody should take that for the real speed."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            "xlstm_cuda: this build has no CUDA kernels; CUDA tensors use the slow reference implementation",
            stacklevel=4,
        )
    return "reference"


def _known(op: str, name: str | None) -> None:
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"{op}: backend must be None or one of {', '.join(map(repr, _BACKENDS))}, got {name!r}")
