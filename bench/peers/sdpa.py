"""torch's scaled_dot_product_attention, by the fastest of its fused backends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..calls import Builder, Call, Claim, peer
from ..ops import Outputs, Shape, Tensors

FLASH, CUDNN, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION


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


def _causal_attention(t: Tensors) -> Outputs:
    """softmax(Dqk**-0.5 Q K^T) V, each token over itself and those before it."""
    q, k, v = (t[name] for name in ("q", "k", "v"))
    later = q.new_ones(q.shape[2], q.shape[2], dtype=bool).triu(1)
    scores = (q.shape[-1] ** -0.5 * q @ k.mT).masked_fill(later, float("-inf"))
    return (scores.softmax(-1) @ v,)


ATTENTION = Claim("another function: softmax attention", _causal_attention, ("q", "k", "v"))

IMPLEMENTATIONS = (
    peer("sdpa", {"mlstm": attention}, devices=("cuda",), claims={"mlstm": ATTENTION}, choices=attention_backends),
)
