"""xLSTM kernels from the Hugging Face Hub: the functions of xlstm_cuda, and layers for `kernels.kernelize`.

tools/hub_kernel.py puts the files of the package beside this one.
"""

from . import layers
from .functional import (
    LSTMState,
    MLSTMState,
    SLSTMState,
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

__all__ = [
    "LSTMState",
    "MLSTMState",
    "SLSTMState",
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_activation",
    "headwise_linear",
    "layers",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_step",
    "multihead_norm_gate",
    "slstm",
    "slstm_step",
    "soft_cap",
]
