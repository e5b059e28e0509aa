"""Linear maps of few rows, as a decode step has them, by a kernel that is bound by how fast weights can be read."""

from __future__ import annotations

from torch import Tensor, nn

from .._children import is_plain
from ..functional._linear import few_rows_linear, takes_few_rows


def mapped(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x): called, but for a plain nn.Linear of few rows on a CPU without gradients."""
    if is_plain(nn.Linear, linear) and takes_few_rows(x, linear.weight):  # type: ignore[arg-type]
        return few_rows_linear(x, linear.weight, linear.bias)  # type: ignore[arg-type]
    y: Tensor = linear(x)
    return y
