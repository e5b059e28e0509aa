"""torch.vmap over a function of the library: the new dimension becomes more rows or more heads of one call.

A function says for each of its tensors where its rows and its heads lie (`Axes`). Where neither way fits, the calls are
made one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHARED = None  # no such dimension: every row, or every head, reads all of this tensor
NEVER = -1  # a call with this tensor cannot have more rows, or heads

Axis = int | None
Tensors = Sequence[Tensor | None]


class Axes(NamedTuple):
    """The dimension of the rows, or of the heads, of each input and of each output."""

    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]


class Folding(NamedTuple):
    """How the tensors of one call and its results take a batch of `size`."""

    tensors: tuple[Axis, ...]
    results: tuple[Axis, ...]
    size: int
    inner: bool  # within a dimension the batch comes last: all reversed heads remain the last ones

    def fits(self, tensors: Tensors, dims: Sequence[int | None]) -> bool:
        """dims: the batch's dimension of each tensor, None where it has none."""
        for x, dim, axis in zip(tensors, dims, self.tensors, strict=True):
            if x is not None and (axis == NEVER or (axis is SHARED and dim is not None)):
                return False
        return not {SHARED, NEVER} & set(self.results)

    def fold(self, tensors: Tensors, dims: Sequence[int | None]) -> list[Tensor | None]:
        rows = zip(tensors, dims, self.tensors, strict=True)
        return [x if x is None or axis is SHARED else self._folded(x, dim, axis) for x, dim, axis in rows]

    def _folded(self, x: Tensor, dim: int | None, axis: int) -> Tensor:
        place = axis + self.inner
        if dim is None:
            x = x.unsqueeze(place).expand(*x.shape[:place], self.size, *x.shape[place:])
        else:
            x = x.movedim(dim, place)
        return x.flatten(axis, axis + 1)

    def unfold(self, results: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The results, and the batch's dimension of each."""
        found, dims = [], []
        for y, axis in zip(results, self.results, strict=False):
            assert axis is not None
            each = y.shape[axis] // self.size
            found.append(y.unflatten(axis, (each, self.size) if self.inner else (self.size, each)))
            dims.append(axis + self.inner)
        return tuple(found), tuple(dims)


def one_by_one(
    function: Callable[..., Sequence[Tensor]], tensors: Tensors, dims: Sequence[int | None], size: int
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """function(*tensors) for each element of the batch: the results, with the batch first."""
    pairs = list(zip(tensors, dims, strict=True))
    calls = [
        function(*(x if x is None or dim is None else x.select(dim, index) for x, dim in pairs))
        for index in range(size)
    ]
    results = tuple(torch.stack(results) for results in zip(*calls, strict=True))
    return results, (0,) * len(results)
