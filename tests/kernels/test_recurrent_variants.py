"""slstm and lstm over sequences by each way to run them on CUDA (csrc/cuda/recurrent/plan.h), end to end."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from tests.functional.test_recurrent import CELLS, Cell
from tests.support import variants
from tests.support.against_reference import check
from xlstm_cuda import LSTMState, _backend, lstm
from xlstm_cuda.testing import Tolerance, lstm_inputs, slstm_inputs

# variant: (D, dtype) where it can run; the sizes take one block, a wide one, and teams of 2 to 17 blocks
SIZES: dict[str, list[tuple[int, torch.dtype]]] = {
    "block": [(33, torch.float64), (64, torch.float32), (17, torch.bfloat16), (100, torch.bfloat16)],
    "cluster": [(72, torch.float32), (130, torch.bfloat16), (136, torch.float32), (264, torch.float16)],
    "grid": [(72, torch.float32), (130, torch.bfloat16), (136, torch.float32), (264, torch.bfloat16)],
    "launch": [(33, torch.float64), (72, torch.float32), (130, torch.bfloat16), (20, torch.float16)],
}
CASES = [(variant, *size) for variant, sizes in SIZES.items() for size in sizes]


def only(backend: str, variant: str) -> AbstractContextManager[None]:
    """Calls with this backend use this variant, or fail."""
    return variants.only(variant, _backend._BACKENDS[backend][1])


@pytest.fixture
def cuda_backend(backend: str) -> str:
    if backend == "cpu":
        pytest.skip("has no variants")
    return backend


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("reversed_heads", [0, 1])
@pytest.mark.parametrize(("variant", "D", "dtype"), CASES, ids=str)
def test_outputs_states_and_gradients(
    cuda_backend: str, device: str, variant: str, D: int, dtype: torch.dtype, reversed_heads: int, cell: Cell
) -> None:
    inputs = cell.draw(B=3, S=5, H=2 if D <= 100 else 1, D=D, dtype=dtype, device=device)
    lengths = torch.tensor([5, 3, 0], device=device)
    reset = torch.tensor([[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool, device=device)
    with only(cuda_backend, variant):
        cell.check(inputs, cuda_backend, lengths=lengths, reset=reset, reversed_heads=reversed_heads)


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize(("variant", "D"), [("block", 40), ("cluster", 72), ("grid", 136)])
def test_a_few_rows_in_float32(cuda_backend: str, device: str, variant: str, D: int, B: int) -> None:
    """Of one tile, without tensor cores: also no more than float32's own rounding."""
    inputs = CELLS["slstm"].draw(B=B, S=4, H=1, D=D, dtype=torch.float32, device=device)
    with only(cuda_backend, f"{variant} teams=1"):
        CELLS["slstm"].check(inputs, cuda_backend, tolerance=Tolerance(1e-6, 3e-6, 3e-6))


def gates(B: int, D: int, dtype: torch.dtype, device: str, **values: torch.Tensor | float) -> torch.Tensor:
    """x of one token with these pre-activations; 30 is a gate that is open, -30 one that is closed."""
    x = torch.zeros(B, 1, 4, 1, D, dtype=dtype, device=device)
    for name, value in values.items():
        x[:, 0, "ifgo".index(name), 0] = torch.as_tensor(value, dtype=dtype)
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["block", "launch"])
def test_the_slope_of_a_saturated_tanh(cuda_backend: str, device: str, variant: str, dtype: torch.dtype) -> None:
    """Where tanh is 1 to all digits of the type: 1 - tanh^2 of a rounded tanh would be rounding alone."""
    c = torch.linspace(-8, 8, 65, device=device).view(1, 1, 65).requires_grad_()
    zeros = torch.zeros(4, 1, 65, 65, dtype=dtype, device=device)
    with only(cuda_backend, variant):
        x = gates(1, 65, dtype, device, i=-30.0, f=30.0, o=30.0)
        h = lstm(x, zeros, initial_state=LSTMState(torch.zeros_like(c), c), backend=cuda_backend)
        (slope,) = torch.autograd.grad(h.sum(), c)
    torch.testing.assert_close(slope.double(), c.detach().double().cosh().pow(-2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", ["block", "launch"])
def test_tanh_of_float16_near_zero(cuda_backend: str, device: str, variant: str) -> None:
    """Two of them and one rounding: to three quarters of the last digit, also of numbers of a few digits."""
    g = torch.logspace(-24, -1, 240, base=2, dtype=torch.float64).half().view(4, 60)
    zeros = torch.zeros(4, 1, 60, 60, dtype=torch.float16, device=device)
    with only(cuda_backend, variant):
        h = lstm(gates(4, 60, torch.float16, device, i=30.0, f=30.0, g=g, o=30.0), zeros, backend=cuda_backend)
    expected = g.double().tanh().tanh()
    digit = torch.exp2(expected.log2().floor().clamp(min=-14) - 10)
    assert ((h.view(4, 60).cpu().double() - expected) / digit).abs().max() < 0.75


@pytest.mark.parametrize("variant", SIZES)
def test_same_inputs_same_bits(cuda_backend: str, device: str, variant: str) -> None:
    D, dtype = SIZES[variant][1]

    def results() -> list[Any]:
        inputs = slstm_inputs(9, 7, 1, D, dtype=dtype, state=True, requires_grad=True, device=device)
        state = inputs.pop("initial_state")
        h, final = CELLS["slstm"].function(**inputs, initial_state=state, return_state=True, backend=cuda_backend)
        grads = torch.autograd.grad([h, *final], [*inputs.values(), *state], [torch.ones_like(t) for t in (h, *final)])
        return [h, *final, *grads]

    with only(cuda_backend, variant):
        assert all(torch.equal(a, b) for a, b in zip(results(), results(), strict=True))


def test_a_second_backward_is_the_first(cuda_backend: str, device: str) -> None:
    inputs = lstm_inputs(2, 6, 1, 24, requires_grad=True, device=device)
    h = lstm(**inputs, backend=cuda_backend)
    first, second = (torch.autograd.grad(h.square().sum(), list(inputs.values()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_variant_that_does_not_fit_is_an_error(cuda_backend: str, device: str) -> None:
    inputs = lstm_inputs(1, 2, 1, 70, dtype=torch.float64, device=device)
    with only(cuda_backend, "block"), pytest.raises(RuntimeError, match="recurrent_fwd"):
        lstm(**inputs, backend=cuda_backend)
    with pytest.raises(RuntimeError, match="block, cluster, grid, launch"), only(cuda_backend, "blocks"):
        pass


@pytest.mark.parametrize(("S", "requires_grad"), [(512, True), (4096, False)])
def test_a_long_memory_stays_accurate(cuda_backend: str, device: str, S: int, requires_grad: bool) -> None:
    """Forget gates near 1 in bfloat16: what a state kept in 16 bits loses."""
    options = {"forget_bias": 6.0, "requires_grad": requires_grad}
    inputs = slstm_inputs(1, S, 1, 16, dtype=torch.bfloat16, device=device, **options)
    check(CELLS["slstm"].function, inputs, cuda_backend, tolerance=Tolerance(5e-3, 5e-3, 5e-3))
