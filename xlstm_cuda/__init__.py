"""xLSTM for PyTorch: sLSTM, LSTM and chunkwise mLSTM kernels with exact gradients, compiled ahead of time.

functional: mlstm, mlstm_step, slstm, slstm_step, lstm, lstm_step. nn: layers and blocks. models: language models.
"""

from . import functional, models, nn
from .functional import (
    LSTMState,
    MLSTMState,
    SLSTMState,
    backend,
    lstm,
    lstm_step,
    mlstm,
    mlstm_step,
    slstm,
    slstm_step,
)
from .info import __version__, info

__all__ = [
    "LSTMState",
    "MLSTMState",
    "SLSTMState",
    "__version__",
    "backend",
    "functional",
    "info",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_step",
    "models",
    "nn",
    "slstm",
    "slstm_step",
]
