"""headwise_linear: from its arguments to the ops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from xlstm_cuda import _autocast, _checks, _onnx, reference
from xlstm_cuda._autograd import HeadwiseLinear
from xlstm_cuda._backend import in_onnx_graph, resolve
from xlstm_cuda.functional._calls import computed, exportable
from xlstm_cuda.functional._tokens import as_tokens

MAX_BLOCK = 16  # features in and out of a block that the kernels take, as in csrc/core/headwise.h
MAPS = 2  # in one pass, as there


def headwise_linear(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Linear maps of blocks of features, each block by itself; several maps of one x in one call.

        y[..., n O + o] = bias[n O + o] + sum_i weight[n, o, i] x[..., n I + i]

    Args:
        x: (..., N I), dtype T.
        weight: (N, O, I), or a sequence of such weights, whose O may differ.
        bias: (N O,) or None; with several weights None, or a sequence of as many of these.
        backend: see help(xlstm_cuda.functional).

    Returns:
        y (..., N O) of dtype T, contiguous; with a sequence of weights a tuple of them.

    Sums are in A. Autocast leaves all of it as it is: y has the dtype of x. Inf and NaN of a block stay in it, but for
    the gradients of the weights. Saved for backward: x and the weights. Two maps share a pass over x, forward and
    backward. Blocks of more than 16 features, in or out, are multiplied by torch on every backend.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    op = "headwise_linear"
    weights, biases = _checks.maps(op, weight, bias)
    given = {f"bias{n}": b for n, b in biases.items() if b is not None}
    _checks.tensors(op, x=x, **{f"weight{n}": w for n, w in weights.items()}, **given)
    _checks.headwise_linear(x, weights, biases)
    namespace = resolve(op, backend, x.device, "headwise_linear_fwd")
    maps = list(zip(weights.values(), biases.values(), strict=True))
    outputs: Sequence[Tensor]
    if in_onnx_graph(backend):
        with _autocast.disabled(x.device.type):
            outputs = [_onnx.headwise_linear(x, w, b) for w, b in maps]
    elif namespace is None:
        with _autocast.disabled(x.device.type):
            found = reference.headwise_linear(x, list(weights.values()), list(biases.values()))
        outputs = cast(tuple[Tensor, ...], found)
    elif max(size for w, _ in maps for size in w.shape[1:]) > MAX_BLOCK:
        with _autocast.disabled(x.device.type):
            outputs = [_by_products(x, w, b) for w, b in maps]
    else:
        tokens = as_tokens(x)
        outputs = [
            y.view(*x.shape[:-1], y.shape[-1])
            for first in range(0, len(maps), MAPS)
            for y in _by_kernels(namespace, tokens, maps[first : first + MAPS])
        ]
    return outputs[0] if isinstance(weight, Tensor) else tuple(outputs)


# Below the arguments.


class HeadwiseOptions(NamedTuple):
    """There are none."""

    def plain(self, x: Tensor, *maps: Tensor | None) -> tuple[Tensor, ...]:
        """maps: weight0, weight1, bias0, bias1."""
        weights = [w for w in maps[:MAPS] if w is not None]
        return cast(tuple[Tensor, ...], reference.headwise_linear(x, weights, maps[MAPS : MAPS + len(weights)]))


def _by_kernels(namespace: str, x: Tensor, maps: Sequence[tuple[Tensor, Tensor | None]]) -> Sequence[Tensor]:
    absent = [None] * (MAPS - len(maps))
    inputs = (x, *(w for w, _ in maps), *absent, *(b for _, b in maps), *absent)
    return _mapped(namespace, HeadwiseOptions(), inputs)


def _by_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A library's products of matrices sum in A; the weights are as wide as they come."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    blocks = x.to(dtype).reshape(-1, weight.shape[0], weight.shape[2]).transpose(0, 1)  # (N, tokens, I)
    matrix = weight.to(dtype).mT
    if bias is None:
        y = torch.bmm(blocks, matrix)
    else:
        y = torch.baddbmm(bias.to(dtype).view(weight.shape[0], 1, -1), blocks, matrix)
    rows = y.transpose(0, 1).reshape(*x.shape[:-1], weight.shape[0] * weight.shape[1])
    return rows.to(x.dtype).contiguous()


_mapped = exportable("headwise_linear_fwd", HeadwiseOptions, partial(computed, HeadwiseLinear))
