"""The xLSTM paper's layers, blocks and block stack, with the configs and state_dict keys of the public xLSTM code."""

from .blocks import mLSTMBlock, mLSTMBlockConfig, sLSTMBlock, sLSTMBlockConfig
from .feedforward import FeedForwardConfig, GatedFeedForward
from .mlstm_layer import mLSTMLayer, mLSTMLayerConfig
from .slstm_layer import sLSTMLayer, sLSTMLayerConfig
from .stack import xLSTMBlockStack, xLSTMBlockStackConfig
from .states import LayerState, MLSTMLayerState, SLSTMLayerState, StackState

__all__ = [
    "FeedForwardConfig",
    "GatedFeedForward",
    "LayerState",
    "MLSTMLayerState",
    "SLSTMLayerState",
    "StackState",
    "mLSTMBlock",
    "mLSTMBlockConfig",
    "mLSTMLayer",
    "mLSTMLayerConfig",
    "sLSTMBlock",
    "sLSTMBlockConfig",
    "sLSTMLayer",
    "sLSTMLayerConfig",
    "xLSTMBlockStack",
    "xLSTMBlockStackConfig",
]
