"""Inf and NaN reach no token of mlstm that does not depend on them: none before them, none of another document.

Wherever one is put, h and the gradients of every other document, h of the tokens before it, and for one in dh the
gradients of the tokens after it, stay what they are without it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import mlstm
from xlstm_cuda.testing import assert_close_relative, leaves, mlstm_inputs, tolerance_of

S, DQK, DV = 150, 17, 40  # three tiles, of the CUDA kernels too
NAMES = ("q", "k", "v", "i", "f", "dh")
VALUES = (torch.inf, -torch.inf, torch.nan)
PACKINGS = ("none", "reset", "cu_seqlens")


def documents(count: int) -> list[int]:
    """Random bounds of that many documents of 1 to S tokens each."""
    return [0, *sorted(random.sample(range(1, S), count - 1)), S]


def packed(bounds: list[int], packing: str, device: str) -> dict[str, Any]:
    if packing == "none":
        return {}
    if packing == "cu_seqlens":
        return {"cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device)}
    reset = torch.zeros(1, S, dtype=torch.bool, device=device)
    reset[:, bounds[1:-1]] = True
    return {"reset": reset}


def results(inputs: dict[str, Any], dh: Tensor, backend: str, **options: Any) -> dict[str, Tensor]:
    """h and the gradients of q, k, v, i, f, all (1, 1, S, ...)."""
    h = mlstm(**inputs, backend=backend, **options)
    flat = leaves(inputs)
    grads = torch.autograd.grad(h, [flat[name] for name in "qkvif"], dh)
    return {"h": h, **{f"d{name}": grad for name, grad in zip("qkvif", grads, strict=True)}}


def clean_tokens(result: str, name: str, at: int, bounds: list[int]) -> list[int]:
    """Tokens where `result` does not depend on token `at` of `name`."""
    begin = max(bound for bound in bounds if bound <= at)
    end = min(bound for bound in bounds if bound > at)
    outside = [*range(begin), *range(end, S)]
    if result == "h":
        return list(range(S)) if name == "dh" else [*outside, *range(begin, at)]
    return [*outside, *range(at + 1, end)] if name == "dh" else outside


def check(backend: str, packing: str, dtype: torch.dtype, seed: int, name: str, device: str = "cpu") -> None:
    random.seed(seed)
    bounds = [0, S] if packing == "none" else documents(random.randint(2, 6))
    options = {"eps": 1.0, **packed(bounds, packing, device)}  # eps: no h is ill-conditioned
    tolerance = tolerance_of("mlstm", dtype, backend)
    for value in VALUES:
        inputs = mlstm_inputs(1, 1, S, DQK, DV, dtype=dtype, seed=seed % 2**31, device=device, requires_grad=True)
        dh = torch.randn_like(inputs["v"])
        expected = results(inputs, dh, backend, **options)
        at = random.randrange(S)
        place = (0, 0, at) if name in "if" else (0, 0, at, random.randrange(DQK))
        with torch.no_grad():
            (dh if name == "dh" else inputs[name])[place] = value
        actual = results(inputs, dh, backend, **options)
        for result, x in expected.items():
            clean = clean_tokens(result, name, at, bounds)
            bound = tolerance.h if result == "h" else tolerance.df if result == "df" else tolerance.grad
            label = f"{result} with {value} at token {at} of {name}, bounds {bounds}"
            # relative to all of x: the few tokens of a short document may be small beside what they are summed of
            compared = x.detach().clone()
            compared[:, :, clean] = actual[result][:, :, clean]
            assert_close_relative(compared, x, bound, label)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_tokens(
    backend: str, device: str, packing: str, dtype: torch.dtype, name: str, fresh_seed: int
) -> None:
    check(backend, packing, dtype, fresh_seed, name, device)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_tokens_of_the_reference(packing: str, name: str, fresh_seed: int) -> None:
    check("reference", packing, torch.float64, fresh_seed, name)


def test_the_state_behind_a_reset(backend: str, device: str) -> None:
    """What a reset cuts off is not in the final state, nor in what the tokens after it get from its gradient."""
    inputs = mlstm_inputs(1, 1, S, DQK, DV, dtype=torch.float64, device=device, state=True, requires_grad=True)
    with torch.no_grad():
        inputs["v"][:, :, 70] = torch.inf
        inputs["initial_state"].C.fill_(torch.nan)
    reset = torch.arange(S, device=device)[None] == 71
    _, state = mlstm(**inputs, reset=reset, return_state=True, backend=backend)
    for name, x in state._asdict().items():
        assert x.isfinite().all(), name
    grads = torch.autograd.grad([*state], [inputs[name] for name in "qkvif"], [torch.ones_like(x) for x in state])
    for name, x in zip("qkvif", grads, strict=True):
        assert x[:, :, 71:].isfinite().all(), f"d{name}"


def test_nan_stays_nan(backend: str, device: str) -> None:
    """Also at a token that has an infinity of its own."""
    inputs = mlstm_inputs(1, 1, S, DQK, DV, dtype=torch.float64, device=device)
    inputs["v"][:, :, 3, 0], inputs["v"][:, :, 7, 0] = torch.nan, torch.inf
    h = mlstm(**inputs, backend=backend)
    assert h[:, :, 3:, 0].isnan().all() and h[..., 1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_a_chunk_forgets_wholly_is_gone_forward_and_backward(dtype: torch.dtype) -> None:
    """On a CPU a state times exactly 0 is not read: exp(-20 * 64) is 0 in every dtype."""
    inputs = mlstm_inputs(1, 1, 256, DQK, DV, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        inputs["f"].fill_(-20)
        inputs["v"][:, :, 0] = torch.nan
    result = results(inputs, torch.randn_like(inputs["v"]), "cpu", chunk_size=64)
    for name in ("h", "dq"):
        assert result[name][:, :, 128:].isfinite().all(), name
