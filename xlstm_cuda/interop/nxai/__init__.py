"""Models of the public `xlstm` and `mlstm_kernels` packages on the kernels of xlstm_cuda: `patch`, `unpatch`.

Neither package is imported before a model that is made of it is patched.
"""

from .patching import PatchReport, patch, unpatch

__all__ = ["PatchReport", "patch", "unpatch"]
