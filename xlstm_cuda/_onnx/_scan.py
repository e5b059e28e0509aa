"""torch's `scan`, which its exporter turns into the operator `Scan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (carries, slices of the inputs, constants) -> carries, slices of the outputs
Body = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]]


def scan(
    body: Body, carries: Sequence[Tensor], inputs: Sequence[Tensor], constants: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The carries after the last slice, and the outputs: the body once for every slice of the inputs along dim 0.

    Not torch._higher_order_ops.scan itself, which wants to compile the body. The graph has no gradients.
    """
    from torch._higher_order_ops.scan import scan_op  # for this only

    counts = len(carries), len(inputs)

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        after, outputs = body(values[: counts[0]], values[counts[0] : sum(counts)], values[sum(counts) :])
        # scan allows no output to be another one, or an input.
        return (*map(dense, after), *(x.clone() for x in outputs))

    detached = [[dense(x.detach()) for x in group] for group in (carries, inputs, constants)]
    results = scan_op(flat, *detached[:2], tuple(detached[2]))  # type: ignore[call-arg]
    return list(results[: counts[0]]), list(results[counts[0] :])


def dense(x: Tensor) -> Tensor:
    """A copy whose strides follow from its shape, which is no operator in the graph.

    Where strides are others, torch decides by the example's sizes, above all by those of 1, and the graph would be for
    these only. Those of a carry of `scan` have to be the same after each slice.
    """
    return x.clone(memory_format=torch.contiguous_format)
