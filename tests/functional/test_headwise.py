"""headwise_linear: against the reference in float64, several maps, blocks of every size, strides, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from tests.support.threads import threads
from xlstm_cuda import _ops, headwise_linear, reference
from xlstm_cuda._backend import resolve
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

pytestmark = pytest.mark.usefixtures("fresh_seed")


def draw(
    lead: tuple[int, ...],
    N: int,
    D: int,
    outs: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    biased: bool = True,
) -> dict[str, Tensor]:
    """x, weight0, weight1, .., and bias0, bias1, .. where `biased`; D: features in, outs: out of a block."""
    shapes: dict[str, tuple[int, ...]] = {"x": (*lead, N * D)}
    shapes |= {f"weight{n}": (N, out, D) for n, out in enumerate(outs)}
    shapes |= {f"bias{n}": (N * out,) for n, out in enumerate(outs) if biased}
    return {name: torch.randn(shape).to(device, dtype).requires_grad_() for name, shape in shapes.items()}


def outputs_of(inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
    count = sum(name.startswith("weight") for name in inputs)
    weights = [inputs[f"weight{n}"] for n in range(count)]
    return headwise_linear(inputs["x"], weights, [inputs.get(f"bias{n}") for n in range(count)], **options)  # type: ignore[return-value]


def run(inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The outputs, and the gradients of a seeded linear function of them."""
    outputs = outputs_of(inputs, **options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randint(-8, 9, y.shape, generator=generator) / 4 for y in outputs]
    found = torch.autograd.grad(
        outputs, list(inputs.values()), [dy.to(y) for dy, y in zip(grads, outputs, strict=True)]
    )
    results = {f"y{n}": y.detach() for n, y in enumerate(outputs)}
    return results | {f"d{name}": x for name, x in zip(inputs, found, strict=True)}


def check(inputs: dict[str, Tensor], backend: str) -> None:
    """Against the reference in float64 from the same values."""
    dtype = inputs["x"].dtype
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    actual, expected = run(inputs, backend=backend), run(wide, backend="reference")
    for name, x in expected.items():
        if name.startswith("d"):
            assert actual[name].dtype == inputs[name[1:]].dtype, name
            assert actual[name].shape == inputs[name[1:]].shape, name
        else:
            assert actual[name].dtype == dtype
            assert actual[name].is_contiguous()
        bound = TOLERANCE[dtype].grad if name.startswith("d") else TOLERANCE[dtype].h
        assert_close_relative(actual[name], x, bound, name)


@dtypes
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("outs", [(4,), (4, 4), (4, 4, 4), (3, 5)], ids=str)
def test_against_the_reference(
    backend: str, device: str, dtype: torch.dtype, outs: tuple[int, ...], biased: bool
) -> None:
    for lead, N in (((2, 7), 5), ((1, 70), 3), ((3, 1), 64), ((2, 33), 131)):
        check(draw(lead, N, 4, outs, dtype, device, biased), backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [1, 2, 3, 4, 5, 8, 15, 16, 17, 40])
def test_block_sizes(backend: str, device: str, dtype: torch.dtype, D: int) -> None:
    for out in {D, 1, 3, 16, 20}:
        check(draw((2, 5), 3, D, (out,), dtype, device), backend)
        check(draw((1, 67), 2, D, (out, D), dtype, device), backend)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3), (2, 1, 2, 3)], ids=str)
def test_leading_dimensions(backend: str, device: str, lead: tuple[int, ...]) -> None:
    for D in (4, 20):
        check(draw(lead, 3, D, (4, 2), torch.float32, device), backend)


def test_the_reference_is_what_the_layers_compute() -> None:
    inputs = draw((2, 5), 3, 4, (4,), torch.float64)
    y = reference.headwise_linear(inputs["x"], inputs["weight0"], inputs["bias0"])
    expected = torch.einsum("bshd,hod->bsho", inputs["x"].unflatten(-1, (3, 4)), inputs["weight0"]).flatten(-2)
    assert isinstance(y, Tensor)
    assert_close_relative(y, expected + inputs["bias0"], 1e-14)
    blocks = torch.block_diag(*inputs["weight0"])
    assert_close_relative(y, inputs["x"] @ blocks.T + inputs["bias0"], 1e-14)


def test_one_weight_or_a_sequence_of_one(backend: str, device: str) -> None:
    inputs = draw((2, 5), 3, 4, (4,), device=device)
    x, weight, bias = inputs.values()
    alone = headwise_linear(x, weight, bias, backend=backend)
    (of_one,) = headwise_linear(x, (weight,), (bias,), backend=backend)
    assert isinstance(alone, Tensor) and torch.equal(alone, of_one)
    (without,) = headwise_linear(x, [weight], backend=backend)
    assert torch.equal(without, headwise_linear(x, [weight], [None], backend=backend)[0])


@pytest.mark.parametrize("sizes", [(4, (4,)), (4, (4, 4)), (2, (3, 1, 2)), (17, (2,))], ids=str)
def test_gradcheck(backend: str, device: str, sizes: tuple[int, tuple[int, ...]]) -> None:
    inputs = draw((2, 3), 2, *sizes, torch.float64, device)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return outputs_of(dict(zip(inputs, tensors, strict=True)), backend=backend)

    assert gradcheck(call, tuple(inputs.values()), fast_mode=backend != "cpu")


def test_an_output_that_nobody_uses(backend: str, device: str) -> None:
    inputs = draw((2, 5), 3, 4, (4, 2), device=device)
    for n in range(2):
        alone = {"x": inputs["x"], "weight0": inputs[f"weight{n}"], "bias0": inputs[f"bias{n}"]}
        (y,) = outputs_of(alone, backend=backend)
        expected = torch.autograd.grad(y.square().sum(), list(alone.values()))
        leaves = [inputs["x"], inputs[f"weight{n}"], inputs[f"bias{n}"], inputs[f"weight{1 - n}"]]
        *found, none = torch.autograd.grad(
            outputs_of(inputs, backend=backend)[n].square().sum(), leaves, allow_unused=True
        )
        assert none is None
        for a, b in zip(found, expected, strict=True):
            assert_close_relative(a, b, 1e-6)


def test_gradients_that_are_not_asked_for(backend: str, device: str) -> None:
    inputs = draw((2, 5), 3, 4, (4, 4), device=device)
    expected = run(inputs, backend=backend)
    for wanted in inputs:
        some = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
        outputs = outputs_of(some, backend=backend)
        generator = torch.Generator().manual_seed(1)
        dys = [(torch.randint(-8, 9, y.shape, generator=generator) / 4).to(y) for y in outputs]
        used = [y.requires_grad for y in outputs]
        pairs = [(y, dy) for y, dy, needs in zip(outputs, dys, used, strict=True) if needs]
        (grad,) = torch.autograd.grad([y for y, _ in pairs], some[wanted], [dy for _, dy in pairs])
        assert torch.equal(grad, expected[f"d{wanted}"]), wanted


@pytest.mark.parametrize("D", [4, 3])
def test_strides(backend: str, device: str, D: int) -> None:
    inputs = draw((3, 9), 6, D, (4, 4), torch.float32, device)
    expected = run(inputs, backend=backend)
    layouts: list[Any] = [
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],  # half of a wider projection
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
        lambda t: torch.nn.functional.pad(t, (0, 3))[..., :-3],
    ]
    for layout in layouts:
        moved = {n: (layout(t.detach()) if t.ndim > 1 else t.detach()).requires_grad_() for n, t in inputs.items()}
        for name, t in run(moved, backend=backend).items():
            assert_close_relative(t, expected[name], 1e-6, name)
    check(inputs | {"x": inputs["x"].detach()[:, :1].expand_as(inputs["x"]).requires_grad_()}, backend)


def test_gradients_of_other_strides(backend: str, device: str) -> None:
    """A transposed gradient, and one number for all of them."""
    inputs = draw((3, 5), 2, 4, (4,), torch.float32, device)
    (y,) = outputs_of(inputs, backend=backend)
    dy = torch.randn(5, 3, 8, device=device).transpose(0, 1)
    leaves = list(inputs.values())
    for grad in (dy, dy.mT.contiguous().mT, dy[:1, :1, :1].expand_as(y)):
        found = torch.autograd.grad(y, leaves, grad, retain_graph=True)
        expected = torch.autograd.grad(y, leaves, grad.contiguous(), retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            assert_close_relative(a, b, 1e-6)


@pytest.mark.parametrize("D", [4, 3, 17])
def test_no_tokens(backend: str, device: str, D: int) -> None:
    for lead in ((2, 0), (0, 3), (0,), (2, 0, 3)):
        found = run(draw(lead, 2, D, (5, 4), device=device), backend=backend)
        assert found["y0"].shape == (*lead, 10)
        assert found["y1"].shape == (*lead, 8)
        assert all(not found[name].any() for name in ("dweight0", "dbias0", "dweight1", "dbias1"))


@dtypes
@pytest.mark.parametrize("D", [3, 4, 8])
def test_nan_stays_in_its_block(backend: str, device: str, dtype: torch.dtype, D: int) -> None:
    inputs = draw((2, 9), 5, D, (D, D), dtype, device)
    clean = run(inputs, backend=backend)
    dirty = {name: x.detach().clone() for name, x in inputs.items()}
    dirty["x"][0, 4, 2 * D] = torch.nan
    dirty["weight1"][4] = torch.inf
    found = run({name: x.requires_grad_() for name, x in dirty.items()}, backend=backend)
    touched = torch.zeros(2, 9, 5, D, dtype=torch.bool, device=device)
    touched[0, 4, 2] = True
    assert found["y0"].view_as(touched)[0, 4, 2].isnan().all()
    assert torch.equal(found["y0"][~touched.flatten(-2)], clean["y0"][~touched.flatten(-2)])
    touched[:, :, 4] = True
    assert torch.equal(found["y1"][~touched.flatten(-2)], clean["y1"][~touched.flatten(-2)])
    assert torch.equal(found["dx"][..., : 4 * D], clean["dx"][..., : 4 * D])
    rest = [0, 1, 3, 4]
    assert torch.equal(found["dweight0"][rest], clean["dweight0"][rest])
    assert torch.equal(found["dbias0"], clean["dbias0"])


@pytest.mark.parametrize("mixed", [torch.float32, torch.float64, torch.float16], ids=str)
def test_weights_of_other_dtypes(backend: str, device: str, mixed: torch.dtype) -> None:
    for D in (4, 3, 20):
        inputs = draw((2, 20), 3, D, (4, 4), torch.bfloat16, device)
        names = ("weight0", "bias1")
        check(inputs | {n: inputs[n].detach().to(mixed).requires_grad_() for n in names}, backend)


def test_same_inputs_same_bits(backend: str, device: str) -> None:
    for D in (4, 3):
        inputs = draw((2, 350), 10, D, (4, 4), torch.float32, device)
        first = run(inputs, backend=backend)
        for count in (1, 2, 3):
            with threads(count):
                again = run(inputs, backend=backend)
                assert all(torch.equal(again[name], x) for name, x in first.items())


def test_long_sums_in_bfloat16(backend: str, device: str) -> None:
    """1 + 2^-8 + 2^-8 .. would stay 1 if the sums over tokens were in the dtype of x."""
    for out in (4, 3):
        x = torch.ones(1, 2000, 4, device=device, dtype=torch.bfloat16)
        weight = torch.zeros(1, out, 4, dtype=torch.bfloat16, device=device).requires_grad_()
        y = headwise_linear(x, weight, backend=backend)
        assert isinstance(y, Tensor)
        y.backward(torch.full_like(y, 2**-8))
        assert weight.grad is not None
        assert weight.grad.unique().item() == torch.tensor(2000 / 256).bfloat16().item()


# Life inside torch.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outs", [(4,), (4, 3)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_opcheck(backend: str, device: str, outs: tuple[int, ...], biased: bool, dtype: torch.dtype) -> None:
    ops = _ops.library(resolve("test", backend, torch.device(device), "headwise_linear_fwd") or "")
    inputs = {name: x.detach() for name, x in draw((2, 5), 3, 4, outs, dtype, device, biased).items()}
    names = ("x", "weight0", "weight1", "bias0", "bias1")
    arguments = tuple(inputs.get(name) for name in names)
    torch.library.opcheck(ops.headwise_linear_fwd.default, arguments)
    y0, y1 = ops.headwise_linear_fwd(*arguments)
    dys = torch.ones_like(y0), torch.ones_like(y1) if len(outs) == 2 else None
    torch.library.opcheck(ops.headwise_linear_bwd.default, (*dys, *arguments[:3]))


def test_compile(backend: str, device: str) -> None:
    inputs = draw((2, 20), 3, 4, (4, 4), device=device)
    x, *rest = inputs.values()
    expected = outputs_of(inputs, backend=backend)
    compiled = torch.compile(headwise_linear, fullgraph=True, backend="aot_eager")
    found = compiled(x, rest[:2], rest[2:], backend=backend)
    assert all(map(torch.equal, found, expected))
    grads = [torch.autograd.grad([y.sum() for y in outputs], [x, *rest]) for outputs in (found, expected)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("D", [4, 20])
def test_autocast_changes_nothing(backend: str, device: str, D: int) -> None:
    inputs = draw((2, 9), 3, D, (4, 4), device=device)
    expected = outputs_of(inputs, backend=backend)
    with torch.autocast(device, torch.bfloat16):
        actual = outputs_of(inputs, backend=backend)
        slow = outputs_of(inputs, backend="reference")[0]
    assert all(map(torch.equal, actual, expected))
    assert slow.dtype == torch.float32
    assert_close_relative(slow, expected[0], 1e-5)
    leaves = list(inputs.values())
    grads = (torch.autograd.grad([y.sum() for y in outputs], leaves) for outputs in (actual, expected))
    assert all(map(torch.equal, *grads))


def test_flops(backend: str, device: str) -> None:
    """As many as torch counts for the products."""
    inputs = draw((2, 9), 3, 4, (4, 2), device=device)
    with FlopCounterMode(display=False) as counter:
        outputs = outputs_of(inputs, backend=backend)
    assert counter.get_total_flops() == 2 * 2 * 9 * 3 * 4 * (4 + 2)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad([y.sum() for y in outputs], list(inputs.values()))
    assert counter.get_total_flops() == 2 * 2 * 2 * 9 * 3 * 4 * (4 + 2)


# Refusals.

FLOATS = "bfloat16, float16, float32 or float64"
Z = torch.zeros
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
    ({"x": Z(2, 8).int()}, TypeError, f"x must be {FLOATS}, got torch.int32"),
    ({"x": Z(())}, ValueError, "x must have shape (..., F), F at least 1, got ()"),
    ({"x": Z(2, 0)}, ValueError, "x must have shape (..., F), F at least 1, got (2, 0)"),
    ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
    ({"weight": []}, ValueError, "weight must be a Tensor or a sequence of at least one, got an empty one"),
    ({"weight": [Z(2, 4, 4), 1]}, TypeError, "weight[1] must be a Tensor, got int"),
    (
        {"weight": Z(2, 4, 3)},
        ValueError,
        "weight must have shape (N, O, I), O at least 1, N I = F = 8, got (2, 4, 3)",
    ),
    ({"weight": Z(2, 0, 4)}, ValueError, "weight must have shape (N, O, I), O at least 1, N I = F = 8, got (2, 0, 4)"),
    ({"weight": Z(8, 4)}, ValueError, "weight must have shape (N, O, I), O at least 1, N I = F = 8, got (8, 4)"),
    ({"weight": [Z(2, 4, 4), Z(4, 4, 2)]}, ValueError, "weight[1] must have N=2 blocks like weight[0], got (4, 4, 2)"),
    ({"weight": Z(2, 4, 4, device="meta")}, ValueError, "weight must be on cpu like x, got meta"),
    ({"bias": Z(7)}, ValueError, "bias must have shape (N*O=8,), got (7,)"),
    ({"bias": Z(8).bool()}, TypeError, f"bias must be {FLOATS}, got torch.bool"),
    ({"bias": [Z(8)]}, TypeError, "bias must be a Tensor, got list"),
    (
        {"weight": [Z(2, 4, 4)], "bias": Z(8)},
        TypeError,
        "bias must be None or a sequence of 1, as weight is, got Tensor",
    ),
    (
        {"weight": [Z(2, 4, 4)], "bias": [None, None]},
        TypeError,
        "bias must be None or a sequence of 1, as weight is, got list of 2",
    ),
    ({"weight": [Z(2, 4, 4)], "bias": [Z(3)]}, ValueError, "bias[0] must have shape (N*O=8,), got (3,)"),
    ({"backend": "cuda"}, ValueError, "backend='cuda' needs tensors on a cuda device, got cpu"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=[case[2][:60] for case in WRONG])
def test_wrong_call(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"x": Z(2, 8), "weight": Z(2, 4, 4)}
    with pytest.raises(error) as raised:
        headwise_linear(**{**good, **changed})
    assert str(raised.value) == f"headwise_linear: {message}"


def test_raw_ops_refuse() -> None:
    ops, x, w = torch.ops.xlstm_cuda, Z(1, 6, 8), Z(2, 4, 4)
    calls: list[Any] = [
        lambda: ops.headwise_linear_fwd(Z(6, 8), w, None, None, None),
        lambda: ops.headwise_linear_fwd(x, Z(8, 4), None, None, None),
        lambda: ops.headwise_linear_fwd(x, Z(2, 4, 3), None, None, None),
        lambda: ops.headwise_linear_fwd(x, w, Z(4, 4, 2), None, None),
        lambda: ops.headwise_linear_fwd(x, w.int(), None, None, None),
        lambda: ops.headwise_linear_fwd(x, w, None, Z(3), None),
        lambda: ops.headwise_linear_fwd(x, w, None, None, Z(8)),
        lambda: ops.headwise_linear_fwd(x, Z(2, 17, 4), None, None, None),
        lambda: ops.headwise_linear_fwd(Z(1, 2, 17), Z(1, 4, 17), None, None, None),
        lambda: ops.headwise_linear_bwd(Z(1, 5, 8), None, x, w, None),
        lambda: ops.headwise_linear_bwd(x, None, x, w, w),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="headwise_linear"):
            call()
