"""Models for the tests of generation: the language models, and a plain one whose states are MLSTMStates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xlstm_cuda import MLSTMState, functional
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig, xLSTMLMModel, xLSTMLMModelConfig

VOCAB = 13


class PlainModel(nn.Module):
    """Two residual mLSTMs. The state is a tuple of MLSTMStates."""

    def __init__(self, vocab_size: int = VOCAB, dim: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.gates = nn.ModuleList(nn.Linear(dim, 3 * dim + 4) for _ in range(2))
        self.head = nn.Linear(dim, vocab_size)

    def forward(
        self, ids: Tensor, state: Any = None, return_state: bool = False, *, reset: Tensor | None = None
    ) -> Any:
        x, following = self.embedding(ids), []
        for layer, before in zip(self.gates, state or (None, None), strict=True):
            *qkv, i, f = layer(x).split([x.shape[-1]] * 3 + [2, 2], -1)
            q, k, v = (u.unflatten(-1, (2, -1)).transpose(1, 2) for u in qkv)
            h, after = functional.mlstm(q, k, v, i.mT, f.mT, initial_state=before, return_state=True, reset=reset)
            x = x + h.transpose(1, 2).flatten(2)
            following.append(after)
        logits = self.head(x)
        return (logits, tuple(following)) if return_state else logits

    def prefill(
        self, ids: Tensor, state: Any = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[MLSTMState, ...]]:
        logits, state = self(ids, state, True, reset=reset)
        return logits[:, -1:], state

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, tuple[MLSTMState, ...]]:
        return self(ids, state, True)


def build(name: str, vocab_size: int = VOCAB) -> Any:
    """A model with random parameters, in float64: no rounding decides between tokens."""
    if name == "plain":
        model: Any = PlainModel(vocab_size)
    elif name == "large":
        model = xLSTMLarge(xLSTMLargeConfig(embedding_dim=32, num_heads=2, num_blocks=2, vocab_size=vocab_size))
    else:
        config = xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=32, vocab_size=vocab_size, dropout=0.2)
        model = xLSTMLMModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.double()


MODELS = ["language model", "large", "plain"]
