"""How near to float64 a model in a lower precision has to be: as near as one whose parameters were rounded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xlstm_cuda.testing import relative_error

Results = dict[str, Tensor]
FACTOR = 3  # the activations and their gradients are rounded too, each about as often as a parameter


def assert_near_float64(
    actual: Results, model: Any, results: Callable[[Any], Results], dtype: torch.dtype, terms: int = 1
) -> None:
    """actual: what the model gives when it computes in `dtype`, by name; results: the same of a model in float64.

    Bounded by what happens to the results in float64 where every parameter moves by up to half a unit in the last place
    of `dtype`: the largest of a few draws. terms: of the longest sum in which every addition is rounded to `dtype`
    (one where sums are float32); such errors grow as the square root of it.
    """
    wide = copy.deepcopy(model).double()
    exact = results(wide)
    spread = max(distance(results(moved(wide, dtype, seed)), exact) for seed in range(4))
    allowed = FACTOR * terms**0.5 * spread
    error = distance(actual, exact)
    assert error <= allowed, f"{error:.1e} from float64, {allowed:.1e} allowed"


def distance(actual: Results, exact: Results) -> float:
    """Root mean square of the relative errors: small tensors count as much as large ones."""
    assert actual.keys() == exact.keys()
    errors = [relative_error(actual[name], x) for name, x in exact.items()]
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def moved(model: Any, dtype: torch.dtype, seed: int) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            generator = torch.Generator(parameter.device).manual_seed(seed)
            part = torch.rand(parameter.shape, generator=generator, device=parameter.device) - 0.5
            parameter *= 1 + torch.finfo(dtype).eps * part
    return other
