"""What takes the place of layers and norms of transformers' xLSTM: its own, or those of `xlstm` where it takes them."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.xlstm import modeling_xlstm

from ..nn.large_block import BlockClasses
from .large import LargeBlock

_modeling: Any = modeling_xlstm

CLASSES: BlockClasses
PATCHED: dict[type, type]

if _modeling.external_xlstm:
    from xlstm.xlstm_large.components import RMSNorm
    from xlstm.xlstm_large.model import FeedForward, mLSTMLayer

    from .nxai.large import CLASSES, PatchedLargeFeedForward, PatchedLargeMLSTMLayer, PatchedRMSNorm

    PATCHED = {
        FeedForward: PatchedLargeFeedForward,
        RMSNorm: PatchedRMSNorm,
        mLSTMLayer: PatchedLargeMLSTMLayer,
    }
else:
    from .feedforward import GatedForward
    from .large import FusedRMSNorm, LargeLayer

    class PatchedOwnRMSNorm(FusedRMSNorm, _modeling.xLSTMRMSNorm):
        pass

    class PatchedOwnFeedForward(GatedForward, _modeling.xLSTMFeedForward):
        pass

    class PatchedOwnLayer(LargeLayer, _modeling.xLSTMLayer):
        multihead_norm_class = _modeling.xLSTMMultiHeadLayerNorm

    CLASSES = BlockClasses(
        PatchedOwnLayer, PatchedOwnFeedForward, PatchedOwnRMSNorm, PatchedOwnLayer.multihead_norm_class, nn.Linear
    )
    PATCHED = {
        _modeling.xLSTMFeedForward: PatchedOwnFeedForward,
        _modeling.xLSTMRMSNorm: PatchedOwnRMSNorm,
        _modeling.xLSTMLayer: PatchedOwnLayer,
    }


class PatchedBlock(LargeBlock, _modeling.xLSTMBlock):
    classes = CLASSES


PATCHED[_modeling.xLSTMBlock] = PatchedBlock
