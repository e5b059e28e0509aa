"""Norm over each head, weight, skip and output gate, one line each."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ._dtypes import accumulation_dtype


def multihead_norm_gate(
    h: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    gate_activation: str = "silu",
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    weight_offset: float = 0.0,
) -> Tensor:
    """y (B, S, H D) in h's dtype. h (B, S, H, D), gate and skip (B, S, H D), the weights and the bias (H D,)."""
    compute = accumulation_dtype(h.dtype)
    x = h.to(compute)
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2)
    if weight is not None:
        y = y * (weight_offset + weight.to(compute))
    if bias is not None:
        y = y + bias.to(compute)
    if skip is not None:
        y = y + (skip.to(compute) if skip_weight is None else skip_weight.to(compute) * skip.to(compute))
    if gate is not None:
        act = F.silu if gate_activation == "silu" else F.sigmoid
        y = y * act(gate.to(compute))
    return y.to(h.dtype)
