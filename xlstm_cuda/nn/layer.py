"""What the two layers share: how they are called."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor, nn

from .inputs import check_tokens
from .states import MLSTMLayerState, SLSTMLayerState
from .tracing import leaf_call

State = TypeVar("State", MLSTMLayerState, SLSTMLayerState)


class RecurrentLayer(nn.Module, Generic[State]):
    """x (B, S, D), any S >= 0 -> (B, S, D). A state of None is the empty one."""

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        return_state: bool = False,
        *,
        reset: Tensor | None = None,
        is_step: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        """x (B, S, D) -> (B, S, D), and with return_state the state after the last token.

        reset: bool (B, S): the state, the convolution's window included, is emptied before that token.
        is_step: a call of `step`: 1 to 16 tokens, the cheaper way, where there is no reset.
        Raises ValueError for an x, state or reset of the wrong shape.
        """
        if (node := leaf_call(self, x, state, return_state, reset=reset, is_step=is_step)) is not None:
            return node
        y, following = self._run(x, state, reset, is_step)
        return (y, following) if return_state else y

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """1 to 16 tokens: x (B, S, D) -> (B, S, D) and the state after them. `state` stays as it is."""
        check_tokens(x)
        following: tuple[Tensor, State] = self(x, state, True, is_step=True)
        return following

    def _run(self, x: Tensor, state: State | None, reset: Tensor | None, is_step: bool) -> tuple[Tensor, State]:
        raise NotImplementedError
