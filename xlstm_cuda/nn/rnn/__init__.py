"""LSTM, sLSTM and mLSTM in the manner of torch.nn.LSTM, and their cells in the manner of torch.nn.LSTMCell."""

from .cells import LSTMCell, MLSTMCellState, mLSTMCell, sLSTMCell
from .matrix import mLSTM
from .scalar import LSTM, sLSTM

__all__ = ["LSTM", "LSTMCell", "MLSTMCellState", "mLSTM", "mLSTMCell", "sLSTM", "sLSTMCell"]
