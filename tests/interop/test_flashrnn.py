"""The call of flashrnn against the plain recurrence, without the package."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import reference
from xlstm_cuda._states import LSTMState, SLSTMState
from xlstm_cuda.interop import flashrnn as ours
from xlstm_cuda.interop.flashrnn import FlashRNNConfig, flashrnn
from xlstm_cuda.testing import assert_close_relative

B, T, H, D = 3, 7, 2, 5
SHAPES = {"Wx": "BTGHD", "R": "GHDP", "b": "GHD", "states": "SBTHD"}
SIZES = {"B": B, "T": T, "G": 4, "H": H, "D": D, "P": D}
STATES = {"lstm": 2, "slstm": 4}


def draw(function: str, dtype: torch.dtype = torch.float64, given: bool = True) -> dict[str, Tensor]:
    """Wx, R, b and, if given, states of a sequence that has begun; all with gradients."""
    sizes = {**SIZES, "S": STATES[function]}
    found = {name: torch.randn([sizes[x] for x in letters], dtype=dtype) for name, letters in SHAPES.items()}
    found["R"] /= D**0.5
    found["states"] = found["states"][:, :, :1].clone()
    if function == "slstm":
        found["states"][2] = found["states"][2].abs() + 1
    if not given:
        del found["states"]
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def plain(function: str, Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The recurrence token by token; of its states all are kept."""
    start = Wx.new_zeros(STATES[function], B, H, D) if states is None else states[:, :, 0]
    state: Any = LSTMState(*start) if function == "lstm" else SLSTMState(*start)
    step: Any = reference.lstm_step if function == "lstm" else reference.slstm_step
    found = []
    for x in Wx.unbind(1):
        state = step(x, R, b, state)[1]
        found.append(torch.stack(state))
    return torch.stack(found, 2), found[-1][:, :, None]


def gradients(results: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    loss = torch.zeros((), dtype=torch.float64)
    for result in results:
        loss = loss + (result * torch.randn(result.shape, generator=generator, dtype=torch.float64)).sum()
    return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


def compare(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], inputs: dict[str, Tensor], bound: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_close_relative(a, e, bound)
    found, wanted = gradients(actual, inputs), gradients(expected, inputs)
    for name in inputs:
        assert_close_relative(found[name], wanted[name], bound, name)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("function", STATES)
def test_equals_the_recurrence(function: str, given: bool) -> None:
    """All states and the last ones, and gradients through both."""
    inputs = draw(function, given=given)
    compare(flashrnn(**inputs, function=function), plain(function, **inputs), inputs, 1e-11)


@pytest.mark.parametrize("function", STATES)
def test_h_alone(function: str) -> None:
    inputs = draw(function)
    h, last = flashrnn(**inputs, function=function, all_states=False)
    expected = plain(function, **inputs)
    assert h.shape == (1, B, T, H, D) and last.shape == (STATES[function], B, 1, H, D)
    compare((h, last), (expected[0][:1], expected[1]), inputs, 1e-11)


def test_gradients_of_h_from_all_states() -> None:
    """A program that reads h alone: the way without a loop over time."""
    inputs = draw("slstm")
    actual, expected = flashrnn(**inputs, function="slstm")[0][:1], plain("slstm", **inputs)[0][:1]
    compare((actual,), (expected,), inputs, 1e-11)


@pytest.mark.parametrize("function", STATES)
def test_second_derivatives(function: str) -> None:
    """Through every state after every token, where the gradient that comes in needs none and where it does."""
    inputs = draw(function)

    def all_of(Wx: Tensor, R: Tensor, b: Tensor, states: Tensor) -> Tensor:
        return flashrnn(Wx, R, b, states, function=function)[0]

    assert torch.autograd.gradgradcheck(all_of, tuple(inputs.values()), fast_mode=True)

    def squares(result: tuple[Tensor, ...]) -> list[Tensor]:
        """Of gradients of a sum, into which constants come in."""
        first = torch.autograd.grad(result[0].sum(), list(inputs.values()), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), list(inputs.values())))

    expected = squares(plain(function, **inputs))
    for found, wanted in zip(squares(flashrnn(**inputs, function=function)), expected, strict=True):
        assert_close_relative(found, wanted, 1e-10)


@pytest.mark.parametrize("function", STATES)
def test_transforms(function: str) -> None:
    """All states under torch.func and in one graph of torch.compile."""
    inputs = draw(function)
    place = ("Wx", "R", "b", "states")

    def loss(*tensors: Tensor) -> Tensor:
        return flashrnn(*tensors, function=function)[0].square().sum()

    tensors = tuple(inputs[name] for name in place)
    expected = torch.autograd.grad(plain(function, **inputs)[0].square().sum(), tensors)
    fixed = tuple(tensor.detach() for tensor in tensors)
    for found, wanted in zip(torch.func.grad(loss, tuple(range(4)))(*fixed), expected, strict=True):
        assert_close_relative(found, wanted, 1e-10)
    along = tuple(torch.randn_like(tensor) for tensor in fixed)
    slope = torch.func.jvp(loss, fixed, along)[1]
    assert_close_relative(slope, sum((g * d).sum() for g, d in zip(expected, along, strict=True)), 1e-10)
    several = torch.stack([fixed[0], along[0]])
    found = torch.func.vmap(loss, (0, None, None, None))(several, *fixed[1:])
    assert_close_relative(found, torch.stack([loss(x, *fixed[1:]) for x in several]), 1e-10)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close_relative(compiled(*tensors), loss(*tensors), 1e-10)
    for found, wanted in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        assert_close_relative(found, wanted, 1e-10)


@pytest.mark.parametrize("function", STATES)
def test_autocast(function: str) -> None:
    """It changes nothing: dtypes are the config's business. Gradients likewise."""
    inputs = {name: x.detach().float().requires_grad_() for name, x in draw(function).items()}
    expected = flashrnn(**inputs, function=function)
    of_all = torch.autograd.grad(expected[0].sum(), list(inputs.values()))
    with torch.autocast("cpu", torch.bfloat16):
        actual = flashrnn(**inputs, function=function)
        found = torch.autograd.grad(actual[0].sum(), list(inputs.values()))
    assert all(map(torch.equal, (*actual, *found), (*expected, *of_all)))


LAYOUTS = itertools.product(("BTGHD", "TBGHD"), ("SBHTD", "STBHD", "SBTHD"), ("GHDP", "HGDP", "HPGD", "HPDG"), ("HDG",))
BIASES = [("BTGHD", "SBTHD", "GHDP", bias) for bias in ("GHD", "HGD")]


@pytest.mark.parametrize(("of_input", "of_output", "of_R", "of_b"), [*LAYOUTS, *BIASES])
def test_layouts(of_input: str, of_output: str, of_R: str, of_b: str) -> None:
    config = FlashRNNConfig(
        function="slstm",
        dtype="float64",
        input_shape=of_input,
        output_shape=of_output,
        recurrent_shape=of_R,
        bias_shape=of_b,
    )
    orders = {"Wx": of_input, "states": of_output, "R": of_R, "b": of_b}
    inputs = draw("slstm")
    turned = {name: x.permute([SHAPES[name].index(y) for y in orders[name]]) for name, x in inputs.items()}
    back = [of_output.index(letter) for letter in "SBTHD"]
    actual = tuple(x.permute(back) for x in flashrnn(**turned, config=config))
    compare(actual, plain("slstm", **inputs), inputs, 1e-11)


@pytest.mark.parametrize("backend", ["vanilla", "cuda_fused"])
def test_dtypes(backend: str) -> None:
    """A kernel of the package casts as its config says; "vanilla" takes tensors as they are."""
    inputs = {name: x.detach().bfloat16() for name, x in draw("slstm").items()}
    expected = plain("slstm", **{name: x.double() for name, x in inputs.items()})
    wide = {name: x.float() for name, x in inputs.items()}
    config = FlashRNNConfig(function="slstm", backend=backend, dtype="bfloat16", dtype_s="float32")
    for found, wanted in zip(flashrnn(**wide, config=config), expected, strict=True):
        assert found.dtype == torch.float32
        assert_close_relative(found.double(), wanted, 1e-5 if backend == "vanilla" else 3e-2)
    narrow = flashrnn(**inputs, function="slstm", backend=backend)
    assert [x.dtype for x in narrow] == [torch.bfloat16] * 2
    config.enable_automatic_mixed_precision = False
    exact = flashrnn(**wide, config=config)
    assert_close_relative(exact[0].double(), expected[0], 1e-5)


def test_initial_values() -> None:
    inputs = draw("slstm", given=False)
    config = FlashRNNConfig(function="slstm", dtype="float64", initial_val=(0.25, -1.0, 2.0, 0.5))
    states = torch.tensor(config.initial_val, dtype=torch.float64).view(4, 1, 1, 1, 1).expand(4, B, 1, H, D)
    compare(flashrnn(**inputs, config=config), plain("slstm", **inputs, states=states), inputs, 1e-11)


def test_empty_and_forgotten_elements() -> None:
    """Empty elements among others, gates of -inf, a long sequence with strong forget gates: finite and right."""
    inputs = {name: x.detach() for name, x in draw("slstm").items()}
    inputs["states"][1:, 0] = 0
    inputs["Wx"][1, 2, 1] = -torch.inf
    for actual, expected in zip(flashrnn(**inputs, function="slstm"), plain("slstm", **inputs), strict=True):
        assert_close_relative(actual, expected, 1e-11)
    Wx = torch.randn(B, 3000, 4, H, D) * 4 - 3
    exact = plain("slstm", Wx.double(), inputs["R"].float().double(), inputs["b"].float().double())
    actual = flashrnn(Wx, inputs["R"].float(), inputs["b"].float(), function="slstm", dtype="float32")
    for found, wanted in zip(actual, exact, strict=True):
        for part, of in zip(found, wanted, strict=True):
            assert_close_relative(part.double(), of, 1e-4)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 4), (2, 0)])
def test_nothing(rows: int, tokens: int) -> None:
    h, last = flashrnn(torch.randn(rows, tokens, 4, H, D), torch.randn(4, H, D, D), torch.randn(4, H, D))
    assert h.shape == (2, rows, tokens, H, D) and last.shape == (2, rows, 1, H, D)
    assert not last.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"function": "gru"}, ValueError, "function must be 'lstm' or 'slstm', got 'gru', which has no kernels here"),
        ({"function": "mlstm"}, ValueError, "function must be 'lstm' or 'slstm', got 'mlstm'$"),
        ({"backend": "numpy"}, ValueError, "backend must be one of 'vanilla', .*, got 'numpy'"),
        ({"Wx": torch.zeros(B, T, 4, D)}, ValueError, r"Wx must have the dimensions BTGHD, got \(3, 7, 4, 5\)"),
        ({"R": torch.zeros(4, H, D, 1)}, ValueError, r"R \(GHDP\) must have shape \(4, 2, 5, 5\), got \(4, 2, 5, 1\)"),
        ({"b": torch.zeros(H, 4, D)}, ValueError, r"b \(GHD\) must have shape \(4, 2, 5\), got \(2, 4, 5\)"),
        ({"b": [0.0]}, TypeError, "b must be a tensor, got list"),
        ({"states": torch.zeros(2, B, T, H, D)}, ValueError, r"states \(SBTHD\) must have shape \(2, 3, 1, 2, 5\)"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of 'bfloat16', .*, got 'int8'"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {name: x.detach() for name, x in draw("lstm", given=False).items()}
    with pytest.raises(error, match=f"^flashrnn: {message}"):
        flashrnn(**{**given, **change})


@pytest.mark.parametrize(
    "option", [{"gradient_recurrent_cut": True}, {"gradient_recurrent_clipval": 0.5}, {"forward_clipval": 1.0}]
)
def test_options_without_a_kernel(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"^flashrnn: {name} is not supported"):
        FlashRNNConfig(**option)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashrnn.flashrnn.flashrnn", None)
    with pytest.raises(ImportError, match="enable needs the package flashrnn"):
        ours.enable()
    ours.disable()
