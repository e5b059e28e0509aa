"""Inputs and tolerances shared by tests/ and bench/.

The generators return the keyword arguments of the public functions: `slstm(**slstm_inputs(...))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._states import LSTMState, MLSTMState, SLSTMState

__all__ = [
    "CUDA_TOLERANCE",
    "TOLERANCE",
    "Tolerance",
    "assert_close_relative",
    "cast",
    "gradients",
    "leaves",
    "lstm_inputs",
    "mlstm_inputs",
    "relative_error",
    "slstm_inputs",
    "tolerance_of",
]


class Tolerance(NamedTuple):
    """Relative errors (Frobenius) allowed against float64 with the same inputs."""

    h: float  # outputs and states
    grad: float  # gradients
    df: float  # gradients of the forget gate, differences of nearly equal sums


TOLERANCE: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-11, 1e-11, 1e-11),
    torch.float32: Tolerance(1e-5, 1e-5, 1e-5),
    torch.float16: Tolerance(1e-3, 1.5e-3, 2e-3),
    torch.bfloat16: Tolerance(4e-3, 6e-3, 1e-2),
}
# Of mlstm on tensor cores, which also round the states between chunks and the weighted operands to the data's dtype.
CUDA_TOLERANCE: dict[torch.dtype, Tolerance] = {
    **TOLERANCE,
    torch.float32: Tolerance(2e-5, 1e-4, 1e-4),
    torch.bfloat16: Tolerance(4e-3, 1e-2, 1.5e-2),
}


def tolerance_of(function: str, dtype: torch.dtype, backend: str) -> Tolerance:
    """Errors allowed to a function ("mlstm") on a backend: "cpu" and "reference", or one that runs CUDA kernels."""
    on_tensor_cores = function == "mlstm" and backend not in ("cpu", "reference")
    return (CUDA_TOLERANCE if on_tensor_cores else TOLERANCE)[dtype]


class _Draw:
    """Seeded random leaf tensors; drawn in float32 at least, then rounded."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str, seed: int, requires_grad: bool) -> None:
        self.dtype, self.device, self.requires_grad = dtype, device, requires_grad
        self.accumulation_dtype = torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=self.accumulation_dtype, device=self.device)
        return x * scale + mean

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        x = torch.rand(shape, generator=self.generator, dtype=self.accumulation_dtype, device=self.device)
        return x * (high - low) + low

    def leaf(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return x.to(dtype or self.dtype).detach().requires_grad_(self.requires_grad)


def mlstm_inputs(
    B: int,
    H: int,
    S: int,
    Dqk: int,
    Dv: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    state: bool = False,
    state_rows: int | None = None,
    gate_scale: float = 1.0,
    forget_bias: float = 3.0,
    input_bias: float = 0.0,
    gate_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | None = None,
    layout: str = "bhsd",
    requires_grad: bool = False,
) -> dict[str, Any]:
    """q, k (B, H, S, Dqk), v (B, H, S, Dv), i, f (B, H, S) and, with state, initial_state.

    layout "bshd" stores tokens before heads, as a projection gives them. state_rows: number of sequences in a packed
    row. Gates and state have dtype A unless told otherwise.
    """
    draw = _Draw(dtype, device, seed, requires_grad)
    gate_dtype, state_dtype = gate_dtype or draw.accumulation_dtype, state_dtype or draw.accumulation_dtype

    def tokens(*tail: int) -> Tensor:
        if layout == "bshd":
            return draw.normal(B, S, H, *tail).transpose(1, 2)
        return draw.normal(B, H, S, *tail)

    inputs: dict[str, Any] = {name: draw.leaf(tokens(D)) for name, D in (("q", Dqk), ("k", Dqk), ("v", Dv))}
    inputs["i"] = draw.leaf(tokens() * gate_scale + input_bias, gate_dtype)
    inputs["f"] = draw.leaf(tokens() * gate_scale + forget_bias, gate_dtype)
    if state:
        rows = B if state_rows is None else state_rows
        parts = draw.normal(rows, H, Dqk, Dv), draw.normal(rows, H, Dqk), draw.normal(rows, H)
        inputs["initial_state"] = MLSTMState(*(draw.leaf(part, state_dtype) for part in parts))
    return inputs


def slstm_inputs(
    B: int,
    S: int,
    H: int,
    D: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    state: bool = False,
    gate_scale: float = 1.0,
    forget_bias: float = 3.0,
    bias_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | None = None,
    requires_grad: bool = False,
) -> dict[str, Any]:
    """x (B, S, 4, H, D), R (4, H, D, D), b (4, H, D) and, with state, initial_state (no empty element, h rounded)."""
    draw = _Draw(dtype, device, seed, requires_grad)
    state_dtype = state_dtype or draw.accumulation_dtype
    inputs = _recurrent_inputs(draw, B, S, H, D, gate_scale, forget_bias, bias_dtype)
    if state:
        h, c, m = (draw.normal(B, H, D, scale=scale) for scale in (0.5, 0.5, 1.0))
        parts = h.to(dtype), c, draw.uniform(B, H, D, low=0.5, high=2.0), m
        inputs["initial_state"] = SLSTMState(*(draw.leaf(part, state_dtype) for part in parts))
    return inputs


def lstm_inputs(
    B: int,
    S: int,
    H: int,
    D: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    state: bool = False,
    gate_scale: float = 1.0,
    forget_bias: float = 1.0,
    bias_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | None = None,
    requires_grad: bool = False,
) -> dict[str, Any]:
    """x (B, S, 4, H, D), R (4, H, D, D), b (4, H, D) and, with state, initial_state (h rounded to `dtype`)."""
    draw = _Draw(dtype, device, seed, requires_grad)
    state_dtype = state_dtype or draw.accumulation_dtype
    inputs = _recurrent_inputs(draw, B, S, H, D, gate_scale, forget_bias, bias_dtype)
    if state:
        parts = draw.normal(B, H, D, scale=0.5).to(dtype), draw.normal(B, H, D)
        inputs["initial_state"] = LSTMState(*(draw.leaf(part, state_dtype) for part in parts))
    return inputs


def _recurrent_inputs(
    draw: _Draw, B: int, S: int, H: int, D: int, gate_scale: float, forget_bias: float, bias_dtype: torch.dtype | None
) -> dict[str, Any]:
    b = draw.normal(4, H, D, scale=0.1)
    b[1] += forget_bias
    return {
        "x": draw.leaf(draw.normal(B, S, 4, H, D, scale=gate_scale)),
        "R": draw.leaf(draw.normal(4, H, D, D, scale=D**-0.5)),
        "b": draw.leaf(b, bias_dtype or draw.accumulation_dtype),
    }


def leaves(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of generated inputs by name; those of the state are called C0, n0, h0 and so on."""
    flat: dict[str, Tensor] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            flat[name] = value
        elif value is not None:
            flat.update((f"{part}0", tensor) for part, tensor in value._asdict().items())
    return flat


def cast(inputs: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The same inputs as new leaves of another dtype, gates, biases and states included; integers stay integers."""

    def copy(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.clone()
        return x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad)

    return {
        name: copy(value) if isinstance(value, Tensor) else None if value is None else type(value)(*map(copy, value))
        for name, value in inputs.items()
    }


def gradients(outputs: Sequence[Tensor], inputs: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """d loss / d input by name, zeros where there is no path; loss: a seeded random linear function of the outputs.

    The graph is kept.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs]
    pairs = [(x, w.to(x.device, x.dtype)) for x, w in zip(outputs, weights, strict=True) if x.requires_grad]
    flat = leaves(inputs)
    grads = torch.autograd.grad(
        [x for x, _ in pairs],
        list(flat.values()),
        [w for _, w in pairs],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(flat, grads, strict=True))


def cancellation(name: str, dtype: torch.dtype, gradients: Mapping[str, Tensor]) -> float:
    """By what factor a relative error of this gradient may exceed the usual one, at least 1.

    name: as in `leaves`; dtype: of the data; gradients: the expected ones by name. Those of the sLSTM's n0 and m0 are
    differences of numbers as large as the gradient of c0, which kernels for 16-bit data keep in 16 bits.
    """
    if dtype.itemsize > 2 or name not in ("n0", "m0") or "c0" not in gradients:
        return 1.0
    size = float(gradients[name].norm())
    return max(float(gradients["c0"].norm()) / size, 1.0) if size > 0 else 1.0


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| (Frobenius, float64); the norm itself where `expected` is zero.

    Infinite where the shapes differ, or where one is NaN or infinite and the other is not the same.
    """
    if actual.shape != expected.shape:
        return math.inf
    a, e = actual.detach().double(), expected.detach().to(actual.device).double()
    special = ~(a.isfinite() & e.isfinite())
    if not torch.equal(a[special].nan_to_num(nan=0.0), e[special].nan_to_num(nan=0.0)):
        return math.inf
    if not torch.equal(a.isnan(), e.isnan()):
        return math.inf
    a, e = a.masked_fill(special, 0), e.masked_fill(special, 0)
    size = float(e.norm())
    return float((a - e).norm()) / (size if size > 0 else 1.0)


def assert_close_relative(actual: Tensor, expected: Tensor, tol: float, name: str = "tensor") -> None:
    """Raise AssertionError unless shapes agree and relative_error(actual, expected) <= tol."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = relative_error(actual, expected)
    assert error <= tol, f"{name}: relative error {error:.2e} exceeds {tol:.0e}"
