"""SwiGLU as the public `xlstm` package and transformers have it: the same names, two classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .._children import only_forward
from ..nn.feedforward import gated
from ..nn.linear import mapped


class GatedForward:
    """What a class that takes the place of theirs inherits from first. Their children are called, but for nn.SiLU."""

    config: Any
    act_fn: nn.Module
    proj_up_gate_z: nn.Module
    proj_up_gate: nn.Module
    proj_up: nn.Module
    proj_down: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        act_fn = F.silu if only_forward(nn.SiLU, self.act_fn) else self.act_fn
        if self.config.weight_mode == "fused":
            up = gated(mapped(self.proj_up_gate_z, x), act_fn=act_fn)
        else:
            gate = mapped(self.proj_up_gate, x)
            up = gated(mapped(self.proj_up, x), gate, act_fn=act_fn)
        return mapped(self.proj_down, up)
