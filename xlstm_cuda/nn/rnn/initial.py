"""Initial values of the parameters of layers and of cells."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..init import linspace_

# A module here has hidden_size, num_heads and head_dim, and parameters by torch.nn.LSTM's names.


def uniform_weights_(module: Any) -> None:
    """Uniform between -1 / sqrt(hidden_size) and 1 / sqrt(hidden_size), as torch.nn.LSTM; learned states are 0."""
    bound = 1 / math.sqrt(module.hidden_size)
    for name, parameter in module.named_parameters():
        if name.startswith("initial_"):
            nn.init.zeros_(parameter)
        else:
            nn.init.uniform_(parameter, -bound, bound)


def slstm_biases_(module: Any) -> None:
    """0, but for the forget gate's, in bias_ih, from 3 to 6 over the units of a head: a memory of 20 to 400 tokens."""
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        if name.startswith("bias_ih"):
            linspace_(parameter.detach().view(4, module.num_heads, module.head_dim)[1], 3.0, 6.0)


def mlstm_biases_(module: Any) -> None:
    """0, but for the forget gate's, in bias_if, from 3 to 6 over the heads."""
    for name, parameter in module.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        if name.startswith("bias_if"):
            linspace_(parameter.detach()[module.num_heads :], 3.0, 6.0)
