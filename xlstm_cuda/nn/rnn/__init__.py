"""LSTM, sLSTM and mLSTM in the manner of torch.nn.LSTM."""

from .matrix import mLSTM
from .scalar import LSTM, sLSTM

__all__ = ["LSTM", "mLSTM", "sLSTM"]
