"""What several implementations of the mLSTM compute where it is not the mLSTM with its exact gradients."""

from __future__ import annotations

from torch import Tensor

from xlstm_cuda import reference

from .calls import Claim
from .ops import Outputs, Tensors


def _with_constant_denominator(t: Tensors) -> Outputs:
    h = reference.mlstm_chunkwise(**t, norm_grad=False)
    assert isinstance(h, Tensor)
    return (h,)


WITHOUT_NORM_GRAD = Claim(
    "without the normaliser's gradient",
    _with_constant_denominator,
    ("q", "k", "v", "i", "f"),
    only_gradients=True,
)
