"""Peers of the mLSTM on a GPU: Triton kernels of `mlstm_kernels` and `fla`, and torch's attention."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from ..calls import Builder, Call
from ..ops import Outputs, Shape, Tensors
from .mlstm_kernels import mlstm_chunkwise

# Chunk sizes of triton_xl_chunk by mode. In mlstm_kernels 2.0.6 its gradients are wrong for more than 128 tokens.
XL_CHUNKS = {"fwd": (64, 128, 256), "fwdbwd": (64, 128)}
SMALLEST_CHUNK = 64  # the only one of triton_limit_chunk that is timed

FLASH, CUDNN, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION


xl_chunk = partial(mlstm_chunkwise, chunk_size=128, kernel="triton_xl_chunk")
limit_chunk = partial(mlstm_chunkwise, chunk_size=SMALLEST_CHUNK, kernel="triton_limit_chunk")


def xl_chunk_sizes(op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
    return {f"chunk {size}": partial(xl_chunk, chunk_size=size) for size in XL_CHUNKS[mode] if shape["S"] % size == 0}


def limit_chunk_sizes(op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
    return {f"chunk {SMALLEST_CHUNK}": limit_chunk}


def without_whole_chunks(op: str, shape: Shape) -> str | None:
    return None if shape["S"] % SMALLEST_CHUNK == 0 else f"needs S divisible by {SMALLEST_CHUNK}"


def simple_gla(t: Tensors) -> Call:
    """Tokens before heads, which is its layout and not timed; logsigmoid(f), which its user computes too, is."""
    from fla.ops.simple_gla import chunk_simple_gla

    own = {name: _swapped(t[name]).requires_grad_(t[name].requires_grad) for name in ("q", "k", "v", "f")}

    def run() -> Outputs:
        h, _ = chunk_simple_gla(own["q"], own["k"], own["v"], g=logsigmoid(own["f"]))
        return (h.transpose(1, 2),)

    return Call(run, own, dict.fromkeys(own, _swapped))


def _swapped(x: Tensor) -> Tensor:
    """Heads before tokens to tokens before heads, or back."""
    return x.detach().transpose(1, 2).contiguous()


def attention(t: Tensors, backend: SDPBackend = FLASH) -> Call:
    """By one fused backend. None is an error: the plain one would keep S x S scores."""
    leaves = {name: t[name] for name in ("q", "k", "v")}

    def run() -> Outputs:
        with sdpa_kernel(backend):
            return (scaled_dot_product_attention(*leaves.values(), is_causal=True),)

    return Call(run, leaves)


def attention_backends(op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
    """Those that have kernels for these head dimensions."""
    Dqk, Dv = shape["Dqk"], shape["Dv"]
    usable = {"flash": (FLASH, Dqk == Dv <= 256), "cudnn": (CUDNN, max(Dqk, Dv) <= 128), "efficient": (EFFICIENT, True)}
    return {name: partial(attention, backend=backend) for name, (backend, has) in usable.items() if has}
