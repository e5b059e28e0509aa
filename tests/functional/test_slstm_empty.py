"""An element of sLSTM's state with n = 0 is empty: c, m and the forget gate do not count, whatever they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.against_reference import check
from xlstm_cuda import SLSTMState, slstm, slstm_step
from xlstm_cuda.testing import leaves, slstm_inputs

INF, LEAST = torch.inf, torch.finfo(torch.float32).min
FORGET = [INF, -INF, torch.nan, 3e38, LEAST]
INPUT = [0.3, -1e31, LEAST]
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
gates = pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])


def emptied(dtype: torch.dtype, device: str, S: int = 4) -> dict[str, Any]:
    """Inputs from a state whose elements are all empty, h included; the rest of it is anything."""
    inputs = slstm_inputs(2, S, 1, 5, dtype=dtype, device=device, requires_grad=True)
    state = slstm_inputs(2, S, 1, 5, dtype=dtype, device=device, state=True, seed=1)["initial_state"]
    c, m = state.c.masked_fill(state.c > 0, torch.nan), state.m.masked_fill(state.m > 0, torch.inf)
    empty = SLSTMState(torch.zeros_like(state.h), c, torch.zeros_like(state.n), m)
    return {**inputs, "initial_state": SLSTMState(*(x.requires_grad_() for x in empty))}


def first_gates(inputs: dict[str, Any], forget: float, write: float, token: int = 0) -> None:
    with torch.no_grad():
        x, bias = inputs["x"], inputs["b"]
        bias[:2] = 0
        x[:, token, 0], x[:, token, 1] = write, forget


@pytest.mark.parametrize("write", INPUT)
@pytest.mark.parametrize("forget", FORGET)
@gates
@dtypes
def test_the_first_token_alone_counts(
    backend: str, device: str, dtype: torch.dtype, forget_gate: str, forget: float, write: float
) -> None:
    inputs = emptied(dtype, device)
    if not torch.tensor(write).to(dtype).isfinite():
        pytest.skip("float16 has no such number")
    first_gates(inputs, forget, write)
    _, grads = check(slstm, inputs, backend, forget_gate=forget_gate)
    assert (grads["x"][:, 0, 1] == 0).all()
    for part in ("c0", "n0", "m0"):
        assert (grads[part] == 0).all(), part


@pytest.mark.parametrize("write", INPUT)
@pytest.mark.parametrize("forget", FORGET)
@gates
@dtypes
def test_step(backend: str, device: str, dtype: torch.dtype, forget_gate: str, forget: float, write: float) -> None:
    """h = sigmoid(o) tanh(z), c = tanh(z), n = 1, m = i: to the rounding of the gates' functions."""
    inputs = emptied(dtype, device)
    first_gates(inputs, forget, write)
    i, z, o = ((inputs["x"][:, 0, g] + inputs["b"][g]).detach().double() for g in (0, 2, 3))
    if not i.isfinite().all():
        pytest.skip("float16 has no such number")
    token = {**{name: x.detach() for name, x in leaves(inputs).items() if name in "xRb"}}
    token["x"] = token["x"][:, 0]
    h, state = slstm_step(**token, state=inputs["initial_state"], forget_gate=forget_gate, backend=backend)
    wide = torch.promote_types(dtype, torch.float32)
    eps = torch.finfo(wide).eps
    # kernels for float16 have an absolute error of a few 2^-23 (csrc/cuda/recurrent/cell_math.h)
    bound = {"rtol": 8 * eps, "atol": 4 * eps if dtype == torch.float16 else 0.0}
    torch.testing.assert_close(state.c, torch.tanh(z).to(wide), **bound)
    torch.testing.assert_close(state.n, torch.ones_like(state.n), **bound)
    assert torch.equal(state.m, i.to(wide))
    torch.testing.assert_close(
        h, (torch.sigmoid(o) * torch.tanh(z)).to(dtype), rtol=16 * torch.finfo(dtype).eps, atol=0
    )


@pytest.mark.parametrize("forget", FORGET)
@gates
def test_behind_a_reset(backend: str, device: str, forget_gate: str, forget: float) -> None:
    inputs = slstm_inputs(2, 6, 1, 5, dtype=torch.float64, device=device, state=True, requires_grad=True)
    first_gates(inputs, forget, LEAST, token=3)
    reset = (torch.arange(6, device=device) == 3).expand(2, 6)
    _, grads = check(slstm, inputs, backend, forget_gate=forget_gate, reset=reset)
    assert (grads["x"][:, 3, 1] == 0).all()


@pytest.mark.parametrize("forget", FORGET)
@gates
def test_without_input_it_stays_empty(backend: str, device: str, forget_gate: str, forget: float) -> None:
    inputs = emptied(torch.float64, device)
    first_gates(inputs, forget, -INF)
    outputs, _ = check(slstm, inputs, backend, forget_gate=forget_gate)
    assert (outputs["h"][:, 0] == 0).all()
