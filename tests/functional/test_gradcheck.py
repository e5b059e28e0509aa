"""Numerical derivatives (float64) of every function, with every optional argument, states in and out included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from xlstm_cuda.functional import lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import leaves, lstm_inputs, mlstm_inputs, slstm_inputs

VARIANTS: dict[str, dict[str, Any]] = {
    "exp": {},
    "sigmoid": {"input_gate": "sigmoid"},
    "sigmoid_plain": {"input_gate": "sigmoid", "normalize": False},
    "scale_eps": {"scale": 0.6, "eps": 0.3},
    "chunks": {"chunk_size": 4},
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
CELLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "slstm": (slstm, slstm_inputs, {}),
    "slstm_exp": (slstm, slstm_inputs, {"forget_gate": "exp"}),
    "lstm": (lstm, lstm_inputs, {}),
}
cells = pytest.mark.parametrize(("function", "make", "options"), CELLS.values(), ids=CELLS.keys())


def check(function: Callable[..., Any], inputs: dict[str, Any], **options: Any) -> None:
    """gradcheck through all outputs and all input tensors, those of the state included.

    On the CPU every entry of the Jacobian; else, where a call takes long, its product with random vectors.
    """
    state_name = next((name for name, x in inputs.items() if isinstance(x, tuple)), None)
    flat = leaves(inputs)
    names = [name for name in inputs if name != state_name]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        arguments: dict[str, Any] = dict(zip(names, tensors, strict=False))
        if state_name:
            arguments[state_name] = type(inputs[state_name])(*tensors[len(names) :])
        h, state = function(**arguments, **options)
        return h, *state

    tensors = [flat[name] for name in names] + [x for name, x in flat.items() if name not in names]
    assert gradcheck(call, tensors, fast_mode=options["backend"] != "cpu")


def draw(S: int, *, B: int = 1, **options: Any) -> dict[str, Any]:
    return mlstm_inputs(B, 1, S, 2, 3, dtype=torch.float64, state=True, requires_grad=True, **options)


def for_step(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"state" if name == "initial_state" else name: x for name, x in inputs.items()}


@variants
@pytest.mark.parametrize("S", [0, 1, 5, 17])
def test_mlstm(backend: str, device: str, S: int, variant: dict[str, Any]) -> None:
    check(mlstm, draw(S, device=device), return_state=True, backend=backend, **variant)


@variants
def test_mlstm_reset(backend: str, device: str, variant: dict[str, Any]) -> None:
    reset = torch.tensor([[False, False, True, False, True, True, False]], device=device)
    check(mlstm, draw(7, device=device), reset=reset, return_state=True, backend=backend, **variant)


@variants
def test_mlstm_cu_seqlens(backend: str, device: str, variant: dict[str, Any]) -> None:
    """One token, none, several; also with resets at the first of these and within. In chunks of 4 these are two."""
    bounds = [0, 1, 1, 6] if "chunk_size" in variant else [0, 1, 1, 4]
    cu_seqlens, S = torch.tensor(bounds, dtype=torch.int32, device=device), bounds[-1]
    reset = torch.zeros(1, S, dtype=torch.bool, device=device)
    for options in ({}, {"reset": reset.index_fill(1, torch.tensor([1, 3], device=device), True)}):
        inputs = draw(S, state_rows=3, device=device)
        check(mlstm, inputs, cu_seqlens=cu_seqlens, return_state=True, backend=backend, **options, **variant)


@variants
@pytest.mark.parametrize("S", [1, 5])
def test_mlstm_step(backend: str, device: str, S: int, variant: dict[str, Any]) -> None:
    inputs = draw(S, device=device)
    variant = {name: value for name, value in variant.items() if name != "chunk_size"}
    check(mlstm_step, for_step(inputs), backend=backend, **variant)


def test_mlstm_step_slots(backend: str, device: str) -> None:
    inputs = draw(2, B=2, state_rows=3, device=device)
    slots = torch.tensor([2, 0], dtype=torch.int32, device=device)
    check(mlstm_step, for_step(inputs), slots=slots, backend=backend)


@cells
@pytest.mark.parametrize("S", [0, 1, 6])
def test_recurrent(backend: str, device: str, S: int, function: Any, make: Any, options: Any) -> None:
    inputs = make(2, S, 1, 2, dtype=torch.float64, state=True, requires_grad=True, device=device)
    check(function, inputs, return_state=True, backend=backend, **options)


@cells
def test_recurrent_lengths_and_reset(backend: str, device: str, function: Any, make: Any, options: Any) -> None:
    inputs = make(3, 5, 1, 2, dtype=torch.float64, state=True, requires_grad=True, device=device)
    lengths = torch.tensor([3, 0, 5], device=device)
    reset = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool, device=device)
    check(function, inputs, lengths=lengths, return_state=True, backend=backend, **options)
    check(function, inputs, reset=reset, return_state=True, backend=backend, **options)
    check(function, inputs, lengths=lengths, reset=reset, return_state=True, backend=backend, **options)


@cells
def test_recurrent_step(backend: str, device: str, function: Any, make: Any, options: Any) -> None:
    inputs = make(2, 1, 2, 2, dtype=torch.float64, state=True, requires_grad=True, device=device)
    inputs["x"] = inputs["x"].detach().squeeze(1).requires_grad_()
    step = slstm_step if function is slstm else lstm_step
    check(step, for_step(inputs), backend=backend, **options)
