"""The packages `xlstm` and `mlstm_kernels`, where they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import gcd

from torch import Tensor

from ..calls import Builder, Call
from ..ops import MLSTM_STATE, Outputs, Shape, Tensors

CHUNK_SIZES = (16, 32, 64, 128, 256)


def xlstm_slstm(t: Tensors) -> Call:
    """The plain PyTorch sLSTM cell of `xlstm`: tokens first, gates beside the output rows of R."""
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    x: Tensor = t["x"]
    _, H, D = t["b"].shape
    grad = x.requires_grad
    R = t["R"].detach().transpose(0, 1).reshape(H, 4 * D, D).requires_grad_(grad)  # (H, 4 D, D)
    b = t["b"].detach().flatten().to(x.dtype).requires_grad_(grad)
    states = x.new_zeros(4, x.shape[0], H * D)
    pointwise = slstm_pointwise_function_registry["slstm"]

    def run() -> Outputs:
        h = slstm_forward(x.transpose(0, 1).flatten(2), states, R, b, pointwise)[0][0, 1:]  # (S, B, H D)
        return (h.transpose(0, 1).unflatten(2, (H, D)),)

    canonical = {"R": lambda g: g.unflatten(1, (4, D)).transpose(0, 1), "b": lambda g: g.unflatten(0, (4, H, D))}
    return Call(run, {"x": x, "R": R, "b": b}, canonical)


def mlstm_chunkwise(t: Tensors, chunk_size: int = 64, kernel: str = "native_autograd") -> Call:
    """The chunks have to be whole: where a check or a first call has fewer tokens, they are smaller too."""
    from mlstm_kernels.torch import get_mlstm_kernel

    function, chunk_size = get_mlstm_kernel(f"chunkwise--{kernel}"), gcd(chunk_size, t["q"].shape[2])
    return Call(lambda: (function(*_qkvif(t), chunk_size=chunk_size),), t)


def mlstm_step(t: Tensors) -> Call:
    from mlstm_kernels.torch import get_mlstm_step_kernel

    kernel = get_mlstm_step_kernel("native")
    q, k, v, i, f = _qkvif(t)
    C, n, m = (t[name] for name in MLSTM_STATE)
    i, f, m = i[..., None], f[..., None], m[..., None]

    def run() -> Outputs:
        h, (C1, n1, m1) = kernel(q, k, v, i, f, C, n, m, dtype_state=C.dtype)
        return h, C1, n1, m1.squeeze(-1)

    return Call(run, t)


def _qkvif(t: Tensors) -> tuple[Tensor, ...]:
    return tuple(t[name] for name in ("q", "k", "v", "i", "f"))


def by_chunk_size(op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
    if op != "mlstm":
        return {}
    return {f"chunk {size}": partial(mlstm_chunkwise, chunk_size=size) for size in _chunk_sizes(shape["S"])}


def without_chunks(op: str, shape: Shape) -> str | None:
    if op != "mlstm" or _chunk_sizes(shape["S"]):
        return None
    return f"needs S divisible by {min(CHUNK_SIZES)}, or at most {max(CHUNK_SIZES)}"


def _chunk_sizes(S: int) -> tuple[int, ...]:
    """Those that divide S, else one chunk of S tokens."""
    return tuple(size for size in CHUNK_SIZES if S % size == 0) or ((S,) if max(CHUNK_SIZES) >= S else ())
