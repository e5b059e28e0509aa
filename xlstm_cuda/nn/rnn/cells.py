"""LSTMCell, sLSTMCell and mLSTMCell: one token of a layer, called like torch.nn.LSTMCell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import functional
from ..._states import LSTMState, MLSTMState, SLSTMState, register
from ..tracing import leaf_call
from .base import RNN
from .checks import check_heads, check_options, check_state, check_token
from .initial import mlstm_biases_, slstm_biases_, uniform_weights_
from .matrix import mLSTM
from .scalar import LSTM, sLSTM


class MLSTMCellState(NamedTuple):
    """h (B, hidden_size), the output of a token, and the state behind it: C (B, H, D, D), n (B, H, D), m (B, H)."""

    h: Tensor
    C: Tensor
    n: Tensor
    m: Tensor


register(MLSTMCellState)
State = TypeVar("State", LSTMState, SLSTMState, MLSTMCellState)


class RNNCell(nn.Module, Generic[State]):
    """One token of a layer; the parameters are those of one layer and direction, without the suffix _l0."""

    layer: ClassVar[type[RNN[Any]]]
    state_type: ClassVar[Any]
    weight_ih: nn.Parameter
    bias_ih: nn.Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": 1, "num_heads": num_heads}
        check_options(op, sizes, {"bias": bias}, 0, 0.0)
        check_heads(op, num_heads, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.num_heads = num_heads
        layer = self.layer(input_size, hidden_size, bias=bias, num_heads=num_heads, device="meta")
        for name, parameter in layer.named_parameters():
            own = nn.Parameter(torch.empty(parameter.shape, device=device, dtype=dtype))
            self.register_parameter(name.removesuffix("_l0"), own)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial values of the layer."""
        uniform_weights_(self)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def forward(self, input: Tensor, hx: Sequence[Tensor] | None = None) -> State:
        """One token.

        Args:
            input: (B, input_size) or, without a batch, (input_size,), in the dtype of the weights.
            hx: what this returned for the token before; None before the first one. Its parts may have any float dtype.

        Returns:
            state: a NamedTuple that begins with h (B, hidden_size), the output, of the dtype of input; the other parts
            are float32 (float64 for float64 input). Without B for unbatched input.

        Raises:
            TypeError, ValueError: input, hx or their shapes are not these.
        """
        if (node := leaf_call(self, input, hx)) is not None:
            return cast(State, node)
        op = type(self).__name__
        check_token(op, input, self.input_size, self.weight_ih)
        batch = tuple(input.shape[:-1])
        if hx is not None:
            shapes = [batch + shape for shape in self._part_shapes().values()]
            check_state(op, self.state_type._fields, hx, shapes, input.device)
            hx = hx if batch else [s[None] for s in hx]
        state = self._step(input if batch else input[None], hx)
        return state if batch else self.state_type(*(s[0] for s in state))

    def extra_repr(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        defaults = {"bias": True, "num_heads": 1}
        shown += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(shown)

    def _part_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts of the state after B."""
        raise NotImplementedError

    def _step(self, x: Tensor, state: Sequence[Tensor] | None) -> State:
        """x (B, input_size) and the parts of the state before it -> the state after it."""
        raise NotImplementedError


class ScalarCell(RNNCell[State]):
    """LSTMCell and sLSTMCell: parameters as torch.nn.LSTMCell's, weight_hh with the rows' own heads only."""

    _function: ClassVar[Callable[..., Any]]
    weight_hh: nn.Parameter
    bias_hh: nn.Parameter

    def _part_shapes(self) -> dict[str, tuple[int, ...]]:
        return {part: (self.hidden_size,) for part in self.state_type._fields}

    def _step(self, x: Tensor, state: Sequence[Tensor] | None) -> State:
        gates = (4, self.num_heads, self.head_dim)
        before = None
        if state is not None:
            before = self.state_type(*(s.unflatten(1, gates[1:]) for s in state))
        b = (self.bias_ih + self.bias_hh).unflatten(0, gates) if self.bias else None
        inputs = F.linear(x, self.weight_ih).unflatten(1, gates)
        h, (_, *others) = cast(Any, type(self))._function(inputs, self.weight_hh.unflatten(0, gates), b, before)
        return cast(State, self.state_type(*(s.flatten(1) for s in (h, *others))))


class LSTMCell(ScalarCell[LSTMState]):
    """torch.nn.LSTMCell on this library's kernels: the same arguments, parameters, initial values and results.

    One more argument, num_heads: as in `LSTM`. State: (h, c), c in float32 at least. Equations: `xlstm_cuda.lstm`.
    """

    layer, state_type, _function = LSTM, LSTMState, staticmethod(functional.lstm_step)


class sLSTMCell(ScalarCell[SLSTMState]):
    """One token of `sLSTM` (arXiv 2405.04517, equations 8-18), with its parameters and initial values.

    State: SLSTMState(h, c, n, m), each (B, hidden_size). All zero is empty.
    """

    layer, state_type, _function = sLSTM, SLSTMState, staticmethod(functional.slstm_step)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        slstm_biases_(self)


class mLSTMCell(RNNCell[MLSTMCellState]):
    """One token of `mLSTM` (arXiv 2405.04517, equations 19-27), with its parameters and initial values.

    State: (h (B, hidden_size), C (B, num_heads, D, D), n (B, num_heads, D), m (B, num_heads)), D = hidden_size /
    num_heads. h is the output; as a part of hx it is not read. All zero is empty.
    """

    layer, state_type = mLSTM, MLSTMCellState
    weight_if: nn.Parameter
    bias_if: nn.Parameter

    def reset_parameters(self) -> None:
        super().reset_parameters()
        mlstm_biases_(self)

    def _part_shapes(self) -> dict[str, tuple[int, ...]]:
        heads, dim = self.num_heads, self.head_dim
        return {"h": (self.hidden_size,), "C": (heads, dim, dim), "n": (heads, dim), "m": (heads,)}

    def _step(self, x: Tensor, state: Sequence[Tensor] | None) -> MLSTMCellState:
        by_head = F.linear(x, self.weight_ih, self.bias_ih if self.bias else None)
        q, k, v, o = by_head.unflatten(1, (4, self.num_heads, self.head_dim)).unbind(1)
        gates = F.linear(x, self.weight_if)
        i, f = (gates + self.bias_if if self.bias else gates).unflatten(1, (2, self.num_heads)).unbind(1)
        before = None if state is None else MLSTMState(*state[1:])
        h, after = functional.mlstm_step(q, k, v, i, f, before)
        return MLSTMCellState((torch.sigmoid(o) * h).flatten(1), *after)
