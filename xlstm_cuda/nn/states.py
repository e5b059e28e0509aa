"""States of the layers: what is carried from one token, call or segment to the next.

A block's state is its layer's. The state of a stack, and of a language model, is the tuple of its blocks' states.
None in place of a state is the empty state.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from .._states import MLSTMState, SLSTMState


class MLSTMLayerState(NamedTuple):
    """conv: the last K - 1 inputs of the convolution (B, K - 1, I); cell: the mLSTM state."""

    conv: Tensor
    cell: MLSTMState


class SLSTMLayerState(NamedTuple):
    """conv: the last K - 1 inputs of the convolution (B, K - 1, D), (B, 0, D) without one; cell: the sLSTM state."""

    conv: Tensor
    cell: SLSTMState


LayerState: TypeAlias = MLSTMLayerState | SLSTMLayerState
StackState: TypeAlias = tuple[LayerState, ...]

# For torch.export and torch.load, as in xlstm_cuda/_states.py.
for _type in (MLSTMLayerState, SLSTMLayerState):
    _pytree._register_namedtuple(_type, serialized_type_name=f"xlstm_cuda.nn.{_type.__name__}")
    torch.serialization.add_safe_globals([_type])
