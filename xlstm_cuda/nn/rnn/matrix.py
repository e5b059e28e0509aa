"""mLSTM: a matrix memory per head, no recurrent weights."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import functional
from ..._states import MLSTMState
from .base import RNN
from .initial import mlstm_biases_
from .sequences import Rows, dense, join, merge_directions, reverse, split_directions

KEEP = 1e4  # a forget gate whose sigmoid is 1 in every dtype


class mLSTM(RNN[MLSTMState]):
    """mLSTM (arXiv 2405.04517, equations 19-27) called like torch.nn.LSTM.

    Per head, with the recurrence of `xlstm_cuda.mlstm` (exponential input gate, sigmoid forget gate):

        q, k, v, o = weight_ih x + bias_ih        i, f = weight_if x + bias_if
        h = sigmoid(o) * mlstm(q, k, v, i, f)

    Parameters of each layer and direction, D = hidden_size / num_heads:

        weight_ih (4 * hidden_size, inputs), bias_ih (4 * hidden_size,)     rows q, k, v, o; then heads; then D
        weight_if (2 * num_heads, inputs), bias_if (2 * num_heads,)         rows i, f; then heads
        weight_hr (proj_size, hidden_size)      with proj_size: the output is weight_hr h; nothing is fed back

    Initial weights are those of torch.nn.LSTM; biases are 0, but for the forget gate's, which goes from 3 to 6 over the
    heads. num_heads divides hidden_size, else ValueError.

    learn_initial_state: as in `LSTM`, with parameters initial_C, initial_n and initial_m.

    State: MLSTMState(C (num_layers * directions, B, num_heads, D, D), n (..., num_heads, D), m (..., num_heads)), in
    float32 at least. All zero is empty.
    """

    state_type = MLSTMState
    learned_parts = ("C", "n", "m")

    def reset_parameters(self) -> None:
        super().reset_parameters()
        mlstm_biases_(self)

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        rows, gates = 4 * self.hidden_size, 2 * self.num_heads
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs),
            "weight_if": (gates, inputs),
            "bias_ih": (rows,),
            "bias_if": (gates,),
        }
        return shapes | ({"weight_hr": (self.proj_size, self.hidden_size)} if self.proj_size else {})

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        heads, dim = self.num_heads, self.head_dim
        return {"C": (heads, dim, dim), "n": (heads, dim), "m": (heads,)}

    def _layer(self, layer: int, x: Tensor, state: MLSTMState | None, rows: Rows) -> tuple[Tensor, MLSTMState]:
        lengths = rows.lengths
        inputs = [x, reverse(x, lengths)] if self.bidirectional else [x]  # each in its own order of time
        (q, k, v, o), (i, f) = self._projections(layer, inputs)
        if lengths is not None:
            past = torch.arange(i.shape[2], device=i.device) >= lengths[:, None, None]  # (B, 1, S)
            i, f = i.masked_fill(past, -math.inf), f.masked_fill(past, KEEP)  # the state stays, bit by bit
        initial_state = None if state is None else MLSTMState(*map(merge_directions, state))
        h, final = self._recurrence((q, k, v, i, f), initial_state, rows)
        output = (torch.sigmoid(o) * h).transpose(1, 2).unflatten(2, (self.num_directions, self.num_heads)).flatten(3)
        if self.proj_size:
            weights = self._each("weight_hr", layer)
            output = torch.stack([F.linear(dense(y), w) for y, w in zip(output.unbind(2), weights, strict=True)], 2)
        forward, *backward = output.unbind(2)
        output = torch.stack([forward, *(reverse(y, lengths) for y in backward)], 2)
        return output, MLSTMState(*(split_directions(s, self.num_directions) for s in final))

    def _recurrence(
        self, inputs: tuple[Tensor, ...], initial_state: MLSTMState | None, rows: Rows
    ) -> tuple[Tensor, MLSTMState]:
        """mlstm of both directions, in one call unless they are emptied at different tokens."""
        if rows.reset is None or not self.bidirectional:
            result = functional.mlstm(*inputs, initial_state=initial_state, return_state=True, reset=rows.reset)
            return cast(tuple[Tensor, MLSTMState], result)
        backwards = cast(Tensor, rows.backwards().reset)
        found = []
        for direction, cuts in enumerate((rows.reset, reverse(backwards[..., None], rows.lengths).squeeze(-1))):
            heads = slice(direction * self.num_heads, (direction + 1) * self.num_heads)
            start = None if initial_state is None else MLSTMState(*(s[:, heads] for s in initial_state))
            own: Any = [x[:, heads] for x in inputs]
            found.append(functional.mlstm(*own, initial_state=start, return_state=True, reset=cuts))
        outputs, finals = zip(*found, strict=True)
        return torch.cat(outputs, 1), MLSTMState(*(torch.cat(parts, 1) for parts in zip(*finals, strict=True)))

    def _projections(self, layer: int, inputs: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """q, k, v, o (B, directions * H, S, D); i, f (B, directions * H, S), whose bias autocast does not round."""
        biases = self._each("bias_ih", layer) if self.bias else [None] * len(inputs)
        qkvo = [F.linear(x, w, b) for x, w, b in zip(inputs, self._each("weight_ih", layer), biases, strict=True)]
        gates = [F.linear(x, w) for x, w in zip(inputs, self._each("weight_if", layer), strict=True)]
        if self.bias:
            gates = [g + b for g, b in zip(gates, self._each("bias_if", layer), strict=True)]
        by_head = join([y.unflatten(-1, (4, self.num_heads, self.head_dim)) for y in qkvo], 3)
        gates_by_head = join([g.unflatten(-1, (2, self.num_heads)) for g in gates], 3)
        return by_head.permute(2, 0, 3, 1, 4).unbind(), gates_by_head.permute(2, 0, 3, 1).unbind()
