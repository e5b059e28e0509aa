"""What LSTM, sLSTM and mLSTM share: parameters, packed and unbatched input, layers, directions, dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ..tracing import leaf_call
from .checks import check_heads, check_input, check_options, check_state, check_weights
from .sequences import dense, repack, unpack

State = TypeVar("State", bound="tuple[Tensor, ...]")  # LSTMState, SLSTMState or MLSTMState


class RNN(nn.Module, Generic[State]):
    """A stack of recurrent layers, called like torch.nn.LSTM.

    A cell gives the shapes of its parameters and state, and `_layer`, all directions of one layer. Parameters are
    called `{name}_l{layer}`, and `{name}_l{layer}_reverse` for the other direction.
    """

    state_type: ClassVar[Any]
    weight_ih_l0: nn.Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        num_heads: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads}
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        check_options(op, sizes, flags, proj_size, dropout)
        check_heads(op, num_heads, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.num_heads = num_heads
        self._all_weights: list[list[str]] = []  # torch.nn.LSTM's name for it
        for layer in range(num_layers):
            inputs = self.num_directions * self.output_size if layer else input_size
            shapes = {
                name: shape for name, shape in self._shapes(inputs).items() if bias or not name.startswith("bias")
            }
            for suffix in self._suffixes:
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_l{layer}{suffix}", parameter)
                self._all_weights.append([f"{name}_l{layer}{suffix}" for name in shapes])
        self.reset_parameters()

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def output_size(self) -> int:
        """Features of the output, per direction."""
        return self.proj_size or self.hidden_size

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, as they are used: also where a parametrization computes them."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def reset_parameters(self) -> None:
        """Uniform between -1 / sqrt(hidden_size) and 1 / sqrt(hidden_size), as torch.nn.LSTM."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the parameters as they are."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Sequence[Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """The outputs of the last layer, and the state of every layer after the last token.

        Args:
            input: (S, B, input_size), with batch_first (B, S, input_size), unbatched (S, input_size), or packed.
            hx: the initial state, as this returns it; None for the empty state. Its parts may have any float dtype.

        Returns:
            output: (S, B, directions * output_size), or with as many dimensions, or packed, as the input; contiguous.
            state: NamedTuple; its parts begin with (num_layers * directions, B), without B for unbatched input. h has
            the dtype of the output, all other parts are float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: input, hx or their shapes are not these. What torch.nn.LSTM reports as RuntimeError
            is one here too.
        """
        if (node := leaf_call(self, input, hx)) is not None:
            return cast(Any, node)
        op = type(self).__name__
        check_weights(op, self._parameters.values())
        check_input(op, input, self.input_size, self.weight_ih_l0)
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        batched = input.ndim == 3
        batch_dim = 0 if self.batch_first or not batched else 1
        x = dense(input.movedim(batch_dim, 0) if batched else input[None])
        state = self._initial_state(hx, input.shape[batch_dim : batch_dim + batched], x.device)
        if state is not None and not batched:
            state = self.state_type(*(s.unsqueeze(1) for s in state))
        y, final = self._layers(x, state, None)
        if not batched:
            return dense(y[0]).contiguous(), self.state_type(*(s.squeeze(1) for s in final))
        return dense(y.movedim(0, batch_dim)).contiguous(), final

    def extra_repr(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        defaults |= {"bidirectional": False, "num_heads": 1}
        shown += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(shown)

    def _packed(self, input: PackedSequence, hx: Sequence[Tensor] | None) -> tuple[PackedSequence, State]:
        x, lengths = unpack(input)
        state = self._initial_state(hx, x.shape[:1], x.device)
        if state is not None and input.sorted_indices is not None:
            state = self.state_type(*(s.index_select(1, input.sorted_indices) for s in state))
        y, final = self._layers(x, state, lengths.to(x.device))
        if input.unsorted_indices is not None:
            final = self.state_type(*(s.index_select(1, input.unsorted_indices) for s in final))
        return repack(y, lengths, input), final

    def _initial_state(self, hx: Sequence[Tensor] | None, batch: Sequence[int], device: torch.device) -> State | None:
        """hx, checked; batch: (B,), or () for unbatched input."""
        if hx is None:
            return None
        layers = self.num_layers * self.num_directions
        shapes: list[tuple[int, ...]] = [(layers, *batch, *shape) for shape in self._state_shapes()]
        check_state(type(self).__name__, self.state_type._fields, hx, shapes, device)
        return self.state_type(*hx)

    def _layers(self, x: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """x (B, S, input_size), state of all layers -> (B, S, directions * output_size), state of all layers."""
        finals = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            initial_state = None
            if state is not None:
                first, end = layer * self.num_directions, (layer + 1) * self.num_directions
                initial_state = self.state_type(*(s[first:end] for s in state))
            y, final = self._layer(layer, x, initial_state, lengths)
            x = y.flatten(2)
            finals.append(final)
        return x, self.state_type(*(torch.cat(parts) for parts in zip(*finals, strict=True)))

    def _each(self, name: str, layer: int) -> list[Tensor]:
        """A parameter of one layer in each direction."""
        return [getattr(self, f"{name}_l{layer}{suffix}") for suffix in self._suffixes]

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse")[: self.num_directions]

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one layer with that many input features, in one direction; "bias..." if there is a bias."""
        raise NotImplementedError

    def _state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of the state after (num_layers * directions, B)."""
        raise NotImplementedError

    def _layer(self, layer: int, x: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """All directions of one layer.

        x: (B, S, F); state: parts (directions, B, ...); lengths: (B,) on x's device.
        Returns (B, S, directions, output_size), and the final state.
        """
        raise NotImplementedError
