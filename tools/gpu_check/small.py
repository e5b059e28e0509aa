"""Every CUDA op once or more on small shapes, for compute-sanitizer: `python -m tools.gpu_check.small`.

Ends with a line of JSON: the ops that ran, and those without a CUDA kernel. Inputs are drawn on the CPU and copied,
results are compared there: of torch's own kernels as few as possible run under the tool.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.cuda import KERNELS, has_cuda_kernel
from xlstm_cuda import functional
from xlstm_cuda._ops import ACTIVATIONS
from xlstm_cuda.testing import (
    assert_close_relative,
    cancellation,
    cast,
    gradients,
    lstm_inputs,
    mlstm_inputs,
    slstm_inputs,
    tolerance_of,
)

Inputs = dict[str, Any]
Run = tuple[str, Callable[..., Any], Inputs, Inputs]  # op, its function, inputs on the CPU, options

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# head dimensions of a warp, of whole vectors, and of neither
MLSTM_SIZES = ((1, 1, 32, 32), (2, 3, 16, 48), (3, 2, 33, 65))  # B, H, Dqk, Dv
WIDE_SIZES = ((1, 2, 150, 72, 136), (1, 1, 70, 200, 136))  # B, H, S, Dqk, Dv: two warpgroups of a walk, and slices
CELL_SIZES = ((1, 1, 32), (3, 2, 16), (5, 1, 33))  # B, H, D
CONV_SIZES = ((2, 70, 24, 4), (1, 9, 33, 3), (2, 37, 16, 6))  # B, S, F, K
HEADWISE_SIZES = ((2, 37, 40, 4), (1, 70, 3, 4), (2, 9, 5, 3))  # B, S, N, I
GATED_SIZES = ((2, 37, 704), (3, 9, 8), (1, 5, 13))  # B, S, F
NORM_SIZES = ((2, 37, 3, 24), (1, 9, 2, 33), (1, 40, 1, 600))  # B, S, H, D


def runs() -> Iterator[Run]:
    for dtype, sizes, grad in itertools.product(DTYPES, MLSTM_SIZES, (False, True)):
        B, H, Dqk, Dv = sizes
        sequence = mlstm_inputs(B, H, 19, Dqk, Dv, dtype=dtype, state=True, requires_grad=grad)
        yield "mlstm", functional.mlstm, sequence, {"return_state": True}
    for wide, grad in itertools.product(WIDE_SIZES, (False, True)):
        sequence = mlstm_inputs(*wide, dtype=torch.bfloat16, state=True, requires_grad=grad)
        yield "mlstm", functional.mlstm, sequence, {"return_state": True}
    for dtype, sizes, S in itertools.product(DTYPES, MLSTM_SIZES, (None, 3)):
        yield "mlstm_step", functional.mlstm_step, _mlstm_step(*sizes, S, dtype), {}
        yield "mlstm_step", functional.mlstm_step, _mlstm_step(*sizes, S, dtype), {"inplace": True}
    for sizes in MLSTM_SIZES:
        inputs = _mlstm_step(*sizes, None, torch.bfloat16)
        halved = inputs["state"]._replace(C=inputs["state"].C.bfloat16())  # kept in 16 bits
        yield "mlstm_step", functional.mlstm_step, {**inputs, "state": halved}, {"inplace": True}
    slots = torch.tensor([4, 1], dtype=torch.int32)
    rows = _mlstm_step(2, 2, 24, 40, None, torch.float32, state_rows=6)
    yield "mlstm_step", functional.mlstm_step, {**rows, "slots": slots}, {"inplace": True}
    for op, make in (("slstm", slstm_inputs), ("lstm", lstm_inputs)):
        for dtype, (B, H, D), grad in itertools.product(DTYPES, CELL_SIZES, (False, True)):
            inputs = make(B, 9, H, D, dtype=dtype, state=True, requires_grad=grad)
            yield op, getattr(functional, op), inputs, {"return_state": True}
        for dtype, (B, H, D) in itertools.product(DTYPES, CELL_SIZES):
            inputs = make(B, 1, H, D, dtype=dtype, state=True)
            token = {"x": inputs["x"].squeeze(1), "R": inputs["R"], "b": inputs["b"]}
            yield f"{op}_step", getattr(functional, f"{op}_step"), {**token, "state": inputs["initial_state"]}, {}

    for dtype, sizes in itertools.product(DTYPES, CONV_SIZES):
        conv = {"activation": "silu"}
        yield "causal_conv1d", functional.causal_conv1d, _conv(*sizes, dtype), {**conv, "return_state": True}
        yield "causal_conv1d_step", functional.causal_conv1d_step, _conv_step(*sizes, dtype), {**conv, "inplace": True}
    for dtype, sizes in itertools.product(DTYPES, NORM_SIZES):
        yield "multihead_norm_gate", functional.multihead_norm_gate, _norm(*sizes, dtype), {}
    for dtype, sizes in itertools.product(DTYPES, HEADWISE_SIZES):
        yield "headwise_linear", headwise_linear, _headwise(*sizes, dtype), {}
    for dtype, sizes, activation in itertools.product(DTYPES, GATED_SIZES, ACTIVATIONS):
        gated = {"activation": activation}
        yield "gated_activation", functional.gated_activation, _normal(dtype, x=sizes, gate=sizes), gated
    for dtype, (B, S, F) in itertools.product(DTYPES, GATED_SIZES):
        yield "gated_activation", functional.gated_activation, _normal(dtype, x=(B, S, 2 * F)), {}
        yield "soft_cap", functional.soft_cap, _normal(dtype, x=(B, S, F)), {"cap": 2.0}


def runs_by_variant() -> Iterator[tuple[str, Run]]:
    """The ways of the recurrent scans (csrc/cuda/recurrent/plan.h) that the sizes above do not come to."""
    clusters = torch.cuda.get_device_capability() >= (9, 0)
    for variant in (*(("cluster",) if clusters else ()), "grid", "launch"):
        for op, make in (("slstm", slstm_inputs), ("lstm", lstm_inputs)):
            inputs = make(3, 5, 1, 136, dtype=torch.bfloat16, state=True, requires_grad=True)
            yield variant, (op, getattr(functional, op), inputs, {"return_state": True})


def _mlstm_step(
    B: int, H: int, Dqk: int, Dv: int, S: int | None, dtype: torch.dtype, state_rows: int | None = None
) -> Inputs:
    inputs = mlstm_inputs(B, H, S or 1, Dqk, Dv, dtype=dtype, state=True, state_rows=state_rows)
    state = inputs.pop("initial_state")
    return {name: x if S else x.squeeze(2) for name, x in inputs.items()} | {"state": state}


def _conv(B: int, S: int, F: int, K: int, dtype: torch.dtype) -> Inputs:
    return _normal(dtype, x=(B, S, F), weight=(F, K), bias=(F,), initial_state=(B, K - 1, F))


def _conv_step(B: int, S: int, F: int, K: int, dtype: torch.dtype) -> Inputs:
    inputs = {name: x.detach() for name, x in _conv(B, 5, F, K, dtype).items()}
    state = inputs.pop("initial_state")
    return {**inputs, "state": state}


def _norm(B: int, S: int, H: int, D: int, dtype: torch.dtype) -> Inputs:
    row, weights = (B, S, H * D), (H * D,)
    return _normal(dtype, h=(B, S, H, D), weight=weights, bias=weights, gate=row, skip=row, skip_weight=weights)


def _headwise(B: int, S: int, N: int, D: int, dtype: torch.dtype) -> Inputs:
    weight = (N, D, D)
    return _normal(dtype, x=(B, S, N * D), weight=weight, second=weight, bias=(N * D,))


def headwise_linear(x: Tensor, weight: Tensor, second: Tensor, bias: Tensor, backend: str | None = None) -> Any:
    """Two maps, one without a bias."""
    return functional.headwise_linear(x, (weight, second), (bias, None), backend=backend)


def _normal(dtype: torch.dtype, **shapes: tuple[int, ...]) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator).to(dtype).requires_grad_() for n, s in shapes.items()}


def main(device: str = "cuda") -> dict[str, list[str]]:
    """Raises AssertionError for a wrong result, and for one that came from another place than the CUDA kernels."""
    missing = [op for op, kernels in KERNELS.items() if not all(map(has_cuda_kernel, kernels))]
    done: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="xlstm_cuda")  # that the reference computes instead
        by_variant = runs_by_variant() if device == "cuda" and "slstm" not in missing else ()
        for variant, (op, function, inputs, options) in itertools.chain((("", run) for run in runs()), by_variant):
            if op in missing:
                continue
            with _only(variant):
                check(function, inputs, options, device)
            done.append(op)
    return {"ran": list(dict.fromkeys(done)), "without a CUDA kernel": missing}


@contextmanager
def _only(variant: str) -> Iterator[None]:
    """Recurrent scans take this way; "": the best one."""
    if variant:
        torch.ops.xlstm_cuda.recurrent_variant(variant)
    try:
        yield
    finally:
        if variant:
            torch.ops.xlstm_cuda.recurrent_variant("")


def check(function: Callable[..., Any], inputs: Inputs, options: Inputs, device: str) -> None:
    """Outputs, state and gradients on the device against the reference in float64."""
    # In 16 bits the gradient of the sLSTM's m turns where its two branches nearly tie; that of h does not.
    of_h = function is functional.slstm and inputs["x"].dtype.itemsize == 2
    here = {name: _copied(x, device) for name, x in inputs.items()}
    actual = _results(function(**here, **options), here, of_h)
    wide = cast({name: x for name, x in inputs.items() if name != "slots"})
    slots = {name: x for name, x in inputs.items() if name == "slots"}
    expected = _results(function(**wide, **slots, **options, backend="reference"), wide, of_h)
    dtype = actual["output"].dtype
    for name, x in actual.items():
        allowed = tolerance_of(function.__name__, dtype, device)
        tolerance = allowed.df if name == "df" else allowed.grad
        if name.startswith("d"):
            grads = {key[1:]: value for key, value in expected.items() if key.startswith("d")}
            tolerance *= cancellation(name[1:], dtype, grads)
        assert_close_relative(x.cpu(), expected[name], tolerance, f"{function.__name__}: {name}")


def _results(returned: Any, inputs: Inputs, of_h: bool) -> dict[str, Tensor]:
    """returned: h, or h and a state. of_h: the gradients are those of h alone."""
    h, state = returned if isinstance(returned, tuple) else (returned, None)
    parts = {} if state is None else {"state": state} if isinstance(state, Tensor) else state._asdict()
    results = {"output": h, **parts}
    if h.requires_grad:
        read = [h] if of_h else [h, *parts.values()]
        results |= {f"d{name}": x for name, x in gradients(read, inputs).items()}
    return {name: x.detach() for name, x in results.items()}


def _copied(x: Any, device: str) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to(device, copy=True).requires_grad_(x.requires_grad)
    return type(x)(*(_copied(part, device) for part in x))


if __name__ == "__main__":
    torch.set_num_threads(1)  # of the comparison on the CPU: the shapes are small
    result = main()
    torch.cuda.synchronize()
    print(json.dumps(result))
