"""The modules around mLSTMBackend in xLSTMLarge of the public `xlstm` package, also where transformers takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from xlstm.xlstm_large.components import MultiHeadLayerNorm, RMSNorm
from xlstm.xlstm_large.model import FeedForward, mLSTMBlock, mLSTMLayer, xLSTMLarge, xLSTMLargeBlockStack

from ...nn.large_block import BlockClasses
from ...nn.linear import mapped
from ..feedforward import GatedForward
from ..large import FusedRMSNorm, LargeBlock, LargeLayer, capped

StackState: TypeAlias = dict[int, Any]  # LayerState, or None before the first token


class PatchedRMSNorm(FusedRMSNorm, RMSNorm):
    pass


class PatchedLargeMLSTMLayer(LargeLayer, mLSTMLayer):
    multihead_norm_class = MultiHeadLayerNorm


class PatchedLargeFeedForward(GatedForward, FeedForward):
    pass


CLASSES = BlockClasses(PatchedLargeMLSTMLayer, PatchedLargeFeedForward, PatchedRMSNorm, MultiHeadLayerNorm, nn.Linear)


class PatchedLargeBlock(LargeBlock, mLSTMBlock):
    classes = CLASSES


class PatchedXLSTMLarge(xLSTMLarge):
    def forward(self, x: Tensor, state: StackState | None = None) -> Tensor | tuple[Tensor, StackState]:
        """ids (B, S) -> logits (B, S, V), and with config.return_last_states the state."""
        assert x.ndim == 2, f"Input must have shape [B, S], got {x.shape}"
        x, state = self.backbone(self.embedding(x), state)
        logits = capped(mapped(self.lm_head, x), self.config.output_logit_soft_cap)
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


PATCHED: dict[type, type] = {
    FeedForward: PatchedLargeFeedForward,
    mLSTMBlock: PatchedLargeBlock,
    RMSNorm: PatchedRMSNorm,
    mLSTMLayer: PatchedLargeMLSTMLayer,
    xLSTMLarge: PatchedXLSTMLarge,
    xLSTMLargeBlockStack: PatchedXLSTMLargeBlockStack,
}
