"""The recurrences as torch's exporter to ONNX takes them: for every length and batch one graph, nothing unrolled.

A recurrence over time is an ONNX `Scan`, the mLSTM a `Scan` over chunks of tokens, and a layer of `nn.LSTM` that means
what ONNX's own operator means is that, `LSTM`. All else is exported as the reference computes it.
"""

from ._headwise import headwise_linear
from ._lstm import standard_lstm
from ._mlstm import mlstm, mlstm_step
from ._recurrent import lstm, lstm_step, slstm, slstm_step
from ._scan import dense

__all__ = [
    "dense",
    "headwise_linear",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_step",
    "slstm",
    "slstm_step",
    "standard_lstm",
]
