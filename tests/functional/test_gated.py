"""gated_activation and soft_cap: against the reference in float64, limits, strides, elements of 16 bits, refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import gelu, pad, silu

from xlstm_cuda import _ops, gated_activation, reference, soft_cap
from xlstm_cuda._backend import resolve
from xlstm_cuda._ops import ACTIVATIONS
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
CAP = 2.5
# Leading sizes and F: less than a vector, more than one and a part, whole ones, and rows of several blocks of threads.
SIZES: list[tuple[tuple[int, ...], int]] = [((2, 7), 5), ((1, 3), 24), ((3,), 131), ((1, 2), 1100)]

Inputs = dict[str, Tensor]


@cache
def _values(lead: tuple[int, ...], F: int, fused: bool, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return {"x": normal(*lead, 2 * F)} if fused else {"x": normal(*lead, F), "gate": normal(*lead, F)}


def draw(
    lead: tuple[int, ...], F: int, fused: bool = False, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Inputs:
    """x and gate (lead, F), or where they are fused x (lead, 2 F)."""
    return {name: x.to(device, copy=True).requires_grad_() for name, x in _values(lead, F, fused, dtype).items()}


def grad_of(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(-8, 9, y.shape, generator=generator) / 4).to(y)


def results(y: Tensor, inputs: Inputs, dy: Tensor | None = None) -> Inputs:
    grads = torch.autograd.grad(y, list(inputs.values()), grad_of(y) if dy is None else dy)
    return {"y": y.detach(), **{f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}}


def run(inputs: Inputs, activation: str = "silu", **options: Any) -> Inputs:
    """y, and the gradients of a seeded linear function of it."""
    return results(gated_activation(**inputs, activation=activation, **options), inputs)


def run_cap(inputs: Inputs, **options: Any) -> Inputs:
    """The same of soft_cap, of x alone."""
    return results(soft_cap(inputs["x"], CAP, **options), {"x": inputs["x"]})


@cache
def expected_of(lead: tuple[int, ...], F: int, fused: bool, dtype: torch.dtype, activation: str) -> Inputs:
    """By the reference in float64, from values of this dtype; of soft_cap for "soft_cap"."""
    wide = {name: x.to(torch.float64, copy=True).requires_grad_() for name, x in _values(lead, F, fused, dtype).items()}
    if activation == "soft_cap":
        return run_cap(wide, backend="reference")
    return run(wide, activation, backend="reference")


def check(lead: tuple[int, ...], F: int, fused: bool, dtype: torch.dtype, activation: str, backend: str) -> None:
    device = "cuda" if backend == "cuda" else "cpu"
    inputs = draw(lead, F, fused, dtype, device)
    cap = activation == "soft_cap"
    actual = run_cap(inputs, backend=backend) if cap else run(inputs, activation, backend=backend)
    assert actual["y"].is_contiguous()
    for name, x in expected_of(lead, F, fused, dtype, activation).items():
        bound = TOLERANCE[dtype].h if name == "y" else TOLERANCE[dtype].grad
        assert actual[name].dtype == dtype
        assert_close_relative(actual[name].cpu(), x, bound, name)


@dtypes
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "soft_cap"])
def test_against_the_reference(backend: str, dtype: torch.dtype, activation: str) -> None:
    for lead, F in SIZES:
        for fused in (False, True):
            check(lead, F, fused, dtype, activation, backend)


def test_the_reference_is_what_the_layers_compute() -> None:
    x, gate = _values((2, 7), 5, False, torch.float64).values()
    assert_close_relative(reference.gated_activation(x, gate), silu(gate) * x, 1e-15)
    both = torch.cat([gate, x], -1)
    assert_close_relative(reference.gated_activation(both, activation="gelu"), gelu(gate) * x, 1e-15)
    assert_close_relative(reference.soft_cap(x, 3.0), 3 * torch.tanh(x / 3), 1e-15)


def test_leading_dimensions(backend: str, device: str) -> None:
    x, gate = draw((12,), 6, device=device).values()
    expected, capped = gated_activation(x, gate, backend=backend), soft_cap(x, CAP, backend=backend)
    for lead in ((1, 12), (3, 4), (2, 2, 3), (2, 1, 2, 3)):
        y = gated_activation(x.view(*lead, 6), gate.view(*lead, 6), backend=backend)
        assert torch.equal(y, expected.view(*lead, 6))
        assert torch.equal(soft_cap(x.view(*lead, 6), CAP, backend=backend), capped.view(*lead, 6))
    assert torch.equal(gated_activation(x[0], gate[0], backend=backend), expected[0])
    assert soft_cap(x[0, 0], CAP, backend=backend) == capped[0, 0]


@activations
def test_gradcheck(backend: str, device: str, activation: str) -> None:
    def call(x: Tensor, gate: Tensor | None = None) -> Tensor:
        return gated_activation(x, gate, activation=activation, backend=backend)

    for fused in (False, True):
        assert gradcheck(call, tuple(draw((2,), 3, fused, torch.float64, device).values()))


def test_gradcheck_of_the_cap(backend: str, device: str) -> None:
    assert gradcheck(lambda x: soft_cap(x, CAP, backend=backend), (draw((2,), 3, True, torch.float64, device)["x"],))


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],  # half of a wider projection
    lambda t: t.mT.contiguous().mT,
    lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    lambda t: pad(t, (0, 3))[..., :-3],
]


@pytest.mark.parametrize("F", [12, 7])
def test_strides(backend: str, device: str, F: int) -> None:
    for fused in (False, True):
        inputs = draw((3, 4), F, fused, device=device)
        expected = run(inputs, backend=backend)
        capped = run_cap(inputs, backend=backend)
        dy = grad_of(expected["y"])
        for layout in LAYOUTS:
            moved = {name: layout(x.detach()).requires_grad_() for name, x in inputs.items()}
            found = results(gated_activation(**moved, backend=backend), moved, layout(dy))
            assert all(torch.equal(found[name], x) for name, x in expected.items())
            alone = {"x": moved["x"]}
            found = results(soft_cap(moved["x"], CAP, backend=backend), alone, layout(grad_of(capped["y"])))
            assert all(torch.equal(found[name], x) for name, x in capped.items())


def test_one_number_for_all(backend: str, device: str) -> None:
    """Expanded tensors, as the gradient of a sum is."""
    inputs = draw((3, 4), 6, device=device)
    y = gated_activation(**inputs, backend=backend)
    dy = y.new_ones(()).expand_as(y)
    found, expected = results(y, inputs, dy), results(gated_activation(**inputs, backend=backend), inputs, dy.clone())
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    one = inputs["x"][:1, :1].detach().expand(3, 4, 6)
    assert torch.equal(gated_activation(one, backend=backend), gated_activation(one.clone(), backend=backend))


def test_no_elements(backend: str, device: str) -> None:
    for lead, F in (((2, 0), 3), ((0, 3), 3), ((0,), 3), ((2, 3), 0), ((2, 0, 3), 2)):
        for fused in (False, True):
            inputs = draw(lead, F, fused, device=device)
            found = run(inputs, backend=backend)
            assert found["y"].shape == (*lead, F)
            assert found["dx"].shape == inputs["x"].shape
            assert run_cap(inputs, backend=backend)["y"].shape == inputs["x"].shape


def test_gradients_that_are_not_asked_for(backend: str, device: str) -> None:
    inputs = draw((2, 3), 6, device=device)
    expected = run(inputs, backend=backend)
    for wanted in inputs:
        some = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
        y = gated_activation(**some, backend=backend)
        assert torch.equal(torch.autograd.grad(y, some[wanted], grad_of(y))[0], expected[f"d{wanted}"])


# Values at the edges.


# Of act and its slope at -inf and at inf; at the largest finite numbers they are the same, but for act that is inf.
LIMITS = {
    **dict.fromkeys(("silu", "gelu", "gelu_tanh", "relu"), ([0.0, torch.inf], [0.0, 1.0])),
    "sigmoid": ([0.0, 1.0], [0.0, 0.0]),
    "relu^2": ([0.0, torch.inf], [0.0, torch.inf]),
}


@dtypes
@activations
def test_limits(backend: str, device: str, dtype: torch.dtype, activation: str) -> None:
    top = torch.finfo(dtype).max
    gate = torch.tensor([-torch.inf, torch.inf, -top, top, torch.nan, 0.0, -0.0], device=device, dtype=dtype)
    gate, one = gate.requires_grad_(), torch.ones_like(gate)
    found = results(gated_activation(one, gate, activation=activation, backend=backend), {"gate": gate}, one)
    same = results(gated_activation(one, gate, activation=activation, backend="reference"), {"gate": gate}, one)
    values, slopes = LIMITS[activation]
    assert found["y"].tolist()[:2] == values and found["dgate"].tolist()[:2] == slopes
    assert found["y"].tolist()[2:4] == [0.0, top if values[1] == torch.inf and activation != "relu^2" else values[1]]
    assert found["dgate"].tolist()[2:4] == slopes
    for name, x in found.items():  # what torch gives, NaN too
        torch.testing.assert_close(x[4:], same[name][4:], equal_nan=True, rtol=TOLERANCE[dtype].grad, atol=0.0)


@pytest.mark.parametrize("activation", ["relu", "relu^2"])
def test_a_relu_passes_nothing_on_where_it_is_0(backend: str, device: str, activation: str) -> None:
    gate = torch.tensor([-1.0, 0.0, -torch.inf, torch.nan, 2.0], device=device, requires_grad=True)
    for grad in (torch.inf, torch.nan, 1.0):
        dy = torch.full_like(gate, grad)
        found, expected = (
            torch.autograd.grad(gated_activation(dy.sign(), gate, activation=activation, backend=name), gate, dy)[0]
            for name in (backend, "reference")
        )
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gelu_keeps_its_tail(backend: str, device: str, dtype: torch.dtype) -> None:
    """The relative error of P(g) is a few roundings, and those of g^2 / 2 in an exponent."""
    g = torch.linspace(-12, 12, 4001, dtype=torch.float64).to(dtype)
    y = gated_activation(torch.ones_like(g), g, activation="gelu", backend=backend).double()
    wide = g.double()
    expected = wide * torch.special.erfc(-wide * 0.5**0.5) / 2
    error = (y - expected).abs() / expected.abs().clamp_min(1e-300)
    assert (error <= torch.finfo(dtype).eps * (6 + wide.square())).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_slope_of_the_cap_keeps_its_digits(backend: str, device: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-30, 30, 2001, dtype=torch.float64).to(dtype)
    (slope,) = torch.autograd.grad(soft_cap(x.requires_grad_(), 1.0, backend=backend).sum(), x)
    wide = x.detach().double()
    error = (slope.double() * wide.cosh().square() - 1).abs()
    assert (error <= torch.finfo(dtype).eps * (8 + 4 * wide.abs())).all()


@dtypes
def test_the_cap_bounds(backend: str, device: str, dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, 3e4, -3e4, 0.0], dtype=dtype, device=device).requires_grad_()
    found = run_cap({"x": x}, backend=backend)
    assert found["y"].tolist()[:2] == [-CAP, CAP] and found["y"].abs().nan_to_num().max() <= CAP
    assert found["dx"].tolist()[:2] == [0.0, 0.0] and found["dx"].isnan().tolist() == x.isnan().tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_element_of_16_bits(backend: str, device: str, dtype: torch.dtype) -> None:
    """Read as it is, and rounded once, to the nearest even: products of a positive gate by relu are exact before."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    for factor in (1.0, 1.3359375, 2.0**-9, 96.0):
        gate = torch.full_like(x, factor)
        found = gated_activation(x, gate, activation="relu", backend=backend)
        expected = (x.float() * gate.float()).to(dtype)
        assert torch.equal(found.nan_to_num(0.5), expected.nan_to_num(0.5))


# Life inside torch.


def test_opcheck(backend: str, device: str) -> None:
    ops = _ops.library(resolve("test", backend, torch.device(device), "gated_activation_fwd") or "")
    for fused in (False, True):
        inputs = {name: x.detach() for name, x in draw((2, 3), 4, fused, torch.bfloat16, device).items()}
        arguments = (inputs["x"], inputs.get("gate"), 1)
        torch.library.opcheck(ops.gated_activation_fwd.default, arguments)
        dy = ops.gated_activation_fwd(*arguments)
        torch.library.opcheck(ops.gated_activation_bwd.default, (dy, *arguments))
    torch.library.opcheck(ops.soft_cap_fwd.default, (inputs["x"], 3.0))
    torch.library.opcheck(ops.soft_cap_bwd.default, (inputs["x"], inputs["x"], 3.0))


def test_compile(backend: str, device: str) -> None:
    def call(x: Tensor) -> Tensor:
        y = gated_activation(x, x.square(), activation="gelu", backend=backend)
        return soft_cap(gated_activation(y, backend=backend), CAP, backend=backend)

    inputs = draw((2, 3), 4, True, device=device)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = results(compiled(inputs["x"]), inputs), results(call(inputs["x"]), inputs)
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def test_autocast_changes_nothing(backend: str, device: str) -> None:
    inputs = draw((2, 3), 4, device=device)
    expected, capped = run(inputs, backend=backend), soft_cap(inputs["x"], CAP, backend=backend)
    with torch.autocast(device, torch.bfloat16):
        found = run(inputs, backend=backend)
        assert torch.equal(soft_cap(inputs["x"], CAP, backend=backend), capped)
        assert gated_activation(**inputs, backend="reference").dtype == torch.float32
    assert all(torch.equal(found[name], x) for name, x in expected.items())


# Refusals.

FLOATS = "bfloat16, float16, float32 or float64"
NAMES = "'silu' or 'gelu' or 'gelu_tanh' or 'sigmoid' or 'relu' or 'relu^2'"
Z = torch.zeros
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
    ({"x": Z(2, 8).int()}, TypeError, f"x must be {FLOATS}, got torch.int32"),
    ({"x": Z(())}, ValueError, "x must have shape (..., F), got ()"),
    ({"x": Z(2, 7), "gate": None}, ValueError, "x must have shape (..., 2 F) without a gate, got (2, 7)"),
    ({"gate": Z(2, 4)}, ValueError, "gate must have shape (2, 8) like x, got (2, 4)"),
    ({"gate": Z(2, 8).double()}, TypeError, "gate must have dtype torch.float32 like x, got torch.float64"),
    ({"gate": Z(2, 8, device="meta")}, ValueError, "gate must be on cpu like x, got meta"),
    ({"activation": "tanh"}, ValueError, f"activation must be {NAMES}, got 'tanh'"),
    ({"activation": None}, ValueError, f"activation must be {NAMES}, got None"),
    ({"backend": "cuda"}, ValueError, "backend='cuda' needs tensors on a cuda device, got cpu"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=[case[2][:60] for case in WRONG])
def test_wrong_call(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"x": Z(2, 8), "gate": Z(2, 8)}
    with pytest.raises(error) as raised:
        gated_activation(**{**good, **changed})
    assert str(raised.value) == f"gated_activation: {message}"


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan"), None, "30", True, 1e-40, 1e39])
def test_wrong_cap(cap: Any) -> None:
    with pytest.raises(ValueError) as raised:
        soft_cap(Z(2), cap)
    expected = f"soft_cap: cap must be a positive number, normal and finite in torch.float32, got {cap!r}"
    assert str(raised.value) == expected
    if cap in (1e-40, 1e39):
        assert torch.equal(soft_cap(Z(2).double(), cap), Z(2).double())


def test_raw_ops_refuse() -> None:
    ops, x = torch.ops.xlstm_cuda, Z(1, 6, 8)
    calls: list[Any] = [
        lambda: ops.gated_activation_fwd(Z(6, 8), None, 0),
        lambda: ops.gated_activation_fwd(Z(1, 6, 7), None, 0),
        lambda: ops.gated_activation_fwd(x.int(), None, 0),
        lambda: ops.gated_activation_fwd(x, Z(1, 6, 4), 0),
        lambda: ops.gated_activation_fwd(x, x.double(), 0),
        lambda: ops.gated_activation_fwd(x, x, 6),
        lambda: ops.gated_activation_fwd(x, x, -1),
        lambda: ops.gated_activation_bwd(x, x, None, 0),
        lambda: ops.soft_cap_fwd(Z(6, 8), 1.0),
        lambda: ops.soft_cap_fwd(x, 0.0),
        lambda: ops.soft_cap_fwd(x, float("inf")),
        lambda: ops.soft_cap_bwd(Z(1, 6, 7), x, 1.0),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="gated_activation|soft_cap"):
            call()
