"""Gated feed-forward network of the sLSTM block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from .._children import is_computed
from .config import UpProjectionConfig, check_config, require
from .init import small_init_, wang_init_
from .linear import mapped


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "relu^2": _squared_relu,
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "selu": F.selu,
}
# Those that `functional.gated_activation` knows, by its names.
_FUSED = (
    (F.gelu, "gelu"),
    (F.relu, "relu"),
    (_squared_relu, "relu^2"),
    (torch.sigmoid, "sigmoid"),
    (F.sigmoid, "sigmoid"),
    (F.silu, "silu"),
)


def gated(x: Tensor, gate: Tensor | None = None, act_fn: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    """act_fn(gate) x, without a gate of the halves of x; in one pass where there is a function for it."""
    alike = gate is None or (is_computed(gate) and gate.dtype == x.dtype and gate.shape == x.shape)
    for known, name in _FUSED:
        if act_fn is known and alike and is_computed(x):
            return functional.gated_activation(x, gate, activation=name)
    if gate is None:
        gate, x = x.chunk(2, dim=-1)
    return act_fn(gate) * x


@dataclass
class FeedForwardConfig(UpProjectionConfig):
    """Inner width F = proj_factor embedding_dim, rounded up to a multiple of 64. embedding_dim is set by the block."""

    proj_factor: float = 1.3
    act_fn: str = "gelu"
    embedding_dim: int = -1
    dropout: float = 0.0
    bias: bool = False
    ff_type: str = "ffn_gated"

    _num_blocks: int | None = 1

    def __post_init__(self) -> None:
        names = ", ".join(ACTIVATIONS)
        require(self.act_fn in ACTIVATIONS, f"FeedForwardConfig: act_fn must be one of {names}, got {self.act_fn!r}")
        require(self.ff_type == "ffn_gated", f"FeedForwardConfig: ff_type must be 'ffn_gated', got {self.ff_type!r}")

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""
        require(self.embedding_dim > 0, f"FeedForwardConfig: embedding_dim must be positive, got {self.embedding_dim}")
        require(
            self.inner_dim > 0,
            f"FeedForwardConfig: inner width is 0 for proj_factor {self.proj_factor}",
        )

    @property
    def inner_dim(self) -> int:
        return self.rounded_width(self.embedding_dim)


class GatedFeedForward(nn.Module):
    """(..., D) -> (..., D): proj_down(act_fn(gate) * up), where proj_up gives gate and up."""

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        check_config(config, FeedForwardConfig)
        self.config = config
        self.proj_up = nn.Linear(config.embedding_dim, 2 * config.inner_dim, bias=config.bias)
        self.proj_down = nn.Linear(config.inner_dim, config.embedding_dim, bias=config.bias)
        self.act_fn = ACTIVATIONS[config.act_fn]
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(mapped(self.proj_down, gated(mapped(self.proj_up, x), act_fn=self.act_fn)))
        return y

    def reset_parameters(self) -> None:
        small_init_(self.proj_up.weight, self.config.embedding_dim)
        wang_init_(self.proj_down.weight, self.config.embedding_dim, self.config._num_blocks)
        for linear in (self.proj_up, self.proj_down):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
