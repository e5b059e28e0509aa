"""Pure PyTorch reference: plain, slow, any device and float dtype, differentiated by autograd alone.

The oracle of the tests and the "reference" backend; the kernels share no code with it. Arguments are checked by
`xlstm_cuda.functional`, not here.
"""

from .conv import causal_conv1d, causal_conv1d_step
from .gated import gated_activation, soft_cap
from .headwise import headwise_linear
from .lstm import lstm, lstm_step
from .mlstm import mlstm, mlstm_chunkwise, mlstm_parallel, mlstm_recurrent, mlstm_step
from .norm import multihead_norm_gate
from .slstm import slstm, slstm_step

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_activation",
    "headwise_linear",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_chunkwise",
    "mlstm_parallel",
    "mlstm_recurrent",
    "mlstm_step",
    "multihead_norm_gate",
    "slstm",
    "slstm_step",
    "soft_cap",
]
