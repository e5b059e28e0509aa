"""Which implementation runs a call: by device, by the `backend` argument, or by the context manager `backend(...)`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xlstm_cuda import _ops

# name: device type of the tensors and namespace of the compiled ops; the reference has neither
_BACKENDS: dict[str, tuple[str | None, str | None]] = {
    "cpu": ("cpu", _ops.NAMESPACE),
    "cuda": ("cuda", _ops.NAMESPACE),
    "simt": ("cpu", _ops.SIMT_NAMESPACE),
    "simt_race": ("cpu", _ops.SIMT_RACE_NAMESPACE),
    "ptx": ("cpu", _ops.PTX_NAMESPACE),
    "ptx_race": ("cpu", _ops.PTX_RACE_NAMESPACE),
    "reference": (None, None),
}


class _Selected(threading.local):
    # threading.local, not contextvars: torch.compile guards on it
    def __init__(self) -> None:
        self.name: str | None = None


_selected = _Selected()


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Context manager: calls without a `backend` argument use this one, in this thread. None: chosen by device again.

    name: "cpu", "cuda", "reference" (pure PyTorch), or a test library: "simt" (the CUDA kernels executed on the CPU),
    "ptx" (the same in the form of their PTX), "simt_race" and "ptx_race" (with a race detector).
    Raises ValueError for other names.
    """
    _known("backend", name)
    previous, _selected.name = _selected.name, name
    try:
        yield
    finally:
        _selected.name = previous


def default_backend() -> bool:
    """Whether a call without a `backend` argument on tensors of a CPU runs the kernels for CPUs, in this thread."""
    return _selected.name is None or _selected.name == "cpu"


def in_onnx_graph(name: str | None = None) -> bool:
    """Whether a call becomes a part of an ONNX graph that is written now: of operators of ONNX, and nothing unrolled.

    name: the call's `backend`. "reference" is exported as it stands, with loops unrolled. torch.jit.trace, of torch's
    former exporter, sees what the backends compute.
    """
    name = _selected.name if name is None else name
    return name != "reference" and _ops.exports_to_onnx() and not torch.jit.is_tracing()


def resolve(op: str, name: str | None, device: torch.device, kernel: str) -> str | None:
    """Namespace of the ops for a call that needs this kernel; None: the reference computes it.

    The reference's are the operators of ONNX graphs too, but for the recurrences, which ask `in_onnx_graph`.
    Raises ValueError for an unknown backend or a wrong device, NotImplementedError where a backend that was asked for
    does not have the kernel.
    """
    name = _selected.name if name is None else name
    _known(op, name)
    if in_onnx_graph(name):
        return None
    if name is None:
        if device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{op}: tensors must be on a cpu or cuda device, or backend='reference', got {device}")
        if device.type == "cuda" and not _ops.has_kernel(_ops.NAMESPACE, kernel, "cuda"):
            _without_cuda(op)
            return None
        return _ops.NAMESPACE
    expected, namespace = _BACKENDS[name]
    if namespace is None:
        return None
    if device.type != expected:
        raise ValueError(f"{op}: backend={name!r} needs tensors on a {expected} device, got {device}")
    if name == "cuda" and not _ops.has_cuda():
        raise ValueError(f"{op}: backend='cuda': this build of xlstm_cuda has no CUDA kernels")
    if name != "cpu":
        _ops.library(namespace)
        if not _ops.has_kernel(namespace, kernel, expected):
            raise NotImplementedError(f"{op}: backend={name!r}: there is no CUDA kernel for this call yet")
    return namespace


def _without_cuda(op: str) -> None:
    """CUDA tensors still compute where the library has no CUDA kernel; nobody should take that for the real speed."""
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"xlstm_cuda: {op}: this build has no CUDA kernel for the call, it uses the slow reference implementation",
            stacklevel=4,
        )


def _known(op: str, name: str | None) -> None:
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"{op}: backend must be None or one of {', '.join(map(repr, _BACKENDS))}, got {name!r}")
