"""slstm and lstm over sequences by each way to run them on CUDA (csrc/cuda/recurrent/plan.h), end to end."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from tests.functional.test_recurrent import CELLS, Cell
from tests.support import variants
from tests.support.against_reference import check
from xlstm_cuda import _backend, lstm
from xlstm_cuda.testing import Tolerance, lstm_inputs, slstm_inputs

# variant: (D, dtype) where it can run; the sizes take one block, a wide one, and teams of 2 to 17 blocks
SIZES: dict[str, list[tuple[int, torch.dtype]]] = {
    "block": [(33, torch.float64), (64, torch.float32), (17, torch.bfloat16), (100, torch.bfloat16)],
    "cluster": [(72, torch.float32), (130, torch.bfloat16), (136, torch.float32), (264, torch.float16)],
    "grid": [(72, torch.float32), (130, torch.bfloat16), (136, torch.float32), (264, torch.float32)],
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
    """Without tensor cores: also no more than float32's own rounding."""
    inputs = CELLS["slstm"].draw(B=B, S=4, H=1, D=D, dtype=torch.float32, device=device)
    with only(cuda_backend, variant):
        CELLS["slstm"].check(inputs, cuda_backend, tolerance=Tolerance(1e-6, 3e-6, 3e-6))


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
