"""The package `flashrnn`: kernels of the recurrent cells, which it compiles for each shape."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..calls import Builder, Call, Implementation, peer
from ..ops import Outputs, Shape, Tensors, project

TRITON_HEAD_DIM = 64  # the most that its Triton kernels take


def flashrnn(t: Tensors, op: str, backend: str) -> Call:
    """h alone; its bias has the dtype of the data, which is no cost of a call."""
    from flashrnn import flashrnn as function

    data = t["R"]
    b = t["b"].detach().to(data.dtype).requires_grad_(t["b"].requires_grad)
    dtype = str(data.dtype).removeprefix("torch.")

    def run() -> Outputs:
        x = t["x"] if op == "slstm" else project({**t, "b": b})
        states, _ = function(x, t["R"], b, function=op, backend=backend, dtype=dtype)
        return (states[0],)

    return Call(run, {**t, "b": b})


def builders(backend: str) -> dict[str, Builder]:
    return {op: partial(flashrnn, op=op, backend=backend) for op in ("slstm", "lstm")}


def without_large_heads(op: str, shape: Shape) -> str | None:
    return None if shape["D"] <= TRITON_HEAD_DIM else f"has D at most {TRITON_HEAD_DIM}"


def _entry(name: str, backend: str, *packages: str, **more: Any) -> Implementation:
    return peer(name, builders(backend), "flashrnn", *packages, devices=("cuda",), **more)


IMPLEMENTATIONS = (
    _entry("flashrnn", "cuda_fused"),
    _entry("flashrnn-alternating", "cuda"),
    _entry("flashrnn-triton", "triton_fused", "triton", refuses=without_large_heads),
)
