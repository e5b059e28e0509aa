"""What lies between the cells of a block, as ops: convolution, block maps, norm over heads, gated activation, cap.

The tensors of an op have the names of its function's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from xlstm_cuda import reference

from .op import Op, Outputs, Shape, Tensors

# Options that every implementation computes with, as the layers do.
OPTIONS: dict[str, dict[str, Any]] = {
    "causal_conv1d": {"activation": "silu"},
    "headwise_linear": {},
    "multihead_norm_gate": {"weight_offset": 1.0},
    "gated_activation": {"activation": "silu"},
    "soft_cap": {"cap": 15.0},
}

Sizes = dict[str, tuple[int, ...]]  # of the tensors, by name


def call(library: Any, op: str, t: Tensors, **more: Any) -> Outputs:
    """The function of this op in a library, xlstm_cuda or its reference."""
    return (getattr(library, op)(**t, **OPTIONS[op], **more),)


def _conv_sizes(s: Shape) -> Sizes:
    return {"x": (s["B"], s["S"], s["F"]), "weight": (s["F"], s["K"]), "bias": (s["F"],)}


def _headwise_sizes(s: Shape) -> Sizes:
    return {"x": (s["B"], s["S"], s["N"] * s["I"]), "weight": (s["N"], s["I"], s["I"])}


def _norm_sizes(s: Shape) -> Sizes:
    width = s["H"] * s["D"]
    tokens = (s["B"], s["S"], width)
    return {
        "h": (s["B"], s["S"], s["H"], s["D"]),
        "weight": (width,),
        "gate": tokens,
        "skip": tokens,
        "skip_weight": (width,),
    }


def _gated_sizes(s: Shape) -> Sizes:
    return dict.fromkeys(("x", "gate"), (s["B"], s["S"], s["F"]))


def _cap_sizes(s: Shape) -> Sizes:
    return {"x": (s["B"], s["S"], s["F"])}


def _draw(sizes: Callable[[Shape], Sizes], shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    generator = torch.Generator(device).manual_seed(0)
    return {
        name: torch.randn(size, generator=generator, device=device).to(dtype) for name, size in sizes(shape).items()
    }


def _traffic(sizes: Callable[[Shape], Sizes], s: Shape, T: int, A: int) -> int:
    """The output has as many elements as the first input."""
    elements = [torch.Size(size).numel() for size in sizes(s).values()]
    return T * (sum(elements) + elements[0])


def _op(name: str, keys: tuple[str, ...], sizes: Callable[[Shape], Sizes], flops: Callable[[Shape], int]) -> Op:
    return Op(
        name,
        keys,
        ("fwd", "fwdbwd"),
        draw=partial(_draw, sizes),
        oracle=partial(call, reference, name),
        outputs=("y",),
        flops=flops,
        traffic=partial(_traffic, sizes),
    )


GLUE_OPS = (
    _op("causal_conv1d", ("B", "S", "F", "K"), _conv_sizes, lambda s: 2 * s["B"] * s["S"] * s["F"] * s["K"]),
    _op("headwise_linear", ("B", "S", "N", "I"), _headwise_sizes, lambda s: 2 * s["B"] * s["S"] * s["N"] * s["I"] ** 2),
    _op("multihead_norm_gate", ("B", "S", "H", "D"), _norm_sizes, lambda s: 0),
    _op("gated_activation", ("B", "S", "F"), _gated_sizes, lambda s: 0),
    _op("soft_cap", ("B", "S", "F"), _cap_sizes, lambda s: 0),
)
