"""Norm and mLSTM layer of xLSTM 7B as other packages build them, on the functions of this library.

Mix-ins for the classes of `xlstm`, and of the copy in transformers, which has the same attributes. None is imported.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import _autocast
from .._children import call, is_ordinary, is_plain, only_forward
from .._states import MLSTMState
from ..nn.gates import soft_cap
from ..nn.large_block import BlockClasses, block_step
from ..nn.linear import mapped
from ..nn.norms import by_head, widest

LayerState: TypeAlias = tuple[Tensor, Tensor, Tensor]


class FusedRMSNorm(nn.Module):
    """(..., D) -> (..., D), computed in float32 at least and rounded once, after weight and bias."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_fused(self, x):
            y: Tensor = super().forward(x)
            return y
        return _normed(self, x.to(_width(self, x)).unsqueeze(-2), norm="rms")


class LargeLayer(nn.Module):
    """The state comes back whatever the mode and return_last_states of the backend."""

    multihead_norm_class: type[nn.Module]
    config: Any
    qk_dim: int
    v_dim: int
    q: Any
    k: Any
    v: Any
    ogate_preact: Any
    igate_preact: Any
    fgate_preact: Any
    qkv_opreact: Any
    ifgate_preact: Any
    mlstm_backend: Any
    multihead_norm: Any
    ogate_act_fn: Any
    out_proj: Any

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """x (B, S, D) -> (B, S, D) and the state C (B, H, Dqk, Dv), n (B, H, Dqk), m (B, H, 1)."""
        *qkv, o = self._projections(x)
        q, k, v = (torch.unflatten(y, -1, (self.config.num_heads, -1)).transpose(1, 2) for y in qkv)
        i, f = (gate.mT for gate in self._gates(x))
        if state is not None and len(state) != 3:
            raise ValueError(f"the state of a layer must be a tuple (C, n, m), got {len(state)} parts")
        C, n, m = (None, None, None) if state is None else state
        if state is not None and torch.is_grad_enabled():  # Hugging Face's loop overwrites the state; backward needs it
            C, n, m = (part.clone() for part in state)
        h, state = self.mlstm_backend(
            q=q, k=k, v=v, i=i, f=f, c_initial=C, n_initial=n, m_initial=m, return_last_states=True
        )
        return mapped(self.out_proj, self._normed_and_gated(h.transpose(1, 2), o)), state

    def _normed_and_gated(self, h: Tensor, o: Tensor) -> Tensor:
        """h (B, S, H, D) -> (B, S, H D); in one pass where all of it has one dtype, or the projection rounds to it."""
        norm = self.multihead_norm
        plain = is_plain(self.multihead_norm_class, norm) and only_forward(nn.Sigmoid, self.ogate_act_fn)
        if plain and h.dtype == o.dtype and _is_fused(norm, h):
            rounded = _autocast.enabled(h.device.type) and is_plain(nn.Linear, self.out_proj)
            if rounded or _width(norm, h) == h.dtype:
                return _normed(norm, h, gate=o, gate_activation="sigmoid")
        gated: Tensor = self.ogate_act_fn(o) * norm(h).flatten(2)
        return gated

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and the pre-activation of the output gate."""
        if self.config.weight_mode == "single":
            return tuple(mapped(child, x) for child in (self.q, self.k, self.v, self.ogate_preact))
        return mapped(self.qkv_opreact, x).split([self.qk_dim] * 2 + [self.v_dim] * 2, dim=-1)

    def _gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Input and forget gate pre-activations (B, S, H), capped."""
        cap = self.config.gate_soft_cap
        if self.config.weight_mode == "single":
            return capped(call(self.igate_preact, x), cap), capped(call(self.fgate_preact, x), cap)
        return capped(call(self.ifgate_preact, x), cap).chunk(2, dim=-1)


class LargeBlock(nn.Module):
    """A decode step is one op where all children are plain."""

    classes: BlockClasses
    mlstm_layer: Any
    ffn: Any

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """x (B, S, D) -> (B, S, D) and the state as that of the layer."""
        if state is not None and x.shape[1] == 1 and len(state) == 3 and (eps := self._eps_of_step()) is not None:
            C, n, m = state
            before = MLSTMState(C, n, m.squeeze(-1))
            step = block_step(self, self.classes, x, before, eps=eps, input_gate="exp")
            if step is not None:
                y, (C, n, m) = step
                return y, (C, n, m.unsqueeze(-1))
        result: tuple[Tensor, LayerState] = super().forward(x, state)
        return result

    def _eps_of_step(self) -> float | None:
        """The backend's, where what `block_step` does not look at is as it expects."""
        layer = self.mlstm_layer
        plain = only_forward(nn.Sigmoid, layer.ogate_act_fn) and only_forward(nn.SiLU, self.ffn.act_fn)
        if not plain or not _is_cap(layer.config.gate_soft_cap):
            return None
        backend = layer.mlstm_backend
        return getattr(backend, "_step_eps", None) if only_forward(type(backend), backend) else None


def _is_cap(cap: Any) -> bool:
    """Whether our functions take it."""
    return cap is None or (isinstance(cap, (int, float)) and 0 < cap < math.inf)


def capped(x: Tensor, cap: Any) -> Tensor:
    """Theirs takes tensors too, and negative numbers."""
    return soft_cap(x, cap) if _is_cap(cap) else cap * torch.tanh(x / cap)


# Their norms: weight and bias, each or None, eps, force_float32_reductions.


def _is_fused(norm: Any, x: Tensor) -> bool:
    """Whether the function does as they do: in float64 they reduce in float32 unless told otherwise."""
    ordinary = all(t is None or is_ordinary(t) for t in (x, norm.weight, norm.bias))
    return ordinary and not (norm.force_float32_reductions and x.dtype == torch.float64)


def _width(norm: Any, x: Tensor) -> torch.dtype:
    """The dtype of their output."""
    return widest(x.dtype, norm.weight, norm.bias)


def _normed(module: Any, h: Tensor, **options: Any) -> Tensor:
    return by_head(h, module.weight, module.bias, eps=module.eps, **options)
