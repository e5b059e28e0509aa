"""The xLSTM paper's layers, blocks and block stack, with the configs and state_dict keys of the public xLSTM code.

LSTM, sLSTM and mLSTM: the cells called like torch.nn.LSTM; with Cell behind the name, like torch.nn.LSTMCell.
"""

from .blocks import mLSTMBlock, mLSTMBlockConfig, sLSTMBlock, sLSTMBlockConfig
from .feedforward import FeedForwardConfig, GatedFeedForward
from .mlstm_layer import mLSTMLayer, mLSTMLayerConfig
from .rnn import LSTM, LSTMCell, MLSTMCellState, mLSTM, mLSTMCell, sLSTM, sLSTMCell
from .slstm_layer import sLSTMLayer, sLSTMLayerConfig
from .stack import xLSTMBlockStack, xLSTMBlockStackConfig
from .states import LayerState, MLSTMLayerState, SLSTMLayerState, StackState

__all__ = [
    "FeedForwardConfig",
    "GatedFeedForward",
    "LSTM",
    "LSTMCell",
    "MLSTMCellState",
    "LayerState",
    "MLSTMLayerState",
    "SLSTMLayerState",
    "StackState",
    "mLSTM",
    "mLSTMCell",
    "mLSTMBlock",
    "mLSTMBlockConfig",
    "mLSTMLayer",
    "mLSTMLayerConfig",
    "sLSTM",
    "sLSTMCell",
    "sLSTMBlock",
    "sLSTMBlockConfig",
    "sLSTMLayer",
    "sLSTMLayerConfig",
    "xLSTMBlockStack",
    "xLSTMBlockStackConfig",
]
