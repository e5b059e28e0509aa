"""The public functions: mLSTM, sLSTM and LSTM over a sequence and token by token, and what stands around them.

Everywhere: T is the dtype of q, k, v (of x, R): bfloat16, float16, float32 or float64. A, the dtype of gate
arithmetic, states and accumulators, is float64 if T is float64 and float32 otherwise. Gates, biases and states may
come in any of the four dtypes. All tensors are on one device. Strides are free; a tensor whose last dimension is not
contiguous is copied. S = 0 and B = 0 are allowed. All gradients are exact, through every input, the initial and the
final state, and have their input's dtype. So are second and higher derivatives, forward mode and what torch.func makes
of a function, where kernels or plain PyTorch compute as docs/migrate.md says.
Under autocast q, k, v, x and R are cast; gates, biases and states never.

`backend`: "cpu", "cuda", "reference" (pure PyTorch), "simt" or "ptx" (test libraries), or None: the one of the context
manager `backend(...)`, else by device.

Errors: TypeError for what is not a tensor or has a wrong dtype, ValueError for a wrong shape, device, option or value,
both before anything is computed. Values of cu_seqlens, lengths, slots and of an sLSTM state's n are checked on the CPU
only. ImportError where the library of the backend is not built.

Sources: xLSTM, arXiv 2405.04517; chunkwise mLSTM, arXiv 2503.14376.
"""

from xlstm_cuda._backend import backend
from xlstm_cuda._states import LSTMState, MLSTMState, SLSTMState
from xlstm_cuda.functional._conv import causal_conv1d, causal_conv1d_step
from xlstm_cuda.functional._gated import gated_activation, soft_cap
from xlstm_cuda.functional._headwise import headwise_linear
from xlstm_cuda.functional._mlstm import mlstm, mlstm_step
from xlstm_cuda.functional._norm import multihead_norm_gate
from xlstm_cuda.functional._recurrent import lstm, lstm_step, slstm, slstm_step

__all__ = [
    "LSTMState",
    "MLSTMState",
    "SLSTMState",
    "backend",
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_activation",
    "headwise_linear",
    "lstm",
    "lstm_step",
    "mlstm",
    "mlstm_step",
    "multihead_norm_gate",
    "slstm",
    "slstm_step",
    "soft_cap",
]
