"""Every function with every option that its derivatives depend on, as a function of tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlstm_cuda.functional import (
    causal_conv1d,
    causal_conv1d_step,
    gated_activation,
    headwise_linear,
    lstm,
    lstm_step,
    mlstm,
    mlstm_step,
    multihead_norm_gate,
    slstm,
    slstm_step,
    soft_cap,
)
from xlstm_cuda.testing import lstm_inputs, mlstm_inputs, slstm_inputs

RESET = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
LENGTHS = torch.tensor([3, 4])
CU_SEQLENS = torch.tensor([0, 1, 1, 4], dtype=torch.int32)
SLOTS = torch.tensor([2, 0], dtype=torch.int32)


class Case(NamedTuple):
    """outputs = call(*tensors, backend=...), a tuple."""

    call: Callable[..., tuple[Tensor, ...]]
    tensors: list[Tensor]

    def loss(self, *tensors: Tensor, backend: str | None = None) -> Tensor:
        """Neither linear nor symmetric in the outputs."""
        outputs = self.call(*tensors, backend=backend)
        weights = [torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in outputs]
        return torch.stack([(y.square() * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum()


def case(function: Callable[..., Any], inputs: dict[str, Any], **options: Any) -> Case:
    """Inputs by name: tensors, one state or None for it, or a list of tensors or None, as headwise_linear takes."""
    leaves, spec = torch.utils._pytree.tree_flatten(inputs)
    places = [place for place, x in enumerate(leaves) if isinstance(x, Tensor)]

    def call(*tensors: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
        given = list(leaves)
        for place, x in zip(places, tensors, strict=True):
            given[place] = x
        found = function(**torch.utils._pytree.tree_unflatten(given, spec), **options, backend=backend)
        return tuple(torch.utils._pytree.tree_leaves(found))

    return Case(call, [leaves[place] for place in places])


def _mlstm(B: int = 2, **options: Any) -> Case:
    draw: dict[str, Any] = {"dtype": torch.float64, "state": True}
    inputs = mlstm_inputs(B, 2, 4, 2, 3, state_rows=3 if B == 1 else None, **draw)
    return case(mlstm, inputs, return_state=True, **options)


def _bare(function: Callable[..., Any], inputs: dict[str, Any], **options: Any) -> Case:
    """No state and no bias; h alone."""
    return case(function, {name: x for name, x in inputs.items() if name != "b"}, **options)


def _cell(function: Callable[..., Any], **options: Any) -> Case:
    make = lstm_inputs if function is lstm else slstm_inputs
    return case(function, make(2, 4, 2, 2, dtype=torch.float64, state=True), return_state=True, **options)


def _step(function: Callable[..., Any], **options: Any) -> Case:
    draw: dict[str, Any] = {"dtype": torch.float64, "state": True}
    if function is mlstm_step:
        inputs = mlstm_inputs(2, 2, 1, 2, 3, state_rows=3 if options else None, **draw)
        inputs = {name: x.squeeze(2) if name != "initial_state" else x for name, x in inputs.items()}
    else:
        inputs = (lstm_inputs if function is lstm_step else slstm_inputs)(2, 1, 2, 2, **draw)
        inputs["x"] = inputs["x"].squeeze(1)
    return case(function, {"state" if name == "initial_state" else name: x for name, x in inputs.items()}, **options)


def _draw(function: Callable[..., Any], shapes: dict[str, Any], **options: Any) -> Case:
    generator = torch.Generator().manual_seed(3)

    def tensor(shape: Any) -> Any:
        if isinstance(shape, list):
            return [tensor(part) for part in shape]
        return None if shape is None else torch.randn(shape, generator=generator, dtype=torch.float64)

    return case(function, {name: tensor(shape) for name, shape in shapes.items()}, **options)


CONV = {"x": (2, 4, 3), "weight": (3, 4), "bias": (3,), "initial_state": (2, 3, 3)}
PACKED_CONV = CONV | {"x": (1, 4, 3), "initial_state": (3, 3, 3)}
NORM = {"h": (2, 2, 2, 3), "weight": (6,), "bias": (6,), "gate": (2, 2, 6), "skip": (2, 2, 6), "skip_weight": (6,)}
MAPS = {"x": (2, 6), "weight": [(3, 2, 2), (3, 4, 2)], "bias": [(6,), None]}

CASES: dict[str, Callable[[], Case]] = {
    "mlstm": _mlstm,
    "mlstm sigmoid": lambda: _mlstm(input_gate="sigmoid", normalize=False),
    "mlstm options": lambda: _mlstm(input_gate="sigmoid", scale=0.4, eps=0.3, reset=RESET),
    "mlstm chunks": lambda: _bare(mlstm, mlstm_inputs(1, 1, 9, 2, 3, dtype=torch.float64), chunk_size=4, eps=0.1),
    "mlstm packed": lambda: _mlstm(1, cu_seqlens=CU_SEQLENS, reset=RESET[:1]),
    "mlstm_step": lambda: _step(mlstm_step),
    "mlstm_step slots": lambda: _step(mlstm_step, slots=SLOTS),
    "slstm": lambda: _cell(slstm),
    "slstm options": lambda: _cell(slstm, forget_gate="exp", lengths=LENGTHS, reset=RESET, reversed_heads=1),
    "slstm bare": lambda: _bare(slstm, slstm_inputs(2, 3, 1, 2, dtype=torch.float64), reversed_heads=1),
    "slstm_step": lambda: _step(slstm_step),
    "lstm": lambda: _cell(lstm),
    "lstm options": lambda: _cell(lstm, lengths=LENGTHS, reset=RESET, reversed_heads=1),
    "lstm_step": lambda: _step(lstm_step),
    "causal_conv1d": lambda: _draw(causal_conv1d, CONV, activation="silu", reset=RESET, return_state=True),
    "causal_conv1d packed": lambda: _draw(causal_conv1d, PACKED_CONV, cu_seqlens=CU_SEQLENS, return_state=True),
    "causal_conv1d_step": lambda: _draw(
        causal_conv1d_step, {"x": (2, 3), "weight": (3, 4), "bias": None, "state": (2, 3, 3)}, activation="silu"
    ),
    "multihead_norm_gate": lambda: _draw(multihead_norm_gate, NORM),
    "multihead_norm_gate rms": lambda: _draw(
        multihead_norm_gate, {"h": (1, 2, 2, 3), "gate": (1, 2, 6)}, norm="rms", gate_activation="sigmoid"
    ),
    "headwise_linear": lambda: _draw(headwise_linear, MAPS),
    "headwise_linear wide": lambda: _draw(headwise_linear, {"x": (2, 18), "weight": (1, 2, 18), "bias": (2,)}),
    "gated_activation": lambda: _draw(gated_activation, {"x": (2, 4), "gate": (2, 4)}),
    "gated_activation halves": lambda: _draw(gated_activation, {"x": (4,)}, activation="gelu"),
    "gated_activation tanh": lambda: _draw(gated_activation, {"x": (4,)}, activation="gelu_tanh"),
    "gated_activation sigmoid": lambda: _draw(gated_activation, {"x": (4,)}, activation="sigmoid"),
    "gated_activation relu": lambda: _draw(gated_activation, {"x": (4,)}, activation="relu"),
    "gated_activation square": lambda: _draw(gated_activation, {"x": (4,)}, activation="relu^2"),
    "soft_cap": lambda: _draw(soft_cap, {"x": (2, 4)}, cap=2.0),
}
