"""multihead_norm_gate: against the reference in float64, absent inputs, strides, means, containment, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from tests.support.threads import threads
from xlstm_cuda import _ops, multihead_norm_gate, reference
from xlstm_cuda._backend import resolve
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
norms = pytest.mark.parametrize("norm", ["layer", "rms"])
NAMES = "h", "weight", "bias", "gate", "skip", "skip_weight"
SUBSETS: list[tuple[str, ...]] = [
    (),
    ("weight",),
    ("bias",),
    ("gate",),
    ("skip",),
    ("skip", "skip_weight"),
    ("weight", "bias", "gate"),
    ("weight", "gate", "skip", "skip_weight"),
    NAMES[1:],
]

pytestmark = pytest.mark.usefixtures("fresh_seed")


def draw(
    B: int, S: int, H: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu", given: Any = NAMES[1:]
) -> dict[str, Any]:
    row = (B, S, H * D)
    shapes = dict(zip(NAMES, ((B, S, H, D), (H * D,), (H * D,), row, row, (H * D,)), strict=True))
    return {
        name: torch.randn(shape).to(device, dtype).requires_grad_()
        for name, shape in shapes.items()
        if name == "h" or name in given
    }


def run(inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """y, and the gradients of a seeded linear function of it."""
    y = multihead_norm_gate(**inputs, **options)
    generator = torch.Generator().manual_seed(1)
    dy = (torch.randint(-8, 9, y.shape, generator=generator) / 4).to(y.device, y.dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y.detach(), **{f"d{name}": x for name, x in zip(inputs, grads, strict=True)}}


def check(inputs: dict[str, Any], backend: str, scale: float = 1.0, **options: Any) -> None:
    """Against the reference in float64 from the same values; scale: of the errors that are allowed."""
    dtype = inputs["h"].dtype
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    actual, expected = run(inputs, backend=backend, **options), run(wide, backend="reference", **options)
    for name, x in expected.items():
        if name.startswith("d"):
            assert actual[name].dtype == inputs[name[1:]].dtype, name
            assert actual[name].shape == inputs[name[1:]].shape, name
        bound = TOLERANCE[dtype].grad if name.startswith("d") else TOLERANCE[dtype].h
        assert_close_relative(actual[name], x, scale * bound, name)


@dtypes
@norms
@pytest.mark.parametrize("gate_activation", ["silu", "sigmoid"])
def test_against_the_reference(backend: str, device: str, dtype: torch.dtype, norm: str, gate_activation: str) -> None:
    options: dict[str, Any] = {"norm": norm, "gate_activation": gate_activation}
    for sizes in ((2, 7, 2, 5), (1, 70, 3, 16), (2, 3, 1, 33), (1, 2, 2, 128), (3, 1, 1, 200)):
        check(draw(*sizes, dtype, device), backend, weight_offset=1.0, **options)


@dtypes
@pytest.mark.parametrize("given", SUBSETS, ids=lambda given: "+".join(given) or "none")
def test_inputs_that_are_not_given(backend: str, device: str, dtype: torch.dtype, given: tuple[str, ...]) -> None:
    for norm in ("layer", "rms"):
        check(draw(2, 5, 3, 24, dtype, device, given), backend, norm=norm, weight_offset=0.5)


@norms
@pytest.mark.parametrize("D", [1, 2, 3, 4, 15, 17, 64, 127, 129, 257, 512, 600, 1024, 1030, 2048, 2051])
def test_head_dims(backend: str, device: str, norm: str, D: int) -> None:
    """With one or two features n is 1 or -1, and its gradient what eps leaves of a difference."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        check(draw(1, 3, 2, D, dtype, device), backend, norm=norm, eps=1.0 if D < 4 else 1e-5)


def test_the_reference_is_what_the_layers_compute() -> None:
    inputs = draw(2, 5, 3, 8, torch.float64)
    h, weight, bias, gate, skip, skip_weight = (x.detach() for x in inputs.values())
    normed = F.layer_norm(h, (8,), eps=1e-3).flatten(-2) * (1 + weight)
    y = reference.multihead_norm_gate(
        h, weight, gate=gate, skip=skip, skip_weight=skip_weight, eps=1e-3, weight_offset=1.0
    )
    assert_close_relative(y, (normed + skip_weight * skip) * F.silu(gate), 1e-13)
    y = reference.multihead_norm_gate(h, weight, bias, gate=gate, gate_activation="sigmoid", norm="rms")
    normed = F.rms_norm(h, (8,), eps=1e-5).flatten(-2) * weight + bias
    assert_close_relative(y, normed * gate.sigmoid(), 1e-13)


@norms
@pytest.mark.parametrize("given", [(), ("gate",), ("skip",), NAMES[1:]], ids=len)
@pytest.mark.parametrize("gate_activation", ["silu", "sigmoid"])
def test_gradcheck(backend: str, device: str, norm: str, given: tuple[str, ...], gate_activation: str) -> None:
    inputs = draw(2, 2, 2, 3, torch.float64, device, given)
    options: dict[str, Any] = {"norm": norm, "gate_activation": gate_activation, "weight_offset": 1.0}

    def call(*tensors: Tensor) -> Tensor:
        arguments: dict[str, Any] = dict(zip(inputs, tensors, strict=True))
        return multihead_norm_gate(**arguments, backend=backend, **options)

    assert gradcheck(call, tuple(inputs.values()), fast_mode=backend != "cpu")


def test_strides(backend: str, device: str) -> None:
    inputs = draw(3, 9, 2, 8, torch.float32, device)
    expected = run(inputs, backend=backend)
    layouts: list[Any] = [
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),  # h as the cell returns it
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
        lambda t: torch.nn.functional.pad(t, (0, 3))[..., :-3],
    ]
    for layout in layouts:
        moved = {n: (layout(t.detach()) if t.ndim > 1 else t.detach()).requires_grad_() for n, t in inputs.items()}
        for name, t in run(moved, backend=backend).items():
            assert_close_relative(t, expected[name], 1e-6, name)
    weight = torch.cat([inputs["weight"].new_zeros(1), inputs["weight"].detach()])[1:].requires_grad_()
    assert_close_relative(run(inputs | {"weight": weight}, backend=backend)["dweight"], expected["dweight"], 1e-6)
    for name in ("h", "gate"):
        check(inputs | {name: inputs[name].detach()[:, :1].expand_as(inputs[name]).requires_grad_()}, backend)


@norms
def test_no_tokens(backend: str, device: str, norm: str) -> None:
    for B, S in ((2, 0), (0, 3)):
        found = run(draw(B, S, 2, 5, device=device), backend=backend, norm=norm)
        assert found["y"].shape == (B, S, 10)
        assert all(not found[name].any() for name in ("dweight", "dbias", "dskip_weight"))


@dtypes
def test_constant_rows(backend: str, device: str, dtype: torch.dtype) -> None:
    """Without variance n is zero but for the rounding of the mean, and eps alone bounds the gradient."""
    inputs = draw(2, 3, 2, 64, dtype, device)
    flat = torch.tensor([0.0, 1.0, -2.0], device=device, dtype=dtype).view(1, 3, 1, 1).expand(2, 3, 2, 64)
    check(inputs | {"h": flat.contiguous().requires_grad_()}, backend)
    check(inputs | {"h": torch.zeros_like(flat).contiguous().requires_grad_()}, backend, norm="rms")


@pytest.mark.parametrize("D", [64, 100, 1024, 2100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_large_mean(backend: str, device: str, dtype: torch.dtype, D: int) -> None:
    """A mean of 1000 deviations takes three digits; E[h^2] - E[h]^2 would take six."""
    inputs = draw(1, 4, 2, D, dtype, device, ("weight", "gate"))
    check(inputs | {"h": (inputs["h"].detach() + 1000).requires_grad_()}, backend, scale=1000 / 16)


@dtypes
@norms
def test_nan_stays_in_its_row(backend: str, device: str, dtype: torch.dtype, norm: str) -> None:
    for D in (10, 70, 1030):
        inputs = draw(2, 9, 2, D, dtype, device)
        clean = run(inputs, backend=backend, norm=norm)
        dirty = {name: x.detach().clone() for name, x in inputs.items()}
        dirty["h"][0, 4, 1, 2] = torch.nan
        dirty["gate"][1, 3, 0] = torch.inf
        dirty["skip"][1, 5, D] = -torch.inf
        found = run({name: x.requires_grad_() for name, x in dirty.items()}, backend=backend, norm=norm)
        touched = torch.zeros(2, 9, 2, D, dtype=torch.bool, device=device)
        touched[0, 4, 1] = touched[1, 3, 0] = touched[1, 5, 1] = True
        for name in ("y", "dh", "dgate", "dskip"):
            rest = ~touched.view(found[name].shape)
            assert torch.equal(found[name][rest], clean[name][rest]), name
        assert found["y"].view(2, 9, 2, D)[0, 4, 1].isnan().all()


@pytest.mark.parametrize("D", [3, 5, 18])
def test_what_lies_past_a_row_is_not_read(backend: str, device: str, D: int) -> None:
    """Nor does a NaN weight of the next head, or of its last feature, reach another one."""
    inputs = draw(1, 3, 2, D, torch.float32, device)
    clean = run(inputs, backend=backend)
    weight = inputs["weight"].detach().clone()
    weight[D:] = torch.nan
    dirty = run(inputs | {"weight": weight.requires_grad_()}, backend=backend)
    assert torch.equal(dirty["dh"][:, :, 0], clean["dh"][:, :, 0])
    weight = inputs["weight"].detach().clone()
    weight[D - 1] = torch.nan
    dirty = run(inputs | {"weight": weight.requires_grad_()}, backend=backend)
    assert torch.equal(dirty["dweight"], clean["dweight"]) and torch.equal(dirty["dskip"], clean["dskip"])


@pytest.mark.parametrize("mixed", [torch.float32, torch.float64, torch.float16], ids=str)
def test_weights_of_other_dtypes(backend: str, device: str, mixed: torch.dtype) -> None:
    for D in (16, 2100):
        inputs = draw(2, 20, 2, D, torch.bfloat16, device)
        names = ("weight", "bias", "skip_weight")
        check(inputs | {n: inputs[n].detach().to(mixed).requires_grad_() for n in names}, backend)


def test_same_inputs_same_bits(backend: str, device: str) -> None:
    inputs = draw(2, 150, 2, 40, torch.float32, device)
    first = run(inputs, backend=backend)
    for count in (1, 2, 3):
        with threads(count):
            again = run(inputs, backend=backend)
            assert all(torch.equal(again[name], x) for name, x in first.items())


def test_long_sums_in_bfloat16(backend: str, device: str) -> None:
    """1 + 2^-8 + 2^-8 .. would stay 1 if the sums over tokens were in the dtype of h."""
    h = torch.randn(1, 2000, 1, 2, device=device).bfloat16()
    bias = torch.zeros(2, dtype=torch.bfloat16, device=device).requires_grad_()
    multihead_norm_gate(h, None, bias, backend=backend).backward(torch.full((1, 2000, 2), 2**-8).to(h))
    assert bias.grad is not None and bias.grad[1].item() == torch.tensor(2000 / 256).bfloat16().item()


# Life inside torch.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", [(), ("gate",), NAMES[1:]], ids=len)
def test_opcheck(backend: str, device: str, given: tuple[str, ...], dtype: torch.dtype) -> None:
    ops = _ops.library(resolve("test", backend, torch.device(device), "multihead_norm_gate_fwd") or "")
    inputs = draw(1, 5, 2, 4, dtype, device, given)
    arguments = (*(inputs[name].detach() if name in inputs else None for name in NAMES), True, False, 1e-5, 1.0)
    torch.library.opcheck(ops.multihead_norm_gate_fwd.default, arguments)
    dy = torch.ones_like(ops.multihead_norm_gate_fwd(*arguments))
    torch.library.opcheck(ops.multihead_norm_gate_bwd.default, (dy, *arguments))


def test_compile(backend: str, device: str) -> None:
    inputs = draw(2, 20, 2, 5, device=device)
    expected = run(inputs, backend=backend, weight_offset=1.0)
    y = torch.compile(multihead_norm_gate, fullgraph=True, backend="aot_eager")(
        **inputs, backend=backend, weight_offset=1.0
    )
    assert torch.equal(y, expected["y"])
    grads = torch.autograd.grad(y.sum(), list(inputs.values()))
    right = multihead_norm_gate(**inputs, backend=backend, weight_offset=1.0).sum()
    assert all(torch.equal(a, b) for a, b in zip(grads, torch.autograd.grad(right, list(inputs.values())), strict=True))


def test_autocast_changes_nothing(backend: str, device: str) -> None:
    inputs = draw(2, 9, 2, 4, device=device)
    expected = run(inputs, backend=backend)
    with torch.autocast(device, torch.bfloat16):
        actual = run(inputs, backend=backend)
        slow = multihead_norm_gate(**inputs, backend="reference")
    assert all(torch.equal(actual[name], x) for name, x in expected.items())
    assert slow.dtype == torch.float32
    assert_close_relative(slow, expected["y"], 1e-5)


# Refusals.

FLOATS = "bfloat16, float16, float32 or float64"
Z = torch.zeros
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"h": [1.0]}, TypeError, "h must be a Tensor, got list"),
    ({"h": Z(2, 6, 1, 4).int()}, TypeError, f"h must be {FLOATS}, got torch.int32"),
    ({"bias": Z(4).bool()}, TypeError, f"bias must be {FLOATS}, got torch.bool"),
    ({"h": Z(2, 6, 4)}, ValueError, "h must have shape (B, S, H, D), H and D at least 1, got (2, 6, 4)"),
    ({"h": Z(2, 6, 1, 0)}, ValueError, "h must have shape (B, S, H, D), H and D at least 1, got (2, 6, 1, 0)"),
    ({"weight": Z(1, 4)}, ValueError, "weight must have shape (H*D=4,), got (1, 4)"),
    ({"weight": Z(4, device="meta")}, ValueError, "weight must be on cpu like h, got meta"),
    ({"bias": Z(3)}, ValueError, "bias must have shape (H*D=4,), got (3,)"),
    ({"skip_weight": Z(5)}, ValueError, "skip_weight must have shape (H*D=4,), got (5,)"),
    ({"gate": Z(2, 6, 2, 2)}, ValueError, "gate must have shape (B=2, S=6, H*D=4), got (2, 6, 2, 2)"),
    ({"gate": Z(2, 6, 4).double()}, TypeError, "gate must have dtype torch.float32 like h, got torch.float64"),
    ({"skip": Z(2, 5, 4)}, ValueError, "skip must have shape (B=2, S=6, H*D=4), got (2, 5, 4)"),
    ({"skip": Z(2, 6, 4).half()}, TypeError, "skip must have dtype torch.float32 like h, got torch.float16"),
    ({"skip": None}, ValueError, "skip_weight needs a skip, got None"),
    ({"gate_activation": "relu"}, ValueError, "gate_activation must be 'silu' or 'sigmoid', got 'relu'"),
    ({"gate_activation": None}, ValueError, "gate_activation must be 'silu' or 'sigmoid', got None"),
    ({"norm": "batch"}, ValueError, "norm must be 'layer' or 'rms', got 'batch'"),
    ({"eps": -1e-5}, ValueError, "eps must be a finite number >= 0, got -1e-05"),
    ({"eps": float("nan")}, ValueError, "eps must be a finite number >= 0, got nan"),
    ({"weight_offset": float("inf")}, ValueError, "weight_offset must be a finite number, got inf"),
    ({"weight_offset": True}, ValueError, "weight_offset must be a finite number, got True"),
    ({"backend": "cuda"}, ValueError, "backend='cuda' needs tensors on a cuda device, got cpu"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=[case[2][:60] for case in WRONG])
def test_wrong_call(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"h": Z(2, 6, 1, 4), "weight": Z(4), "bias": Z(4), "gate": Z(2, 6, 4), "skip": Z(2, 6, 4)}
    with pytest.raises(error) as raised:
        multihead_norm_gate(**{**good, "skip_weight": Z(4), **changed})
    assert str(raised.value) == f"multihead_norm_gate: {message}"


def test_raw_ops_refuse() -> None:
    ops, h, w, x = torch.ops.xlstm_cuda, Z(1, 6, 2, 2), Z(4), Z(1, 6, 4)
    options = (False, False, 1e-5, 0.0)
    calls: list[Any] = [
        lambda: ops.multihead_norm_gate_fwd(Z(1, 6, 4), None, None, None, None, None, *options),
        lambda: ops.multihead_norm_gate_fwd(h, Z(3), None, None, None, None, *options),
        lambda: ops.multihead_norm_gate_fwd(h, None, w.int(), None, None, None, *options),
        lambda: ops.multihead_norm_gate_fwd(h, None, None, x.double(), None, None, *options),
        lambda: ops.multihead_norm_gate_fwd(h, None, None, None, None, w, *options),
        lambda: ops.multihead_norm_gate_bwd(Z(1, 5, 4), h, None, None, None, None, None, *options),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="multihead_norm_gate"):
            call()
