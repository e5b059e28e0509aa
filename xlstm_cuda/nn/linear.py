"""Linear maps of few rows, as a decode step has them: bound by how fast the weights can be read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _autocast
from .._children import is_ordinary, is_plain

FEW_ROWS = 3  # from four on, some shapes lose


def mapped(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x): called, but for a plain nn.Linear of few rows on a CPU without gradients, see `few_rows`."""
    if _are_few(x) and is_plain(nn.Linear, linear) and linear._parameters["weight"].dtype == x.dtype:  # type: ignore[union-attr]
        return few_rows(x, linear.weight, linear.bias)  # type: ignore[arg-type]
    y: Tensor = linear(x)
    return y


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I), weight (O, I), bias (O,) or None -> (..., O), with the weights as the left factor.

    Libraries read the weights of such a product with all threads, and faster, than those of a product with one row or
    with few rows on the left (docs/benchmarks.md). One row is computed twice, so that it is such a product.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]
    y = torch.mm(weight, (torch.cat([rows, rows]) if count == 1 else rows).t())
    y = y[:, :count].t().contiguous().view(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def _are_few(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not is_ordinary(x):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or _autocast.enabled("cpu") or x.numel() == 0:
        return False
    least = 1 if torch.get_num_threads() > 1 else 2  # one thread reads wide rows faster for one row than for two
    return least * x.shape[-1] <= x.numel() <= FEW_ROWS * x.shape[-1]
