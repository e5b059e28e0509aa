"""Two tiny language models for tests of training: the paper's blocks, and LSTM, sLSTM and mLSTM modules.

And a linear map in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_cuda import nn as xnn
from xlstm_cuda.models import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_cuda.testing import assert_close_relative

VOCAB, DIM = 19, 32


class RecurrentLM(nn.Module):
    """Embedding, one module of each kind, head; called like xLSTMLMModel."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM)
        kinds = (xnn.LSTM, xnn.sLSTM, xnn.mLSTM)
        self.layers = nn.ModuleList(kind(DIM, DIM, num_heads=2, batch_first=True) for kind in kinds)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(DIM, VOCAB)

    def forward(self, ids: Tensor, state: Any = None, return_state: bool = False) -> Any:
        x, following = self.embedding(ids), []
        for layer, start in zip(self.layers, state or [None] * 3, strict=True):
            y, end = layer(x, start)
            x = x + self.dropout(y)
            following.append(end)
        return (self.head(x), tuple(following)) if return_state else self.head(x)


def blocks_lm(dropout: float = 0.0) -> xLSTMLMModel:
    """One mLSTM and one sLSTM block."""
    heads: Any = {"num_heads": 2}
    config = xLSTMLMModelConfig.from_ratio(
        "1:1",
        2,
        mlstm_block=xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(**heads)),
        slstm_block=xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(**heads)),
        embedding_dim=DIM,
        vocab_size=VOCAB,
        dropout=dropout,
    )
    return xLSTMLMModel(config)


MODELS: dict[str, Callable[..., Any]] = {"blocks": blocks_lm, "modules": RecurrentLM}


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, dropout: float = 0.0) -> Any:
    """A model with every parameter moved away from its initial value: zeros hide mistakes."""
    torch.manual_seed(seed)
    model = MODELS[name](dropout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.to(dtype)


def units(model: Any) -> nn.ModuleList:
    """What is checkpointed, compiled or sharded as a unit."""
    return model.layers if isinstance(model, RecurrentLM) else model.xlstm_block_stack.blocks


def tokens(rows: int = 4, length: int = 13, seed: int = 0) -> Tensor:
    """(rows, length): the next token follows from the last two."""
    ids = torch.randint(VOCAB, (rows, 2), generator=torch.Generator().manual_seed(seed))
    for _ in range(length - 2):
        ids = torch.cat([ids, (ids[:, -2:-1] + 3 * ids[:, -1:] + 1) % VOCAB], 1)
    return ids


def loss_of(model: Any, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tol: float) -> None:
    """Every tensor within a relative error; names must be the same."""
    assert actual.keys() == expected.keys()
    for name, e in expected.items():
        assert_close_relative(actual[name], e, tol, name)


class Int8Linear(nn.Module):
    """An 8-bit weight, input and output of floating-point numbers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)
