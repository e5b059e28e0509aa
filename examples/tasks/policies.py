"""Policies that carry a state from one step of an environment to the next, and one that does not.

What a policy remembers with, its memory, has two calls:

    forward(x, state, reset=reset)    x (B, S, D) -> (B, S, D): S steps of B environments at once
    step(x, state)                    x (B, 1, D) -> (B, 1, D) and the state after it

reset (B, S) bool: an episode begins there, with an empty state. A state of zeros is the empty one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import xlstm_cuda.nn

State = Any  # tensors whose first dimension is B, in tuples; None for empty


def emptied(state: State, rows: Tensor) -> State:
    """The state with zeros in the rows that are True in `rows` (B,)."""

    def of_part(part: Tensor) -> Tensor:
        return part.masked_fill(rows.view(-1, *[1] * (part.ndim - 1)), 0)

    return None if state is None else pytree.tree_map(of_part, state)


class Actor(Protocol):
    """A policy: logits (B, actions) for observations (B, features), and its state after them."""

    def step(self, observation: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]: ...


class Policy(nn.Module):
    """Observations (B, S, features) -> logits of the actions (B, S, actions) and values (B, S)."""

    def __init__(self, features: int, actions: int, dim: int, memory: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.memory: Any = memory
        self.logits = nn.Linear(dim, actions)
        self.value = nn.Linear(dim, 1)

    def forward(self, observations: Tensor, state: State, reset: Tensor) -> tuple[Tensor, Tensor]:
        """A whole rollout from the state at its start: what `step` computes one by one, in one call."""
        y = self.memory(self.embed(observations), state, reset=reset)
        return self.logits(y), self.value(y).squeeze(-1)

    @torch.no_grad()
    def step(self, observation: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]:
        """Logits (B, actions) for one observation (B, features) of each environment, and the state after it."""
        y, state = self.memory.step(self.embed(observation)[:, None], emptied(state, reset))
        return self.logits(y[:, 0]), state


class Uniform:
    """A policy to which all actions are alike."""

    def __init__(self, actions: int) -> None:
        self.actions = actions

    def step(self, observation: Tensor, state: State, reset: Tensor) -> tuple[Tensor, State]:
        return observation.new_zeros(len(observation), self.actions), None


class LSTM(nn.Module):
    """Layers of an LSTM, forget bias 1. Its states have the layers second here, not first."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.lstm = xlstm_cuda.nn.LSTM(dim, dim, layers, batch_first=True)
        with torch.no_grad():
            for layer in range(layers):
                getattr(self.lstm, f"bias_ih_l{layer}")[dim : 2 * dim] = 1

    def forward(self, x: Tensor, state: State, *, reset: Tensor | None = None) -> Tensor:
        y, _ = self._run(x, state, reset)
        return y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._run(x, state, None)

    def _run(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        y, after = self.lstm(x, None if state is None else [s.transpose(0, 1) for s in state], reset=reset)
        return y, tuple(s.transpose(0, 1) for s in after)


class GRU(nn.Module):
    """Layers of torch.nn.GRUCell. Resets inside the batch need a loop over the steps."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(dim, dim) for _ in range(layers))

    def forward(self, x: Tensor, state: State, *, reset: Tensor) -> Tensor:
        outputs = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t : t + 1], emptied(state, reset[:, t]))
            outputs.append(y)
        return torch.cat(outputs, 1)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, following = x[:, 0], []
        for index, cell in enumerate(self.cells):
            y = cell(y, None if state is None else state[index])
            following.append(y)
        return y[:, None], tuple(following)


class MLP(nn.Module):
    """Residual layers that see the present step only."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in range(layers)
        )

    def forward(self, x: Tensor, state: State = None, *, reset: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self(x), None
