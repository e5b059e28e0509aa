"""The compiled operators: loading, fake kernels (torch.compile, torch.export), and what they refuse by themselves.

The schemas live in csrc/ops. The library `xlstm_cuda._C` carries them (namespace xlstm_cuda); for tests only there is
the executor of the CUDA kernels on the CPU, plain and with its race detector: of their sources (xlstm_cuda_simt and
xlstm_cuda_simt_race), and of the PTX that nvcc makes of them (xlstm_cuda_ptx and xlstm_cuda_ptx_race).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from xlstm_cuda import _extension, _flops
from xlstm_cuda._kept import kept_bytes

NAMESPACE = "xlstm_cuda"
SIMT_NAMESPACE = "xlstm_cuda_simt"
SIMT_RACE_NAMESPACE = "xlstm_cuda_simt_race"
PTX_NAMESPACE = "xlstm_cuda_ptx"
PTX_RACE_NAMESPACE = "xlstm_cuda_ptx_race"

# The numbers by which the ops take what has a name: those of the enums in csrc/core and csrc/cuda. An op on tensors
# takes no string, because torch's stable ABI never frees the copy that it makes of one.
CELLS = {"lstm": 0, "slstm": 1, "slstm_exp": 2}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "sigmoid": 3, "relu": 4, "relu^2": 5}
PRODUCTS = {"bf16": 0, "tf32": 1, "tf32x3": 2, "f64": 3}  # of the test ops on single kernels, as are the outputs
OUTPUTS = {"h": 0, "dq": 1, "dk": 2, "dv": 3}

_registered: set[str] = set()
_kernels: set[tuple[str, str, str]] = set()  # (namespace, op, device type) that a loaded library computes
_import_error = ImportError()  # why the extension did not load, where it did not
_cuda = False


def library(namespace: str) -> Any:
    """torch.ops.<namespace>, loaded and registered. Raises ImportError if the library was not built."""
    if namespace not in _registered:
        _load(namespace)
    return getattr(torch.ops, namespace)


def available(namespace: str) -> bool:
    """Whether the library of this namespace is built and loads."""
    return namespace in _registered or (namespace != NAMESPACE and _executor_file(namespace).exists())


def has_cuda() -> bool:
    """Whether the library was built with CUDA kernels."""
    return _cuda


def has_kernel(namespace: str, op: str, device_type: str) -> bool:
    """Whether a loaded library has a kernel of this op for tensors on such a device."""
    return (namespace, op, device_type) in _kernels


def on_cuda_kernels(namespace: str, x: Tensor) -> bool:
    """Whether an op runs its CUDA kernels on x: on a GPU, or on the executor."""
    return x.is_cuda or namespace != NAMESPACE


def _load(namespace: str) -> None:
    if namespace == NAMESPACE:
        raise ImportError(*_import_error.args) from _import_error
    file = _executor_file(namespace)
    if not file.exists():
        raise ImportError(
            f"xlstm_cuda: the test library of backend='{file.stem[1:]}' is not built: run `make {_target(namespace)}` "
            "in the source tree (it needs GCC, x86-64 Linux and the headers of CUDA, for PTX also nvcc, no GPU)."
        )
    torch.ops.load_library(str(file))
    register(namespace)


def _executor_file(namespace: str) -> Path:
    return Path(__file__).parent / f"_{namespace.removeprefix('xlstm_cuda_')}.so"


def _target(namespace: str) -> str:
    return "ptx" if namespace in (PTX_NAMESPACE, PTX_RACE_NAMESPACE) else "simt"


def register(namespace: str) -> None:
    """Register fake kernels and flops of a namespace's ops, and formulas that raise for what is above the ops."""
    fakes = _FAKES if namespace == NAMESPACE else _FAKES | _EXECUTOR_FAKES
    for name, fake in fakes.items():
        torch.library.register_fake(f"{namespace}::{name}", _traced(fake))
    for name in _FAKES:
        if not name.endswith("_"):  # torch itself refuses to batch an op that writes to its inputs
            torch.library.register_vmap(f"{namespace}::{name}", _refuse)
        if name.endswith("_bwd"):
            torch.library.register_autograd(f"{namespace}::{name}", _refuse)
    for name in (*_FAKES, *_CPU_OPS) if namespace == NAMESPACE else _FAKES:
        for device_type in ("cpu", "cuda"):
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", device_type.upper()):
                _kernels.add((namespace, name, device_type))
    _flops.register(namespace)
    _registered.add(namespace)


def _refuse(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(
        "xlstm_cuda: second derivatives and torch.vmap are supported by the public functions, not by the ops below them"
    )


def _traced(fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake kernel, which is all that the exporter to ONNX runs of an op."""

    def kernel(*args: Any) -> Any:
        if exports_to_onnx():
            raise RuntimeError(
                "xlstm_cuda: ONNX has no operator for the compiled ops, which a program of torch.export holds: hand "
                "the module itself to torch.onnx.export, or call torch.export under xlstm_cuda.backend('reference')"
            )
        return fake(*args)

    return kernel


def exports_to_onnx() -> bool:
    """Whether torch.onnx.export is at work."""
    return "torch.onnx._internal.exporter" in sys.modules and torch.onnx.is_in_onnx_export()


exports_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as functional/_precision.py says


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of gates' arithmetic, accumulators and states for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Fake kernels: shapes, dtypes and strides of the results, nothing else. Arguments as in the schemas of csrc/ops.


def _mlstm_fwd(
    q: Tensor, k: Tensor, v: Tensor, i: Any, f: Any, C0: Any, n0: Any, m0: Any, cu_seqlens: Tensor | None, reset: Any,
    sigmoid_gate: Any, normalize: Any, scale: Any, eps: Any, chunk_size: int = 0, allow_tf32: Any = False,
    norm_grad: Any = True, keep: bool = False, *, executor: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, heads, seqlen, _ = q.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    r = q.new_empty((batch, heads, seqlen), dtype=accumulate_dtype(q.dtype))
    on_gpu = q.is_cuda or executor  # CPU kernels keep nothing
    kept = kept_bytes(q, v, rows, cu_seqlens is not None, chunk_size) if keep and on_gpu else 0
    return (torch.empty_like(v), *_mlstm_state(q, v, rows), r, q.new_empty((kept,), dtype=torch.uint8))


def _mlstm_bwd(dh: Tensor, dC: Tensor | None, dn: Tensor | None, dm: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    q, k, v, i, f, _, _, _, cu_seqlens = rest[:9]
    rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (*(torch.empty_like(x) for x in (q, k, v, i, f)), *_mlstm_state(q, v, rows))


def _mlstm_step(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (v.new_empty(v.shape), *_mlstm_state(q, v, q.shape[0]))


def _mlstm_step_(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return v.new_empty(v.shape)


def _mlstm_state(q: Tensor, v: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    heads, dim_qk, dim_v, dtype = q.shape[1], q.shape[-1], v.shape[-1], accumulate_dtype(q.dtype)
    return (
        q.new_empty((rows, heads, dim_qk, dim_v), dtype=dtype),
        q.new_empty((rows, heads, dim_qk), dtype=dtype),
        q.new_empty((rows, heads), dtype=dtype),
    )


def _recurrent_fwd(x: Tensor, R: Tensor, *rest: Any, executor: bool = False) -> tuple[Tensor, ...]:
    batch, seqlen, _, heads, dim = x.shape
    cell, _, _, save = rest[-4:]
    # CUDA kernels save in the dtype of x, those of the CPU in the wider one
    saved_dtype = x.dtype if x.is_cuda or executor else accumulate_dtype(x.dtype)
    saved = x.new_empty((batch, seqlen, 5, heads, dim) if save else (0,), dtype=saved_dtype)
    return (x.new_empty((batch, seqlen, heads, dim)), *_cell_state(x, cell), saved)


def _recurrent_bwd(dh: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    R, cell = rest[4], rest[-3]
    batch, seqlen, heads, dim = dh.shape
    dx = dh.new_empty((batch, seqlen, 4, heads, dim))
    db = R.new_empty((4, heads, dim), dtype=accumulate_dtype(R.dtype))
    return (dx, R.new_empty(R.shape), db, *_cell_state(dx, cell))


def _recurrent_step(x: Tensor, R: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _cell_state(x, rest[-1])


def _cell_state(x: Tensor, cell: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, dim = x.shape[0], x.shape[-2], x.shape[-1]
    full, empty = (batch, heads, dim), (0,)
    shapes = (full, full, empty, empty) if cell == CELLS["lstm"] else (full,) * 4
    h, c, n, m = (x.new_empty(shape, dtype=accumulate_dtype(x.dtype)) for shape in shapes)
    return h, c, n, m


def _causal_conv1d_fwd(
    x: Tensor, weight: Tensor, bias: Any, state: Any, cu_seqlens: Any, *_: Any
) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), x.new_empty(_conv_state(x, weight, cu_seqlens))


def _causal_conv1d_bwd(dy: Tensor, dstate: Any, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shapes = weight.shape, weight.shape[:1], _conv_state(x, weight, rest[2])
    dtype = accumulate_dtype(x.dtype)
    return (x.new_empty(x.shape), *(x.new_empty(shape, dtype=dtype) for shape in shapes))


def _causal_conv1d_step_(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _conv_state(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int]:
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return rows, weight.shape[1] - 1, x.shape[2]


def _multihead_norm_gate_fwd(h: Tensor, *_: Any) -> Tensor:
    return h.new_empty((*h.shape[:2], h.shape[2] * h.shape[3]))


def _multihead_norm_gate_bwd(
    dy: Tensor, h: Tensor, weight: Any, bias: Any, gate: Any, skip: Any, skip_weight: Any, *_: Any
) -> tuple[Tensor, ...]:
    def gradient(x: Tensor | None, dtype: torch.dtype) -> Tensor:
        return h.new_empty((0,) if x is None else x.shape, dtype=dtype)

    wide = accumulate_dtype(h.dtype)
    dweight, dbias, dskip_weight = (gradient(x, wide) for x in (weight, bias, skip_weight))
    dgate, dskip = gradient(gate, h.dtype), gradient(skip, h.dtype)
    return gradient(h, h.dtype), dweight, dbias, dgate, dskip, dskip_weight


def _headwise_linear_fwd(x: Tensor, *maps: Tensor | None) -> tuple[Tensor, ...]:
    shapes = [(0,) if w is None else (*x.shape[:2], w.shape[0] * w.shape[1]) for w in maps[:2]]
    return tuple(x.new_empty(shape) for shape in shapes)


def _headwise_linear_bwd(dy0: Any, dy1: Any, x: Tensor, *weights: Tensor | None) -> tuple[Tensor, ...]:
    shapes = [(0,) if w is None else w.shape for w in weights]
    shapes += [(0,) if w is None else (w.shape[0] * w.shape[1],) for w in weights]
    dtype = accumulate_dtype(x.dtype)
    return (x.new_empty(x.shape), *(x.new_empty(shape, dtype=dtype) for shape in shapes))


def _gated_activation_fwd(x: Tensor, gate: Tensor | None, _: Any) -> Tensor:
    return x.new_empty((*x.shape[:2], x.shape[2] // (2 if gate is None else 1)))


def _gated_activation_bwd(dy: Tensor, x: Tensor, gate: Tensor | None, _: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((0,) if gate is None else x.shape)


def _soft_cap_fwd(x: Tensor, _: Any) -> Tensor:
    return x.new_empty(x.shape)


def _soft_cap_bwd(dy: Tensor, x: Tensor, _: Any) -> Tensor:
    return x.new_empty(x.shape)


_FAKES: dict[str, Callable[..., Any]] = {
    "mlstm_fwd": _mlstm_fwd,
    "mlstm_bwd": _mlstm_bwd,
    "mlstm_step": _mlstm_step,
    "mlstm_step_": _mlstm_step_,
    "mlstm_step_out_": _mlstm_step_,
    "recurrent_fwd": _recurrent_fwd,
    "recurrent_bwd": _recurrent_bwd,
    "recurrent_step": _recurrent_step,
    "causal_conv1d_fwd": _causal_conv1d_fwd,
    "causal_conv1d_bwd": _causal_conv1d_bwd,
    "causal_conv1d_step_": _causal_conv1d_step_,
    "multihead_norm_gate_fwd": _multihead_norm_gate_fwd,
    "multihead_norm_gate_bwd": _multihead_norm_gate_bwd,
    "headwise_linear_fwd": _headwise_linear_fwd,
    "headwise_linear_bwd": _headwise_linear_bwd,
    "gated_activation_fwd": _gated_activation_fwd,
    "gated_activation_bwd": _gated_activation_bwd,
    "soft_cap_fwd": _soft_cap_fwd,
    "soft_cap_bwd": _soft_cap_bwd,
}
_EXECUTOR_FAKES: dict[str, Callable[..., Any]] = {
    "mlstm_fwd": partial(_mlstm_fwd, executor=True),
    "recurrent_fwd": partial(_recurrent_fwd, executor=True),
}
_CPU_OPS = ("few_rows_linear", "large_block_step")  # without gradients and fake kernels: called in eager mode only

_extension.refuse_second_copy(NAMESPACE)
try:
    _cuda = _extension.load(NAMESPACE).build_info()["cuda"] is not None
except ImportError as error:
    _import_error = error
else:
    register(NAMESPACE)
