"""NaN and infinity: what a token cannot see, it does not get, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import mlstm
from xlstm_cuda.testing import assert_close_relative, cast, leaves, mlstm_inputs, tolerance_of

S, DIM_QK, DIM_V = 150, 24, 40  # several chunks, bands and vectors, the last ones not full
TOKENS = "qkvif"
values = pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
names = pytest.mark.parametrize("name", [*TOKENS, "dh"])


def gradients(inputs: dict[str, Any], dh: Tensor, backend: str, **options: Any) -> dict[str, Tensor]:
    """h and the gradients of q, k, v, i, f, each (B, H, S, ...)."""
    h = mlstm(**inputs, backend=backend, **options)
    wanted = {name: x for name, x in leaves(inputs).items() if name in TOKENS}
    return {"h": h, **dict(zip(wanted, torch.autograd.grad(h, list(wanted.values()), dh), strict=True))}


def check(
    inputs: dict[str, Any], name: str, token: int, value: float, backend: str, seen: dict[str, slice], **options: Any
) -> None:
    """With `value` in a token of one input, what `seen` says of h and the gradients is what it is without."""
    dh = torch.randn(1, 2, S, DIM_V, dtype=inputs["q"].dtype)
    expected = gradients(cast(inputs), dh.double(), "reference", **options)
    with torch.no_grad():
        {**inputs, "dh": dh}[name][:, :, token] = value
    actual = gradients(inputs, dh, backend, **options)
    tolerance = tolerance_of("mlstm", dh.dtype, backend)
    for output, tokens in seen.items():
        bound = {"h": tolerance.h, "f": tolerance.df}.get(output, tolerance.grad)
        clean, given = expected[output][:, :, tokens], actual[output][:, :, tokens]
        assert given.isfinite().all(), output
        if clean.numel():
            assert_close_relative(given, clean, bound, output)
    if name not in "if":  # a gate may be infinite
        assert not actual["q" if name == "dh" else "h"][:, :, token].isfinite().all()


@values
@names
@pytest.mark.parametrize("backend", ["cpu", "reference"])  # CUDA kernels share tiles of 64 tokens: functional.py
@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
def test_a_token_does_not_reach_what_cannot_see_it(
    input_gate: str, backend: str, name: str, value: float, fresh_seed: int
) -> None:
    """h of the tokens before; for dh, the gradients of the tokens behind."""
    token = int(torch.randint(1, S - 1, ()))
    inputs = mlstm_inputs(1, 2, S, DIM_QK, DIM_V, seed=fresh_seed, requires_grad=True)
    before, behind = slice(token), slice(token + 1, None)
    seen = {"h": before} if name in TOKENS else {"h": slice(None), **dict.fromkeys("qkvif", behind)}
    check(inputs, name, token, value, backend, seen, input_gate=input_gate)
