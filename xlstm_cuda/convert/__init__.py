"""Former name of `xlstm_cuda.interop.checkpoints`. Deprecated: it keeps working, but new code uses the other."""

from .._moved import moved

moved(__name__, "xlstm_cuda.interop.checkpoints")
