"""LSTM and sLSTM: cells with one memory per hidden unit, recurrent weights per head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ... import _autocast, _onnx, functional
from ..._backend import in_onnx_graph
from ..._states import LSTMState, SLSTMState
from ..._transforms import in_transform
from ...functional._blockwise import blockwise_scan, tokens_per_block
from ...functional._blockwise import gates as project
from .base import RNN
from .checks import check_heads
from .initial import slstm_biases_
from .sequences import Rows, dense, join, merge_directions, split_directions

State = TypeVar("State", LSTMState, SLSTMState)


class ScalarRNN(RNN[State]):
    """Parameters of each layer and direction, as torch.nn.LSTM's; gates by row, then heads, then units:

    weight_ih (4 * hidden_size, inputs), bias_ih and bias_hh (4 * hidden_size,)
    weight_hh (4 * hidden_size, output_size / num_heads): a row reads the outputs of its own head only
    weight_hr (proj_size, hidden_size / num_heads), with proj_size: head by head
    """

    scan: ClassVar[Callable[..., Any]]

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        check_heads(type(self).__name__, self.num_heads, proj_size=self.proj_size)
        rows = 4 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, self.output_size // self.num_heads),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }
        return shapes | ({"weight_hr": (self.proj_size, self.head_dim)} if self.proj_size else {})

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {part: (self.output_size if part == "h" else self.hidden_size,) for part in self.state_type._fields}

    def _layer(self, layer: int, x: Tensor, state: State | None, rows: Rows) -> tuple[Tensor, State]:
        """Both directions are one call: the heads of the second one are reversed."""
        gates = (4, self.num_heads, self.head_dim)
        W = join([w.unflatten(0, gates) for w in self._each("weight_ih", layer)], 1)
        R = join([w.unflatten(0, gates) for w in self._each("weight_hh", layer)], 1)
        b = None
        if self.bias:
            biases = zip(self._each("bias_ih", layer), self._each("bias_hh", layer), strict=True)
            b = join([(b_ih + b_hh).unflatten(0, gates) for b_ih, b_hh in biases], 1)
        initial_state = None
        if state is not None:
            initial_state = self.state_type(*(merge_directions(s.unflatten(-1, (self.num_heads, -1))) for s in state))
        if self.proj_size:
            P = join([w.unflatten(0, (self.num_heads, -1)) for w in self._each("weight_hr", layer)], 0)
            h, final = self._projected_scan(project(x, W), R, b, P, initial_state, rows)
        else:
            h, final = self._projection_and_scan(x, W, R, b, initial_state, rows)
            final = final._replace(h=final.h.to(h.dtype))  # exact: the kernel rounded it
        directions = self.num_directions
        output = h.unflatten(2, (directions, self.num_heads)).flatten(3)
        return output, self.state_type(*(split_directions(s, directions).flatten(2) for s in final))

    def _projection_and_scan(
        self, x: Tensor, W: Tensor, R: Tensor, b: Tensor | None, state: State | None, rows: Rows
    ) -> tuple[Tensor, State]:
        op, block = type(self).scan.__name__, x.shape[1]
        if not self.bidirectional and rows.reset is None:
            block = tokens_per_block(op, x, W, R, b, *(state or ()))
        if block == x.shape[1]:
            return self._scan(project(x, W), R, b, state, rows)
        h, final = blockwise_scan(op, x, W, R, b, state, rows.lengths, block)
        return h, self.state_type(*final)

    def _scan(
        self, x: Tensor, R: Tensor, b: Tensor | None, initial_state: State | None, rows: Rows
    ) -> tuple[Tensor, State]:
        if rows.reset is not None and self.bidirectional:
            return self._reset_scans(x, R, b, initial_state, rows)
        options = {**rows._asdict(), "reversed_heads": self.num_heads * (self.num_directions - 1)}
        h, final = type(self).scan(x, R, b, initial_state=initial_state, return_state=True, **options)
        return h, final

    def _reset_scans(
        self, x: Tensor, R: Tensor, b: Tensor | None, initial_state: State | None, rows: Rows
    ) -> tuple[Tensor, State]:
        """`_scan` of one direction after the other: a call of the kernel empties all of its heads at once."""
        found = []
        for direction, own in enumerate((rows, rows.backwards())):
            heads = slice(direction * self.num_heads, (direction + 1) * self.num_heads)
            inputs = x[..., heads, :], R[:, heads], None if b is None else b[:, heads]
            start = None if initial_state is None else self.state_type(*(s[:, heads] for s in initial_state))
            options = {**own._asdict(), "reversed_heads": direction * self.num_heads}
            found.append(type(self).scan(*inputs, initial_state=start, return_state=True, **options))
        outputs, finals = zip(*found, strict=True)
        return torch.cat(outputs, 2), self.state_type(*(torch.cat(parts, 1) for parts in zip(*finals, strict=True)))

    def _projected_scan(
        self, x: Tensor, R: Tensor, b: Tensor | None, P: Tensor, initial_state: State | None, rows: Rows
    ) -> tuple[Tensor, State]:
        """The recurrence through p = P h, without leaving the kernel: x + R (P h) = x + (R P) h.

        x (B, S, 4, H, D), R (4, H, D, p), P (H, p, D). initial_state.h is p before the first token and need not be the
        projection of any h: R p is added to that token's x, in place, and the kernel starts from h = 0. Returns p and
        the final state with p.
        """
        if initial_state is not None:
            p = initial_state.h.to(R.dtype)
            if x.shape[1]:
                first = _by_head(p, R.transpose(0, 1).flatten(1, 2)).unflatten(-1, R.shape[::2])  # (B, H, 4, D)
                if rows.reset is not None:  # behind the last token, where the reversed heads start, nothing begins
                    forward = torch.arange(first.shape[1], device=x.device) < self.num_heads
                    first = first.masked_fill((rows.reset[:, :1] & forward)[..., None, None], 0)
                x = _with_first_tokens(x, first.transpose(1, 2), self.num_heads, rows.lengths)
            initial_state = initial_state._replace(h=torch.zeros_like(initial_state.c))
        h, final = self._scan(x, R @ P, b, initial_state, rows)
        after = _by_head(final.h.to(h.dtype), P)
        if initial_state is not None and rows.lengths is not None:
            after = torch.where(rows.lengths[:, None, None] == 0, p, after)
        if initial_state is None or x.shape[1]:
            p = after
        return _by_head(h, P), final._replace(h=p)


def _by_head(x: Tensor, W: Tensor) -> Tensor:
    """x (..., H, I) and W (H, O, I) -> (..., H, O)."""
    if in_onnx_graph():
        return _onnx.headwise_linear(dense(x).flatten(-2), W, None).unflatten(-1, W.shape[:2])
    return torch.einsum("...hi,hoi->...ho", x, W)


def _with_first_tokens(x: Tensor, first: Tensor, forward_heads: int, lengths: Tensor | None) -> Tensor:
    """x (B, S, 4, H, D) and, in place, first (B, 4, H, D) added to the token that each head takes first.

    The heads after the forward ones are reversed. A row without tokens gets it in its padding, where nothing counts.
    """
    if in_onnx_graph() or in_transform():  # vmap: x may have fewer dimensions than what is to be written into it
        t, heads = (torch.arange(size, device=x.device) for size in (x.shape[1], x.shape[3]))
        end = torch.full_like(t[:1], x.shape[1]) if lengths is None else lengths
        turn = torch.where(heads < forward_heads, 0, (end[:, None] - 1).clamp(min=0))  # (B or 1, H): the first token
        is_first = (t[None, :, None] == turn[:, None])[:, :, None, :, None]
        return torch.where(is_first, x + first[:, None], x)
    x[:, 0, :, :forward_heads] += first[:, :, :forward_heads]
    if x.shape[3] > forward_heads:
        rows = torch.arange(x.shape[0], device=x.device)
        last = torch.full_like(rows, x.shape[1] - 1) if lengths is None else (lengths - 1).clamp(min=0)
        x[rows, last, :, forward_heads:] += first[:, :, forward_heads:]
    return x


class LSTM(ScalarRNN[LSTMState]):
    """torch.nn.LSTM on this library's kernels: the same arguments, parameters, initial values, results and states.

    Gate order i, f, g, o. Equations: `xlstm_cuda.lstm`. One more argument:

    num_heads: weight_hh is block-diagonal with that many blocks and has shape (4 * hidden_size, hidden_size /
        num_heads); with proj_size, weight_hh (4 * hidden_size, proj_size / num_heads) and weight_hr (proj_size,
        hidden_size / num_heads). With one head they are torch.nn.LSTM's. ValueError unless num_heads divides
        hidden_size and proj_size.

    learn_initial_state: where no state is given, it is of parameters initial_h and initial_c, shaped as the state's
        parts without B; 0 to begin with.

    State: (h (num_layers * directions, B, proj_size or hidden_size), c (num_layers * directions, B, hidden_size)), c in
    float32 at least. A sequence of no tokens is allowed, its final state is the initial state.
    """

    state_type = LSTMState
    learned_parts = ("h", "c")
    scan = staticmethod(functional.lstm)

    def _layer(self, layer: int, x: Tensor, state: LSTMState | None, rows: Rows) -> tuple[Tensor, LSTMState]:
        standard = self.num_heads == 1 and not self.proj_size and x.dtype == torch.float32
        standard = standard and rows.lengths is None and rows.reset is None
        if not (standard and in_onnx_graph() and not _autocast.enabled(x.device.type)):
            return super()._layer(layer, x, state, rows)
        W, R, biases = self._each("weight_ih", layer), self._each("weight_hh", layer), None
        if self.bias:
            biases = list(zip(self._each("bias_ih", layer), self._each("bias_hh", layer), strict=True))
        h, final = _onnx.standard_lstm(x.transpose(0, 1), W, R, biases, state)
        return _onnx.dense(h.permute(2, 0, 1, 3)), final


class sLSTM(ScalarRNN[SLSTMState]):
    """sLSTM (arXiv 2405.04517, equations 8-18) called like torch.nn.LSTM.

    Gate order i, f, z, o, sigmoid forget gate. Equations: `xlstm_cuda.slstm`. Parameters, num_heads and proj_size: as
    in `LSTM`. Initial weights are those of torch.nn.LSTM; biases are 0, but for the forget gate's (in bias_ih), which
    goes from 3 to 6 over the units of a head: a memory of 20 to 400 tokens.

    learn_initial_state: as in `LSTM`, with parameters initial_h, initial_c and initial_m; n is 1.

    State: SLSTMState(h, c, n, m), h as in `LSTM`, the others (num_layers * directions, B, hidden_size). All zero is
    empty.
    """

    state_type = SLSTMState
    learned_parts = ("h", "c", "m")
    scan = staticmethod(functional.slstm)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        slstm_biases_(self)
