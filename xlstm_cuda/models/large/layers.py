"""Layers and block of xLSTM 7B (arXiv 2503.13427): mLSTM at the width of the residual stream, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ... import _autocast, functional
from ..._children import is_plain
from ..._states import MLSTMState
from ...nn.feedforward import gated
from ...nn.gates import GateLinear, joined_gates, soft_cap
from ...nn.init import linspace_, small_init_, wang_init_
from ...nn.large_block import BlockClasses, block_step
from ...nn.linear import mapped
from .config import xLSTMLargeConfig
from .norms import LargeMultiHeadLayerNorm, RMSNorm


class LargeMLSTMLayer(nn.Module):
    """x (B, S, D) and an mLSTM state or None -> (B, S, D) and the state after the last token."""

    def __init__(self, config: xLSTMLargeConfig) -> None:
        super().__init__()
        self.config = config
        dim, qk, v, heads, bias = config.embedding_dim, config.qk_dim, config.v_dim, config.num_heads, config.use_bias
        self.fused = config.weight_mode == "fused"
        if self.fused:
            self.qkv_opreact = nn.Linear(dim, 2 * qk + 2 * v, bias=bias)
            self.ifgate_preact = GateLinear(dim, 2 * heads)
        else:
            self.q = nn.Linear(dim, qk, bias=bias)
            self.k = nn.Linear(dim, qk, bias=bias)
            self.v = nn.Linear(dim, v, bias=bias)
            self.ogate_preact = nn.Linear(dim, v, bias=bias)
            self.igate_preact = GateLinear(dim, heads)
            self.fgate_preact = GateLinear(dim, heads)
        self.multihead_norm = LargeMultiHeadLayerNorm(v, config.norm_eps, bias)
        self.out_proj = nn.Linear(v, dim, bias=bias)

    def forward(
        self, x: Tensor, state: MLSTMState | None = None, reset: Tensor | None = None, is_step: bool = False
    ) -> tuple[Tensor, MLSTMState]:
        cell: partial[Any] = partial(functional.mlstm, initial_state=state, return_state=True, reset=reset)
        if is_step and reset is None:
            cell = partial(functional.mlstm_step, state=state)
        return self.with_cell(x, cell)

    def with_cell(self, x: Tensor, cell: Callable[..., Any]) -> tuple[Tensor, Any]:
        """x (B, S, D) -> (B, S, D) and the state that the cell returns.

        cell: of q, k, v (B, H, S, D) and gates i, f (B, H, S), with `input_gate` and `eps` -> h (B, H, S, D), a state.
        """
        q, k, v, o = self._project(x)
        q, k, v = (self._heads(u) for u in (q, k, v))
        i, f = self._gates(x)
        h, state = cell(q, k, v, i, f, input_gate=self.config.input_gate, eps=self.config.eps)
        return mapped(self.out_proj, self._normed_and_gated(h.transpose(1, 2), o)), state

    def _normed_and_gated(self, h: Tensor, o: Tensor) -> Tensor:
        """h (B, S, H, D) -> (B, S, H D); in one pass where all of it has one dtype, or the projection rounds to it."""
        norm = self.multihead_norm
        if is_plain(LargeMultiHeadLayerNorm, norm) and h.dtype == o.dtype:
            rounded = _autocast.enabled(h.device.type) and is_plain(nn.Linear, self.out_proj)
            if norm.wide(h.dtype) == h.dtype or rounded:
                return norm.gated(h, o)
        return torch.sigmoid(o) * norm(h)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, width of all heads) -> (B, H, S, D)."""
        return torch.unflatten(x, -1, (self.config.num_heads, -1)).transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and the output gate's pre-activation, each (B, S, width of all heads)."""
        if self.fused:
            qk, v = self.config.qk_dim, self.config.v_dim
            return mapped(self.qkv_opreact, x).split((qk, qk, v, v), dim=-1)
        return tuple(mapped(child, x) for child in (self.q, self.k, self.v, self.ogate_preact))

    def _gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Capped pre-activations of input and forget gate (B, H, S)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # once for both, and once in what is saved for backward
        cap = self.config.gate_soft_cap
        if self.fused:
            return soft_cap(self.ifgate_preact(x), cap).mT.chunk(2, dim=1)
        gates = self.igate_preact, self.fgate_preact
        if not is_plain(GateLinear, *gates):
            return tuple(soft_cap(gate(x), cap).mT for gate in gates)
        with _autocast.disabled(x.device.type):
            return joined_gates(*gates, x, cap=cap)

    def reset_parameters(self) -> None:
        dim = self.config.embedding_dim
        for linear in (self.qkv_opreact,) if self.fused else (self.q, self.k, self.v, self.ogate_preact):
            small_init_(linear.weight, dim)
            _zero_bias(linear)
        gates = (self.ifgate_preact,) if self.fused else (self.igate_preact, self.fgate_preact)
        for gate in gates:
            nn.init.zeros_(gate.weight)
        i, f = gates[0].bias.detach().chunk(2) if self.fused else (gate.bias.detach() for gate in gates)
        nn.init.constant_(i, -10.0)
        linspace_(f, 3.0, 6.0)
        self.multihead_norm.reset_parameters()
        wang_init_(self.out_proj.weight, dim, self.config.num_blocks)
        _zero_bias(self.out_proj)


class LargeFeedForward(nn.Module):
    """(..., D) -> (..., D): proj_down(silu(gate) * up)."""

    def __init__(self, config: xLSTMLargeConfig) -> None:
        super().__init__()
        self.config = config
        dim, inner, bias = config.embedding_dim, config.ffn_dim, config.use_bias
        self.fused = config.weight_mode == "fused"
        if self.fused:
            self.proj_up_gate_z = nn.Linear(dim, 2 * inner, bias=bias)
        else:
            self.proj_up_gate = nn.Linear(dim, inner, bias=bias)
            self.proj_up = nn.Linear(dim, inner, bias=bias)
        self.proj_down = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            up = gated(mapped(self.proj_up_gate_z, x))
        else:
            gate = mapped(self.proj_up_gate, x)
            up = gated(mapped(self.proj_up, x), gate)
        return mapped(self.proj_down, up)

    def reset_parameters(self) -> None:
        dim = self.config.embedding_dim
        for linear in (self.proj_up_gate_z,) if self.fused else (self.proj_up_gate, self.proj_up):
            small_init_(linear.weight, dim)
            _zero_bias(linear)
        wang_init_(self.proj_down.weight, dim, self.config.num_blocks)
        _zero_bias(self.proj_down)


class LargeBlock(nn.Module):
    """x + mlstm_layer(norm(x)), then x + ffn(norm(x)). The state is the mLSTM's."""

    def __init__(self, config: xLSTMLargeConfig) -> None:
        super().__init__()
        self.norm_mlstm = RMSNorm(config.embedding_dim, config.norm_eps, config.use_bias)
        self.mlstm_layer = LargeMLSTMLayer(config)
        self.norm_ffn = RMSNorm(config.embedding_dim, config.norm_eps, config.use_bias)
        self.ffn = LargeFeedForward(config)

    def forward(
        self, x: Tensor, state: MLSTMState | None = None, reset: Tensor | None = None, is_step: bool = False
    ) -> tuple[Tensor, MLSTMState]:
        """x (B, S, D), any S >= 0 -> (B, S, D) and the state after the last token.

        reset (B, S) bool: the state is emptied before that token.
        is_step: 1 <= S <= 16, by `functional.mlstm_step` where there is no reset.
        """
        if is_step and reset is None and state is not None:
            config = self.mlstm_layer.config
            step = block_step(self, _CLASSES, x, state, eps=config.eps, input_gate=config.input_gate)
            if step is not None:
                return step
        y, state = self.mlstm_layer(self.norm_mlstm(x), state, reset, is_step)
        return self._after(x, y), state

    def with_cell(self, x: Tensor, cell: Callable[..., Any]) -> tuple[Tensor, Any]:
        """The block with another cell, see `LargeMLSTMLayer.with_cell`: where somebody else keeps the states."""
        y, state = self.mlstm_layer.with_cell(self.norm_mlstm(x), cell)
        return self._after(x, y), state

    def _after(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + y
        following: Tensor = x + self.ffn(self.norm_ffn(x))
        return following

    def reset_parameters(self) -> None:
        for module in (self.norm_mlstm, self.mlstm_layer, self.norm_ffn, self.ffn):
            module.reset_parameters()


_CLASSES = BlockClasses(LargeMLSTMLayer, LargeFeedForward, RMSNorm, LargeMultiHeadLayerNorm, GateLinear)


def _zero_bias(linear: nn.Linear) -> None:
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
