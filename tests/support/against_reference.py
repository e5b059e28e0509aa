"""Compare a public function with the float64 reference on the same inputs: outputs, final state and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xlstm_cuda.testing import Tolerance, assert_close_relative, cancellation, cast, leaves, tolerance_of

Outputs = dict[str, Tensor]


def check(
    function: Callable[..., Any],
    inputs: dict[str, Any],
    backend: str,
    *,
    outputs: Sequence[str] | None = None,
    tolerance: Tolerance | None = None,
    **options: Any,
) -> tuple[Outputs, Outputs]:
    """function(**inputs, **options) on `backend` against the reference in float64; returns its outputs and gradients.

    outputs: the names ("h", "state.C") that the loss reads, None for all. Tensors among the options go to both sides.
    """
    dtype = next(iter(inputs.values())).dtype
    # with gradients mlstm_step is mlstm from that state
    step_with_grad = function.__name__ == "mlstm_step" and any(x.requires_grad for x in leaves(inputs).values())
    tolerance = tolerance or tolerance_of("mlstm" if step_with_grad else function.__name__, dtype, backend)
    wide = cast(inputs)
    actual = run(function, inputs, backend=backend, **options)
    expected = run(function, wide, backend="reference", **options)
    for name, x in expected.items():
        assert_close_relative(actual[name], x, tolerance.h, name)
    grads, wide_grads = gradients(actual, inputs, outputs), gradients(expected, wide, outputs)
    for name, grad in wide_grads.items():
        assert grads[name].dtype == leaves(inputs)[name].dtype, name
        allowed = tolerance.df if name == "f" else tolerance.grad
        assert_close_relative(grads[name], grad, allowed * cancellation(name, dtype, wide_grads), f"d{name}")
    return actual, grads


def run(function: Callable[..., Any], inputs: dict[str, Any], **options: Any) -> Outputs:
    """Outputs by name: h, and state.C and so on. Steps return their state always, sequences are asked for it."""
    if not function.__name__.endswith("_step"):
        options["return_state"] = True
    h, state = function(**inputs, **options)
    return {"h": h, **{f"state.{name}": x for name, x in state._asdict().items()}}


def gradients(outputs: Outputs, inputs: dict[str, Any], names: Sequence[str] | None = None) -> Outputs:
    """d loss / d input by name; loss: a seeded linear function of the outputs, zero where there is no path.

    The coefficients are multiples of 1/4, which every dtype holds exactly.
    """
    generator = torch.Generator().manual_seed(1)
    pairs, flat = [], {name: x for name, x in leaves(inputs).items() if x.requires_grad}
    if not flat:
        return {}
    for name, x in outputs.items():
        weight = torch.randint(-8, 9, x.shape, generator=generator) / 4
        if (names is None or name in names) and x.requires_grad:
            pairs.append((x, weight.to(x.device, x.dtype)))
    grads = torch.autograd.grad(
        [x for x, _ in pairs], list(flat.values()), [w for _, w in pairs], allow_unused=True, materialize_grads=True
    )
    return dict(zip(flat, grads, strict=True))
