"""Config of the language model: fields and defaults of the public xLSTM code."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...nn import xLSTMBlockStackConfig


@dataclass
class xLSTMLMModelConfig(xLSTMBlockStackConfig):
    """The stack's fields, and: tie_weights, one matrix for embedding and head; weight_decay_on_embedding, the group of
    the embedding in `get_weight_decay_optim_groups`; add_embedding_dropout, `dropout` after the embedding."""

    vocab_size: int = -1
    tie_weights: bool = False
    weight_decay_on_embedding: bool = False
    add_embedding_dropout: bool = False


# The name of the class in files that torch.save wrote when xlstm_cuda.models.lm was one module.
torch.serialization.add_safe_globals([(xLSTMLMModelConfig, "xlstm_cuda.models.lm.xLSTMLMModelConfig")])
