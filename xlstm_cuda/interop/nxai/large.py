"""The modules around mLSTMBackend in xLSTMLarge of the public `xlstm` package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from xlstm.xlstm_large.components import soft_cap
from xlstm.xlstm_large.model import FeedForward, mLSTMLayer, xLSTMLarge, xLSTMLargeBlockStack

from ..._children import call
from ...nn import gates
from ..feedforward import GatedForward

LayerState: TypeAlias = tuple[Tensor, Tensor, Tensor]
StackState: TypeAlias = dict[int, Any]  # LayerState, or None before the first token


class PatchedLargeMLSTMLayer(mLSTMLayer):
    """The state comes back whatever the mode and return_last_states of the backend."""

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
        h = self.multihead_norm(h.transpose(1, 2)).flatten(2)
        return self.out_proj(self.ogate_act_fn(o) * h), state

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and the pre-activation of the output gate."""
        if self.config.weight_mode == "single":
            return self.q(x), self.k(x), self.v(x), self.ogate_preact(x)
        parts: tuple[Tensor, ...] = self.qkv_opreact(x).split([self.qk_dim] * 2 + [self.v_dim] * 2, dim=-1)
        return parts

    def _gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Input and forget gate pre-activations (B, S, H), capped."""
        cap = self.config.gate_soft_cap
        if self.config.weight_mode == "single":
            return _capped(call(self.igate_preact, x), cap), _capped(call(self.fgate_preact, x), cap)
        return _capped(call(self.ifgate_preact, x), cap).chunk(2, dim=-1)


class PatchedLargeFeedForward(GatedForward, FeedForward):
    pass


class PatchedXLSTMLarge(xLSTMLarge):
    def forward(self, x: Tensor, state: StackState | None = None) -> Tensor | tuple[Tensor, StackState]:
        """ids (B, S) -> logits (B, S, V), and with config.return_last_states the state."""
        assert x.ndim == 2, f"Input must have shape [B, S], got {x.shape}"
        x, state = self.backbone(self.embedding(x), state)
        logits = _capped(self.lm_head(x), self.config.output_logit_soft_cap)
        return (logits, state) if self.config.return_last_states else logits


class PatchedXLSTMLargeBlockStack(xLSTMLargeBlockStack):
    def forward(self, x: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """x (B, S, D) -> (B, S, D) and the state, a dict of the layers'.

        Without gradients a given state is overwritten and returned, as theirs is. Where the new one has a graph the
        given one stays: backward needs it.
        """
        if state is not None and (not isinstance(state, Mapping) or set(state) != set(range(len(self.blocks)))):
            got = list(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state must be a dict of {len(self.blocks)} blocks, 0 and so on, got {got}")
        given: StackState = dict.fromkeys(range(len(self.blocks))) if state is None else state
        after: StackState = {}
        for index, block in enumerate(self.blocks):
            x, after[index] = block(x, given[index])
        x = self.out_norm(x)
        if state is None or any(part.requires_grad for new in after.values() for part in new):
            return x, after
        for index, new in after.items():
            if given[index] is None:
                given[index] = new
            else:
                for old, part in zip(given[index], new, strict=True):
                    old.copy_(part)
        return x, given


def _capped(x: Tensor, cap: Any) -> Tensor:
    """Theirs takes tensors too, and negative numbers."""
    ours = cap is None or (isinstance(cap, (int, float)) and 0 < cap < math.inf)
    return gates.soft_cap(x, cap) if ours else soft_cap(x, cap)


PATCHED: dict[type, type] = {
    FeedForward: PatchedLargeFeedForward,
    mLSTMLayer: PatchedLargeMLSTMLayer,
    xLSTMLarge: PatchedXLSTMLarge,
    xLSTMLargeBlockStack: PatchedXLSTMLargeBlockStack,
}
