"""Recurrent states: what a layer carries from one token, call or segment to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree


class MLSTMState(NamedTuple):
    """mLSTM state. Empty: all zero.

    C: matrix memory (B, H, Dqk, Dv); n: normaliser (B, H, Dqk); m: stabiliser, log scale of C and n (B, H).
    """

    C: Tensor
    n: Tensor
    m: Tensor


class SLSTMState(NamedTuple):
    """sLSTM state, each (B, H, D). Empty: all zero (n = 0 means empty, element by element).

    h: output; c: cell; n: normaliser; m: stabiliser, log scale of c and n.
    """

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class LSTMState(NamedTuple):
    """LSTM state: output h and cell c, each (B, H, D). Empty: all zero."""

    h: Tensor
    c: Tensor


def register(state_type: Any) -> None:
    """torch.export saves a program's input and output structure by its name, and states of it that torch.save wrote may
    be read back with weights_only=True.
    """
    _pytree._register_namedtuple(state_type, serialized_type_name=f"{__package__}.{state_type.__name__}")
    torch.serialization.add_safe_globals([state_type])


for _type in (MLSTMState, SLSTMState, LSTMState):
    register(_type)
