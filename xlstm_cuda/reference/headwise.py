"""Linear maps of blocks of features, each block by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._dtypes import accumulation_dtype


def headwise_linear(
    x: Tensor, weight: Tensor | Sequence[Tensor], bias: Tensor | Sequence[Tensor | None] | None = None
) -> Tensor | tuple[Tensor, ...]:
    """y (..., N O) in x's dtype for weight (N, O, I) and bias (N O,) or None; x (..., N I). Of several, a tuple."""
    if isinstance(weight, Tensor):
        return _mapped(x, weight, bias if isinstance(bias, Tensor) else None)
    biases = [None] * len(weight) if bias is None else bias
    return tuple(_mapped(x, w, b) for w, b in zip(weight, biases, strict=True))


def _mapped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    compute = accumulation_dtype(x.dtype)
    blocks = x.to(compute).unflatten(-1, (weight.shape[0], weight.shape[2]))
    y = torch.einsum("...ni,noi->...no", blocks, weight.to(compute)).flatten(-2)
    if bias is not None:
        y = y + bias.to(compute)
    return y.to(x.dtype)
