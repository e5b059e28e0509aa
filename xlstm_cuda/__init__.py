"""xLSTM for PyTorch: sLSTM, LSTM and chunkwise mLSTM kernels with exact gradients, compiled ahead of time.

functional: mlstm, mlstm_step, slstm, slstm_step, lstm, lstm_step, causal_conv1d, causal_conv1d_step,
multihead_norm_gate, headwise_linear, gated_activation, soft_cap.
nn: layers and blocks. models: language models. distributed: sequences over several processes.
patch, unpatch: built models of the public `xlstm` package on these kernels.
"""

from . import distributed, functional, interop, models, nn
from .functional import (
    LSTMState,
    MLSTMState,
    SLSTMState,
    backend,
    causal_conv1d,
    causal_conv1d_step,
    gated_activation,
    headwise_linear,
    lstm,
    lstm_step,
    mlstm,
    mlstm_step,
    multihead_norm_gate,
    slstm,
    slstm_step,
    soft_cap,
)
from .info import __version__, info
from .interop.nxai import PatchReport, patch, unpatch

integrations = interop  # the former name

__all__ = [
    "LSTMState",
    "MLSTMState",
    "PatchReport",
    "SLSTMState",
    "__version__",
    "backend",
    "causal_conv1d",
    "causal_conv1d_step",
    "distributed",
    "functional",
    "gated_activation",
    "info",
    "headwise_linear",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_step",
    "multihead_norm_gate",
    "models",
    "nn",
    "patch",
    "slstm",
    "slstm_step",
    "soft_cap",
    "unpatch",
]
