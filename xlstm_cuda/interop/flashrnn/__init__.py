"""The call of the package flashrnn (arXiv 2412.07752) on this library's LSTM and sLSTM.

    from xlstm_cuda.interop.flashrnn import FlashRNNConfig, flashrnn  # in the place of: from flashrnn import ...

    from xlstm_cuda.interop import flashrnn
    flashrnn.enable()  # or: the package's own function, wherever a program has it, computes here from now on
    flashrnn.disable()

The package is needed for `enable` alone. Nothing is compiled at run time, and every device has the kernels.
"""

from .call import flashrnn
from .config import FlashRNNConfig
from .patching import disable, enable

__all__ = ["FlashRNNConfig", "disable", "enable", "flashrnn"]
