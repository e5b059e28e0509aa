"""The kernels write every element they return and read no memory that they did not write.

Under deterministic algorithms torch fills new memory with NaN, and a call on NaN inputs leaves the kernels' own buffers
full of NaN. Neither may change a bit of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.functional import test_conv, test_gated, test_headwise, test_norm
from tests.support.against_reference import gradients, run
from xlstm_cuda import lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import leaves, lstm_inputs, mlstm_inputs, slstm_inputs

S = 37
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "slstm": (slstm, slstm_step),
    "lstm": (lstm, lstm_step),
}
MAKE = {"slstm": slstm_inputs, "lstm": lstm_inputs}
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
head_dims = pytest.mark.parametrize("D", [3, 16, 33])


@pytest.fixture(autouse=True)
def poisoned(device: str) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=device).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def with_nan(inputs: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        for x in leaves(inputs).values():
            x.fill_(torch.nan)
    return inputs


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, x in expected.items():
        assert torch.isfinite(x).all(), name
        assert torch.equal(actual[name], x), name


def sequence_results(function: Callable[..., Any], inputs: dict[str, Any], batch: int, backend: str) -> dict[str, Any]:
    device = next(iter(inputs.values())).device
    reset = (torch.arange(S, device=device) % 11 == 5).expand(batch, S)
    outputs = run(function, inputs, backend=backend, reset=reset)
    return {**outputs, **{f"d{name}": grad for name, grad in gradients(outputs, inputs).items()}}


@dtypes
@head_dims
def test_mlstm(backend: str, device: str, dtype: torch.dtype, D: int) -> None:
    options = {"dtype": dtype, "device": device, "requires_grad": True}
    inputs = mlstm_inputs(2, 2, S, D, D + 3, state=True, **options)
    expected = sequence_results(mlstm, inputs, 2, backend)
    dirty = with_nan(mlstm_inputs(2, 2, S, 2 * D, 2 * D, **options))
    assert sequence_results(mlstm, dirty, 2, backend)["h"].isnan().all()
    assert_same(sequence_results(mlstm, inputs, 2, backend), expected)


@dtypes
@head_dims
@pytest.mark.parametrize("cell", FUNCTIONS)
def test_recurrent(backend: str, device: str, cell: str, dtype: torch.dtype, D: int) -> None:
    options = {"dtype": dtype, "device": device, "requires_grad": True}
    inputs = MAKE[cell](3, S, 2, D, state=True, **options)
    expected = sequence_results(FUNCTIONS[cell][0], inputs, 3, backend)
    dirty = with_nan(MAKE[cell](3, S, 2, 2 * D, **options))
    assert sequence_results(FUNCTIONS[cell][0], dirty, 3, backend)["h"].isnan().all()
    assert_same(sequence_results(FUNCTIONS[cell][0], inputs, 3, backend), expected)


@dtypes
@head_dims
@pytest.mark.parametrize("tokens", [1, 5])
def test_mlstm_step(backend: str, device: str, dtype: torch.dtype, D: int, tokens: int) -> None:
    inputs = mlstm_inputs(2, 2, tokens, D, D + 3, state=True, dtype=dtype, device=device)
    inputs["state"] = inputs.pop("initial_state")
    expected = run(mlstm_step, inputs, backend=backend)
    dirty = with_nan(mlstm_inputs(4, 4, tokens, D, D + 3, dtype=dtype, device=device))
    run(mlstm_step, {**dirty, "state": None}, backend=backend)
    assert_same(run(mlstm_step, inputs, backend=backend), expected)


@dtypes
@head_dims
@pytest.mark.parametrize("cell", FUNCTIONS)
def test_recurrent_step(backend: str, device: str, cell: str, dtype: torch.dtype, D: int) -> None:
    inputs = MAKE[cell](3, 1, 2, D, state=True, dtype=dtype, device=device)
    inputs["state"] = inputs.pop("initial_state")
    inputs["x"] = inputs["x"][:, 0]
    expected = run(FUNCTIONS[cell][1], inputs, backend=backend)
    assert_same(run(FUNCTIONS[cell][1], inputs, backend=backend), expected)


@dtypes
@pytest.mark.parametrize("K", [2, 4, 6])
def test_causal_conv1d(backend: str, device: str, dtype: torch.dtype, K: int) -> None:
    options = {"activation": "silu", "reset": (torch.arange(S, device=device) % 11 == 5).expand(2, S)}
    inputs = test_conv.draw(2, S, 5, K, dtype, device)
    expected = test_conv.run(inputs, backend=backend, **options)
    dirty = with_nan(test_conv.draw(2, S, 10, K, dtype, device))
    assert test_conv.run(dirty, backend=backend, **options)["y"].isnan().all()
    assert_same(test_conv.run(inputs, backend=backend, **options), expected)


@dtypes
@pytest.mark.parametrize("D", [5, 64, 2100])
def test_multihead_norm_gate(backend: str, device: str, dtype: torch.dtype, D: int) -> None:
    inputs = test_norm.draw(2, 40 if D < 100 else 3, 2, D, dtype, device)
    expected = test_norm.run(inputs, backend=backend)
    dirty = with_nan(test_norm.draw(2, 40, 2, D + 3, dtype, device))
    assert test_norm.run(dirty, backend=backend)["y"].isnan().all()
    assert_same(test_norm.run(inputs, backend=backend), expected)


@dtypes
@pytest.mark.parametrize("D", [3, 4, 16])
def test_headwise_linear(backend: str, device: str, dtype: torch.dtype, D: int) -> None:
    inputs = test_headwise.draw((2, 67), 5, D, (D, 4), dtype, device)
    expected = test_headwise.run(inputs, backend=backend)
    dirty = with_nan(test_headwise.draw((2, 67), 7, D, (D, 4), dtype, device))
    assert test_headwise.run(dirty, backend=backend)["y1"].isnan().all()
    assert_same(test_headwise.run(inputs, backend=backend), expected)


@dtypes
def test_gated_activation(backend: str, device: str, dtype: torch.dtype) -> None:
    inputs = test_gated.draw((2, 3), 37, True, dtype, device)
    for run_one in (test_gated.run, test_gated.run_cap):
        expected = run_one(inputs, backend=backend)
        dirty = with_nan(test_gated.draw((2, 5), 40, True, dtype, device))
        assert run_one(dirty, backend=backend)["y"].isnan().all()
        assert_same(run_one(inputs, backend=backend), expected)
