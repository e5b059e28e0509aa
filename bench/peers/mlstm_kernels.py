"""The package `mlstm_kernels`: the chunkwise mLSTM and its step in plain PyTorch, and two Triton kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import gcd

from torch import Tensor

from ..calls import Builder, Call, Implementation, peer
from ..claims import WITHOUT_NORM_GRAD
from ..ops import MLSTM_STATE, Outputs, Shape, Tensors

CHUNK_SIZES = (16, 32, 64, 128, 256)

# Chunk sizes of triton_xl_chunk by mode. In mlstm_kernels 2.0.6 its gradients are wrong for more than 128 tokens.
XL_CHUNKS = {"fwd": (64, 128, 256), "fwdbwd": (64, 128)}
SMALLEST_CHUNK = 64  # the only one of triton_limit_chunk that is timed


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


xl_chunk = partial(mlstm_chunkwise, chunk_size=128, kernel="triton_xl_chunk")
limit_chunk = partial(mlstm_chunkwise, chunk_size=SMALLEST_CHUNK, kernel="triton_limit_chunk")


def xl_chunk_sizes(op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
    return {f"chunk {size}": partial(xl_chunk, chunk_size=size) for size in XL_CHUNKS[mode] if shape["S"] % size == 0}


def limit_chunk_sizes(op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
    return {f"chunk {SMALLEST_CHUNK}": limit_chunk}


def without_whole_chunks(op: str, shape: Shape) -> str | None:
    return None if shape["S"] % SMALLEST_CHUNK == 0 else f"needs S divisible by {SMALLEST_CHUNK}"


def _triton(name: str, builder: Builder, choices: Callable[[str, Shape, str], Mapping[str, Builder]]) -> Implementation:
    return peer(
        *(f"mlstm_kernels-{name}", {"mlstm": builder}, "mlstm_kernels", "triton"),
        devices=("cuda",),
        claims={"mlstm": WITHOUT_NORM_GRAD},
        refuses=without_whole_chunks,
        choices=choices,
    )


IMPLEMENTATIONS = (
    peer(
        *("mlstm_kernels", {"mlstm": mlstm_chunkwise, "mlstm_step": mlstm_step}, "mlstm_kernels"),
        refuses=without_chunks,
        choices=by_chunk_size,
    ),
    _triton("xl_chunk", xl_chunk, xl_chunk_sizes),
    _triton("limit_chunk", limit_chunk, limit_chunk_sizes),
)
