"""Linear maps of few rows, as a decode step has them, by a kernel that is bound by how fast weights can be read."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _onnx
from .._backend import in_onnx_graph
from .._children import is_plain
from ..functional._linear import few_rows_linear, takes_few_rows


class DecodingLinear(nn.Linear):
    """nn.Linear whose own forward takes that kernel: for a child that is called by code which is not ours."""

    def forward(self, x: Tensor) -> Tensor:
        return few_rows_linear(x, self.weight, self.bias) if takes_few_rows(x, self.weight) else super().forward(x)


def mapped(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x): called, but for a plain nn.Linear of few rows on a CPU without gradients."""
    if is_plain(nn.Linear, linear) and takes_few_rows(x, linear.weight):  # type: ignore[arg-type]
        return few_rows_linear(x, linear.weight, linear.bias)  # type: ignore[arg-type]
    y: Tensor = linear(_onnx.dense(x) if in_onnx_graph() else x)
    return y
