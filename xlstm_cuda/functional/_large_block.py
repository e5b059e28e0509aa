"""A block of xLSTMLarge on a few tokens as one op: the way of a decode step on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlstm_cuda import _ops
from xlstm_cuda._states import MLSTMState
from xlstm_cuda.functional._linear import takes_few_rows
from xlstm_cuda.functional._steps import is_plain


def takes_large_block_step(x: Tensor, weights: Sequence[Tensor | None], state: MLSTMState) -> bool:
    """Whether `large_block_step` computes a block, from x (B, S, D) and a state (C, n, m): float32, and few rows."""
    q = weights[1]
    if q is None or not takes_few_rows(x, q) or not is_plain(None, (x, *weights), state):
        return False
    return all(t is None or t.dtype == torch.float32 for t in (*weights, *state))


def large_block_step(
    x: Tensor, weights: Sequence[Tensor | None], state: MLSTMState, *, norm_eps: float, eps: float, cap: float | None,
    input_gate: str,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """x (B, S, D) of at most 16 rows and a state of float32 -> (B, S, D) and the next state, in new memory.

    weights: norm_mlstm, q, k, v, o, i, its bias, f, its bias, multihead_norm, out_proj, norm_ffn, up_gate, up, down,
    float32, maps (out, in). None for k, v and o: q has the rows of all four; i and up_gate likewise. The rest as in
    `mlstm_step`. Equations: arXiv 2503.13427, section 3.
    """
    scale = state.C.shape[2] ** -0.5
    options = norm_eps, eps, scale, cap or 0.0, input_gate == "sigmoid"
    y, *after = _ops.library(_ops.NAMESPACE).large_block_step.default(x, *weights, *state, *options)
    return y, MLSTMState(*after)
