"""Flops of the ops for torch.utils.flop_counter, which passes over ops that it does not know.

Counted are the matrix products of the plain recurrences, as torch counts those of its own ops: two flops for each
multiply-add, nothing for elementwise work. So the mLSTM's do not depend on the chunk size (a chunkwise kernel computes
more), and padding past `lengths` counts as tokens do. Arguments: shapes, under the names of the schemas in csrc/ops.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from math import prod
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]
_COUNTER = "torch.utils.flop_counter"


def register(namespace: str) -> None:
    """For every op of a loaded library: now, or when torch's counter is imported, which brings triton along."""
    if _COUNTER in sys.modules:
        _register(namespace)
    else:
        sys.meta_path.insert(0, _WhenImported(namespace))


def _register(namespace: str) -> None:
    from torch.utils.flop_counter import register_flop_formula

    for name, formula in _FORMULAS.items():
        register_flop_formula(getattr(getattr(torch.ops, namespace), name))(formula)


class _WhenImported(MetaPathFinder):
    """Finds torch's counter as all others would, once, and registers after its code has run."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register(self.namespace)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _mlstm_fwd(
    q: Shape, k: Shape, v: Shape, i: Any, f: Any, C0: Any, n0: Any, m0: Any, cu_seqlens: Any, reset: Any,
    sigmoid_gate: bool, normalize: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Per token and head k v^T, C^T q, and n^T q where the output is normalised."""
    return _mlstm(q, v, normalize)


def _mlstm_bwd(
    dh: Any, dC: Any, dn: Any, dm: Any, q: Shape, k: Shape, v: Shape, i: Any, f: Any, C0: Any, n0: Any, m0: Any,
    cu_seqlens: Any, reset: Any, h: Any, r: Any, CT: Any, nT: Any, kept: Any, sigmoid_gate: bool, normalize: bool,
    scale: float, eps: float, chunk_size: int = 0, allow_tf32: bool = False, norm_grad: bool = True, **_: Any,
) -> int:  # fmt: skip
    """Two products for each one of the forward."""
    return 2 * _mlstm(q, v, normalize and norm_grad)


def _mlstm_step(
    q: Shape, k: Shape, v: Shape, i: Any, f: Any, C: Any, n: Any, m: Any, sigmoid_gate: bool, normalize: bool,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return _mlstm(q, v, normalize)


def _mlstm_step_(
    q: Shape, k: Shape, v: Shape, i: Any, f: Any, C: Any, n: Any, m: Any, slots: Any, sigmoid_gate: bool,
    normalize: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return _mlstm(q, v, normalize)


def _mlstm_step_out_(
    q: Shape, k: Shape, v: Shape, i: Any, f: Any, C: Any, n: Any, m: Any, next_C: Any, next_n: Any, next_m: Any,
    sigmoid_gate: bool, normalize: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return _mlstm(q, v, normalize)


def _mlstm(q: Shape, v: Shape, normaliser: bool) -> int:
    """q (..., Dqk), v (..., Dv), of tokens and heads."""
    return 2 * prod(q) * (2 * v[-1] + normaliser)


def _recurrent_fwd(x: Shape, R: Shape, *_: Any, **__: Any) -> int:
    """R h for four gates, per token and head; x (B, S, 4, H, D), or (B, 4, H, D) for one token."""
    return 2 * prod(x) * R[-1]


def _recurrent_bwd(
    dh: Shape, dhT: Any, dcT: Any, dnT: Any, dmT: Any, R: Shape, *_: Any, **__: Any
) -> int:  # fmt: skip
    """R^T times the gates' gradients, and these times h^T for dR; dh (B, S, H, D)."""
    return 2 * 2 * prod(dh) * 4 * R[-1]


def _causal_conv1d_fwd(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """As torch counts a depthwise convolution: x (B, S, F) or (B, F), weight (F, K)."""
    return 2 * prod(x) * weight[1]


def _causal_conv1d_bwd(dy: Any, dstate: Any, x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * _causal_conv1d_fwd(x, weight)


def _headwise_linear_fwd(x: Shape, weight0: Shape, weight1: Shape | None, *_: Any, **__: Any) -> int:
    """As torch counts the products of the blocks."""
    return sum(2 * prod(x) * w[1] for w in (weight0, weight1) if w is not None)


def _headwise_linear_bwd(
    dy0: Any, dy1: Any, x: Shape, weight0: Shape, weight1: Shape | None, *_: Any, **__: Any
) -> int:  # fmt: skip
    return 2 * _headwise_linear_fwd(x, weight0, weight1)


_FORMULAS: dict[str, Callable[..., int]] = {
    "mlstm_fwd": _mlstm_fwd,
    "mlstm_bwd": _mlstm_bwd,
    "mlstm_step": _mlstm_step,
    "mlstm_step_": _mlstm_step_,
    "mlstm_step_out_": _mlstm_step_out_,
    "recurrent_fwd": _recurrent_fwd,
    "recurrent_bwd": _recurrent_bwd,
    "recurrent_step": _recurrent_fwd,
    "causal_conv1d_fwd": _causal_conv1d_fwd,
    "causal_conv1d_bwd": _causal_conv1d_bwd,
    "causal_conv1d_step_": _causal_conv1d_fwd,
    "headwise_linear_fwd": _headwise_linear_fwd,
    "headwise_linear_bwd": _headwise_linear_bwd,
}
