"""What LSTM, sLSTM and mLSTM share: parameters, packed and unbatched input, layers, directions, dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ..tracing import leaf_call
from .checks import check_heads, check_input, check_options, check_reset, check_state, check_weights
from .initial import uniform_weights_
from .sequences import Rows, dense, pad, repack, unpack, unpad

State = TypeVar("State", bound="tuple[Tensor, ...]")  # LSTMState, SLSTMState or MLSTMState


class RNN(nn.Module, Generic[State]):
    """A stack of recurrent layers, called like torch.nn.LSTM.

    A cell gives the shapes of its parameters and state, and `_layer`, all directions of one layer. Parameters are
    called `{name}_l{layer}`, and `{name}_l{layer}_reverse` for the other direction.
    """

    state_type: ClassVar[Any]
    learned_parts: ClassVar[tuple[str, ...]]  # of the state, with learn_initial_state; the others are 1 then
    weight_ih_l0: nn.Parameter
    learn_initial_state = False  # of modules that were pickled before there was the option

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
        learn_initial_state: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads}
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
        flags["learn_initial_state"] = learn_initial_state
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
        self.learn_initial_state = learn_initial_state
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
        if learn_initial_state:
            for part, shape in self._state_shapes().items():
                if part in self.learned_parts:
                    start = torch.empty((num_layers * self.num_directions, *shape), device=device, dtype=dtype)
                    self.register_parameter(f"initial_{part}", nn.Parameter(start))
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
        """Uniform between -1 / sqrt(hidden_size) and 1 / sqrt(hidden_size), as torch.nn.LSTM; learned states are 0."""
        uniform_weights_(self)

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels take the parameters as they are."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Sequence[Tensor] | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """The outputs of the last layer, and the state of every layer after the last token.

        Args:
            input: (S, B, input_size), with batch_first (B, S, input_size), unbatched (S, input_size), packed, or a
                jagged NestedTensor (B, *, input_size).
            hx: the initial state, as this returns it; None for the learned one or the empty one. Its parts may have
                any float dtype.
            reset: bool, of the shape of input without its features, packed or jagged like it: the states of all layers
                are emptied before that token, where a new document or episode begins. The reverse direction empties its
                own at the ends of these.

        Returns:
            output: (S, B, directions * output_size), or with as many dimensions, or packed, as the input; contiguous.
            state: NamedTuple; its parts begin with (num_layers * directions, B), without B for unbatched input. h has
            the dtype of the output, all other parts are float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError: input, hx, reset or their shapes are not these, or reset is given to a module that
            learns its initial state: a reset leads to the empty one. What torch.nn.LSTM reports as RuntimeError is one
            here too.
        """
        options = {} if reset is None else {"reset": reset}
        if (node := leaf_call(self, input, hx, **options)) is not None:
            return cast(Any, node)
        op = type(self).__name__
        check_weights(op, self._parameters.values())
        check_input(op, input, self.input_size, self.weight_ih_l0)
        if reset is not None:
            check_reset(op, reset, input, self.learn_initial_state)
        if isinstance(input, PackedSequence):
            return self._packed(input, hx, cast("PackedSequence | None", reset))
        if input.is_nested:
            return self._jagged(input, hx, cast("Tensor | None", reset))
        batched = input.ndim == 3
        batch_dim = 0 if self.batch_first or not batched else 1
        x = dense(input.movedim(batch_dim, 0) if batched else input[None])
        if reset is not None:
            reset = dense(cast(Tensor, reset).movedim(batch_dim, 0) if batched else cast(Tensor, reset)[None])
        state = self._initial_state(hx, input.shape[batch_dim : batch_dim + batched], x.device)
        if state is not None and not batched:
            state = self.state_type(*(s.unsqueeze(1) for s in state))
        y, final = self._layers(x, state, Rows(reset=cast("Tensor | None", reset)))
        if not batched:
            return dense(y[0]).contiguous(), self.state_type(*(s.squeeze(1) for s in final))
        return dense(y.movedim(0, batch_dim)).contiguous(), final

    def extra_repr(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        defaults |= {"bidirectional": False, "num_heads": 1, "learn_initial_state": False}
        shown += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(shown)

    def _packed(
        self, input: PackedSequence, hx: Sequence[Tensor] | None, reset: PackedSequence | None
    ) -> tuple[PackedSequence, State]:
        x, lengths = unpack(input)
        rows = Rows(lengths.to(x.device), None if reset is None else unpack(reset)[0])
        state = self._initial_state(hx, x.shape[:1], x.device)
        if state is not None and input.sorted_indices is not None:
            state = self.state_type(*(s.index_select(1, input.sorted_indices) for s in state))
        y, final = self._layers(x, state, rows)
        if input.unsorted_indices is not None:
            final = self.state_type(*(s.index_select(1, input.unsorted_indices) for s in final))
        return repack(y, lengths, input), final

    def _jagged(self, input: Tensor, hx: Sequence[Tensor] | None, reset: Tensor | None) -> tuple[Tensor, State]:
        input = input.contiguous()
        x, lengths = pad(input)
        rows = Rows(lengths, None if reset is None else pad(reset.contiguous())[0])
        y, final = self._layers(x, self._initial_state(hx, x.shape[:1], x.device), rows)
        return unpad(y, lengths, input), final

    def _initial_state(self, hx: Sequence[Tensor] | None, batch: Sequence[int], device: torch.device) -> State | None:
        """hx, checked, or the learned state; batch: (B,), or () for unbatched input."""
        layers = self.num_layers * self.num_directions
        shapes: list[tuple[int, ...]] = [(layers, *batch, *shape) for shape in self._state_shapes().values()]
        if hx is None:
            return self._learned_state(shapes) if self.learn_initial_state else None
        check_state(type(self).__name__, self.state_type._fields, hx, shapes, device)
        return self.state_type(*hx)

    def _learned_state(self, shapes: Sequence[tuple[int, ...]]) -> State:
        """For every row of a batch; parts that are not learned are 1."""
        parts = []
        for part, shape in zip(self.state_type._fields, shapes, strict=True):
            start = getattr(self, f"initial_{part}", None)
            if start is None:
                parts.append(self.weight_ih_l0.new_ones(shape))
            else:
                parts.append(start.expand(shape) if len(shape) == start.ndim else start.unsqueeze(1).expand(shape))
        return self.state_type(*parts)

    def _layers(self, x: Tensor, state: State | None, rows: Rows) -> tuple[Tensor, State]:
        """x (B, S, input_size), state of all layers -> (B, S, directions * output_size), state of all layers."""
        finals = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            initial_state = None
            if state is not None:
                first, end = layer * self.num_directions, (layer + 1) * self.num_directions
                initial_state = self.state_type(*(s[first:end] for s in state))
            y, final = self._layer(layer, x, initial_state, rows)
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

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts of the state after (num_layers * directions, B)."""
        raise NotImplementedError

    def _layer(self, layer: int, x: Tensor, state: State | None, rows: Rows) -> tuple[Tensor, State]:
        """All directions of one layer.

        x: (B, S, F); state: parts (directions, B, ...); rows: on x's device.
        Returns (B, S, directions, output_size), and the final state.
        """
        raise NotImplementedError
