"""What an op is: a function to be benchmarked, with its inputs, its float64 reference, nominal work and traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Shape = dict[str, int]
Tensors = dict[str, Any]  # name: Tensor; Any, as they are passed on as keyword arguments
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Op:
    name: str
    keys: tuple[str, ...]  # of a shape
    modes: tuple[str, ...]
    draw: Callable[[Shape, torch.dtype, str], Tensors]  # seeded inputs on a device
    oracle: Callable[[Tensors], Outputs]  # on float64 inputs: what an implementation has to return
    outputs: tuple[str, ...]
    flops: Callable[[Shape], int]  # of the forward
    traffic: Callable[[Shape, int, int], int]  # bytes of inputs and outputs; sizes of T (data) and A (gates, states)
    may_be_zero: tuple[str, ...] = ()  # of the keys
    checked: Mapping[str, int] = field(default_factory=dict)  # the largest sizes of a check
    tokens: Callable[[Shape], int] | None = None  # of a call, where tokens per second are what a reader asks for
    depth: Callable[[Shape], int] = lambda _: 1  # functions in a row: its errors may be so many times those of one

    def work(self, shape: Shape, mode: str) -> int:
        """Nominal FLOPs of a call; each product of the forward has two of its size in the backward."""
        return self.flops(shape) * (3 if mode == "fwdbwd" else 1)

    def bytes(self, shape: Shape, mode: str, dtype: torch.dtype) -> int:
        """Compulsory bytes of a call; the backward reads inputs, outputs and dh again and writes the gradients."""
        sizes = dtype.itemsize, torch.promote_types(dtype, torch.float32).itemsize
        return self.traffic(shape, *sizes) * (3 if mode == "fwdbwd" else 1)
