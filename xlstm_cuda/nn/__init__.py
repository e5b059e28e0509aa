"""The xLSTM paper's layers, blocks and block stack, with the configs and state_dict keys of the public xLSTM code.

LSTM, sLSTM and mLSTM: the cells called like torch.nn.LSTM.
"""

from .blocks import mLSTMBlock, mLSTMBlockConfig, sLSTMBlock, sLSTMBlockConfig
from .feedforward import FeedForwardConfig, GatedFeedForward
from .mlstm_layer import mLSTMLayer, mLSTMLayerConfig
from .rnn import LSTM, mLSTM, sLSTM
from .slstm_layer import sLSTMLayer, sLSTMLayerConfig
from .stack import xLSTMBlockStack, xLSTMBlockStackConfig
from .states import LayerState, MLSTMLayerState, SLSTMLayerState, StackState

__all__ = [
    "FeedForwardConfig",
    "GatedFeedForward",
    "LSTM",
    "LayerState",
    "MLSTMLayerState",
    "SLSTMLayerState",
    "StackState",
    "mLSTM",
    "mLSTMBlock",
    "mLSTMBlockConfig",
    "mLSTMLayer",
    "mLSTMLayerConfig",
    "sLSTM",
    "sLSTMBlock",
    "sLSTMBlockConfig",
    "sLSTMLayer",
    "sLSTMLayerConfig",
    "xLSTMBlockStack",
    "xLSTMBlockStackConfig",
]
