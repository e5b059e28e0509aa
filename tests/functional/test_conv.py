"""causal_conv1d and its step: against the reference in float64, states, resets, packing, containment, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.support.threads import threads
from xlstm_cuda import _ops, causal_conv1d, causal_conv1d_step
from xlstm_cuda._backend import resolve
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
activations = pytest.mark.parametrize("activation", [None, "silu"])
NAMES = "x", "weight", "bias", "initial_state"

pytestmark = pytest.mark.usefixtures("fresh_seed")


def draw(
    B: int, S: int, F: int, K: int, dtype: torch.dtype = torch.float32, device: str = "cpu", rows: int | None = None
) -> dict[str, Tensor]:
    shapes = (B, S, F), (F, K), (F,), (B if rows is None else rows, K - 1, F)
    tensors = (torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes)
    return dict(zip(NAMES, tensors, strict=True))


def run(inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """y, the state, and the gradients of a seeded linear function of both."""
    y, state = causal_conv1d(**inputs, return_state=True, **options)
    leaves = {name: x for name, x in inputs.items() if x is not None and x.requires_grad}
    generator = torch.Generator().manual_seed(1)
    outputs = [x for x in (y, state) if x.requires_grad]
    weights = [(torch.randint(-8, 9, x.shape, generator=generator) / 4).to(x.device, x.dtype) for x in (y, state)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), weights[: len(outputs)], allow_unused=True)
    found = {f"d{n}": torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), grads, strict=True)}
    return {"y": y.detach(), "state": state.detach(), **found}


def check(inputs: dict[str, Any], backend: str, **options: Any) -> None:
    """Against the reference in float64 from the same values; a state counts as rounded to the dtype of x."""
    dtype = inputs["x"].dtype
    wide = {n: None if x is None else x.detach().double().requires_grad_(x.requires_grad) for n, x in inputs.items()}
    actual, expected = run(inputs, backend=backend, **options), run(wide, backend="reference", **options)
    for name, x in expected.items():
        if name.startswith("d"):
            assert actual[name].dtype == inputs[name[1:]].dtype, name
        assert_close_relative(
            actual[name], x, TOLERANCE[dtype].grad if name.startswith("d") else TOLERANCE[dtype].h, name
        )
    assert torch.equal(actual["state"], expected["state"].to(dtype)), "a copy of inputs"


def flags(B: int, S: int, device: str, part: float = 0.2) -> Tensor:
    return (torch.rand(B, S) < part).to(device)


def bounds(*values: int, device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@dtypes
@activations
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 9])
def test_against_the_reference(backend: str, device: str, dtype: torch.dtype, activation: str | None, K: int) -> None:
    for B, S, F in ((2, 7, 5), (1, 70, 24), (2, 1, 3), (3, 2, 16)):
        inputs = draw(B, S, F, K, dtype, device)
        check(inputs, backend, activation=activation)
        check(inputs, backend, activation=activation, reset=flags(B, S, device))
        check(inputs | {"bias": None, "initial_state": None}, backend, activation=activation, reset=flags(B, S, device))


@pytest.mark.parametrize("K", [1, 3, 4, 7])
@pytest.mark.parametrize("resets", [False, True])
def test_packed_sequences_are_separate_calls(backend: str, device: str, K: int, resets: bool) -> None:
    cu = [0, 0, 3, 3, 40, 66, 70, 70]
    inputs = draw(1, 70, 6, K, torch.float64, device, rows=len(cu) - 1)
    reset = flags(1, 70, device) if resets else None
    options: dict[str, Any] = {"activation": "silu", "backend": backend}
    check(inputs, backend, activation="silu", cu_seqlens=bounds(*cu, device=device), reset=reset)
    packed = run(inputs, cu_seqlens=bounds(*cu, device=device), reset=reset, **options)
    for n, (a, b) in enumerate(itertools.pairwise(cu)):
        x, state = inputs["x"].detach()[:, a:b], inputs["initial_state"].detach()[n : n + 1]
        part = None if reset is None else reset[:, a:b]
        y, after = causal_conv1d(
            x, inputs["weight"], inputs["bias"], initial_state=state, reset=part, return_state=True, **options
        )
        assert torch.equal(packed["y"][:, a:b], y) and torch.equal(packed["state"][n], after[0])


@dtypes
@pytest.mark.parametrize("K", [1, 2, 4, 6])
def test_states_continue_a_sequence(backend: str, device: str, dtype: torch.dtype, K: int) -> None:
    inputs = {name: x.detach() for name, x in draw(2, 90, 8, K, dtype, device).items()}
    state = inputs.pop("initial_state")
    x, weight, bias = inputs.values()
    options: dict[str, Any] = {"activation": "silu", "backend": backend}
    expected, final = causal_conv1d(**inputs, initial_state=state, return_state=True, **options)
    pieces = []
    for a, b in ((0, 1), (1, 3), (3, 3), (3, 80)):
        y, state = causal_conv1d(x[:, a:b], weight, bias, initial_state=state, return_state=True, **options)
        pieces.append(y)
    y, state = causal_conv1d_step(x[:, 80], weight, bias, state, **options)
    pieces.append(y[:, None])
    own = state.clone()
    y, after = causal_conv1d_step(x[:, 81:89], weight, bias, own, inplace=True, **options)
    assert after is own
    pieces.append(y)
    y, after = causal_conv1d_step(x[:, 89], weight, bias, own, inplace=True, **options)
    pieces.append(y[:, None])
    assert torch.equal(torch.cat(pieces, 1), expected) and torch.equal(own, final)


@pytest.mark.parametrize("K", [1, 4, 6])
def test_steps_without_a_state_and_with_gradients(backend: str, device: str, K: int) -> None:
    inputs = draw(2, 3, 5, K, torch.float64, device)
    x, weight, bias, state = inputs.values()
    for tokens in (x, x[:, 0]):
        for start in (state, None):
            y, after = causal_conv1d_step(tokens, weight, bias, start, activation="silu", backend=backend)
            same, same_after = causal_conv1d_step(tokens, weight, bias, start, activation="silu", backend="reference")
            assert_close_relative(y, same, 1e-12)
            assert torch.equal(after, same_after)
            grads = torch.autograd.grad(y.sum(), (x, weight, bias))
            for a, b in zip(grads, torch.autograd.grad(same.sum(), (x, weight, bias)), strict=True):
                assert_close_relative(a, b, 1e-11)


def test_inplace_keeps_what_lies_beside_the_state(backend: str, device: str) -> None:
    for K, S in itertools.product((2, 4, 9), (1, 3, 16)):
        x, weight, bias, state = (t.detach() for t in draw(3, S, 6, K, device=device).values())
        table = torch.full((3, K + 1, 10), 7.0, device=device)
        own = table[:, 1:K, 2:8]
        own.copy_(state)
        y, _ = causal_conv1d_step(x, weight, bias, own, inplace=True, backend=backend)
        expected, after = causal_conv1d_step(x, weight, bias, state, backend=backend)
        assert torch.equal(y, expected) and torch.equal(own, after)
        own.fill_(7)
        assert (table == 7).all()


@activations
@pytest.mark.parametrize("K", [1, 3, 4, 6])
def test_gradcheck(backend: str, device: str, activation: str | None, K: int) -> None:
    inputs = draw(2, 6, 2, K, torch.float64, device)
    reset = torch.zeros(2, 6, dtype=torch.bool, device=device)
    reset[0, 2] = reset[1, 4] = reset[1, 5] = True

    def call(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Any:
        options: dict[str, Any] = {"activation": activation, "return_state": True, "backend": backend, "reset": reset}
        return causal_conv1d(x, weight, bias, initial_state=state, **options)

    assert gradcheck(call, tuple(inputs.values()), fast_mode=backend != "cpu")


@pytest.mark.parametrize("K", [1, 4, 5])
def test_no_tokens(backend: str, device: str, K: int) -> None:
    for B, S in ((2, 0), (0, 3)):
        inputs = draw(B, S, 4, K, device=device)
        check(inputs, backend, activation="silu")
        check(inputs | {"initial_state": None}, backend, reset=flags(B, S, device))
    check(draw(1, 0, 4, K, device=device, rows=0), backend, cu_seqlens=bounds(0, device=device))


@pytest.mark.parametrize("K", [1, 4, 6])
def test_strides(backend: str, device: str, K: int) -> None:
    inputs = draw(3, 9, 8, K, torch.float32, device)
    expected = run(inputs, activation="silu", backend=backend)
    layouts: list[Any] = [
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    ]
    for layout in layouts:
        moved = {n: (layout(t.detach()) if t.ndim > 1 else t.detach()).requires_grad_() for n, t in inputs.items()}
        for name, t in run(moved, activation="silu", backend=backend).items():
            assert_close_relative(t, expected[name], 1e-6, name)
    expanded = inputs | {"x": inputs["x"].detach()[:, :1].expand(3, 9, 8).requires_grad_()}
    check(expanded, backend)


@activations
@pytest.mark.parametrize("K", [2, 4, 6])
def test_nan_reaches_only_what_sees_it(backend: str, device: str, K: int, activation: str | None) -> None:
    inputs = draw(2, 12, 4, K, torch.float32, device)
    reset = torch.zeros(2, 12, dtype=torch.bool, device=device)
    reset[:, 5] = True
    options: dict[str, Any] = {"activation": activation, "reset": reset, "backend": backend}
    clean = run(inputs, **options)
    x, state = inputs["x"].detach().clone(), inputs["initial_state"].detach().clone()
    x[0, 4] = torch.nan  # hidden from the tokens after it, as is the state
    state[1] = torch.inf
    dirty = run(inputs | {"x": x.requires_grad_(), "initial_state": state.requires_grad_()}, **options)
    for name in ("y", "dx"):
        assert torch.equal(dirty[name][:, 5:], clean[name][:, 5:]), name
    assert torch.equal(dirty["state"], clean["state"]) and torch.equal(dirty["y"][0, :4], clean["y"][0, :4])


def test_a_hidden_nan_is_in_no_weight_gradient(backend: str, device: str) -> None:
    """A tap meets token 4 only through later tokens, which do not see it."""
    for K in (4, 6):
        inputs = draw(1, 8, 4, K, torch.float64, device)
        reset = torch.zeros(1, 8, dtype=torch.bool, device=device)
        reset[:, 5] = True
        x = inputs["x"].detach().clone()
        x[0, 4] = torch.nan
        grad = run(inputs | {"x": x.requires_grad_()}, reset=reset, backend=backend)["dweight"]
        assert grad[:, -1].isnan().all() and not grad[:, :-1].isnan().any()


@pytest.mark.parametrize("mixed", [torch.float32, torch.float64], ids=str)
def test_weights_and_states_of_other_dtypes(backend: str, device: str, mixed: torch.dtype) -> None:
    for K in (4, 5):
        inputs = draw(2, 20, 16, K, torch.bfloat16, device)
        wide = {n: inputs[n].detach().to(mixed).requires_grad_() for n in NAMES[1:]}
        check(inputs | wide, backend, activation="silu")


def test_same_inputs_same_bits(backend: str, device: str) -> None:
    inputs = draw(2, 150, 40, 4, torch.float32, device)
    first = run(inputs, activation="silu", backend=backend)
    for count in (1, 2, 3):
        with threads(count):
            again = run(inputs, activation="silu", backend=backend)
            assert all(torch.equal(again[name], x) for name, x in first.items())


def test_long_sums_in_bfloat16(backend: str, device: str) -> None:
    """1 + 2^-8 + 2^-8 .. would stay 1 if the sums over tokens were in the dtype of x."""
    x = torch.full((1, 2000, 2), 2**-8, dtype=torch.bfloat16, device=device)
    weight = torch.zeros(2, 2, dtype=torch.bfloat16, device=device).requires_grad_()
    causal_conv1d(x, weight, backend=backend).sum().backward()
    assert weight.grad is not None and weight.grad[0, 1].item() == torch.tensor(2000 / 256).bfloat16().item()


# Life inside torch.


@pytest.fixture
def ops(backend: str, device: str) -> Any:
    return _ops.library(resolve("test", backend, torch.device(device), "causal_conv1d_fwd"))


@pytest.mark.parametrize(
    ("case", "dtype"), [("plain", torch.float64), ("bare", torch.bfloat16), ("packed", torch.float32)]
)
def test_opcheck(ops: Any, device: str, case: str, dtype: torch.dtype) -> None:
    x, weight, bias, state = (t.detach() for t in draw(1, 9, 4, 3, dtype, device, rows=2).values())
    cu, reset = bounds(0, 4, 9, device=device), flags(1, 9, device)
    if case == "plain":
        inputs: tuple[Any, ...] = (x, weight, bias, state[:1].contiguous(), None, reset)
    else:
        inputs = (x, weight, None, None, None, None) if case == "bare" else (x, weight, bias, state, cu, reset)
    torch.library.opcheck(ops.causal_conv1d_fwd.default, (*inputs, True))
    y, after = ops.causal_conv1d_fwd(*inputs, True)
    torch.library.opcheck(ops.causal_conv1d_bwd.default, (torch.ones_like(y), torch.ones_like(after), *inputs, True))
    torch.library.opcheck(ops.causal_conv1d_bwd.default, (torch.ones_like(y), None, *inputs, False))
    for tokens in (x, x[:, 0].contiguous()):
        torch.library.opcheck(
            ops.causal_conv1d_step_.default, (tokens, weight, bias, state[:1].contiguous().clone(), True)
        )


def test_compile(backend: str, device: str) -> None:
    inputs = draw(2, 20, 5, 4, device=device)
    options: dict[str, Any] = {"activation": "silu", "reset": flags(2, 20, device), "backend": backend}
    expected = run(inputs, **options)
    call = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    y, state = call(**inputs, return_state=True, **options)
    assert torch.equal(y, expected["y"]) and torch.equal(state, expected["state"])
    grads = torch.autograd.grad(y.sum(), list(inputs.values()))
    right = torch.autograd.grad(causal_conv1d(**inputs, **options).sum(), list(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(grads, right, strict=True))
    token, own = inputs["x"].detach()[:, 0], inputs["initial_state"].detach().clone()
    weight, bias = inputs["weight"].detach(), inputs["bias"].detach()
    step = torch.compile(
        lambda x, s: causal_conv1d_step(x, weight, bias, s, inplace=True, backend=backend)[0],
        fullgraph=True,
        backend="aot_eager",
    )
    right_y, after = causal_conv1d_step(token, weight, bias, own.clone(), backend=backend)
    assert torch.equal(step(token, own), right_y) and torch.equal(own, after)


def test_autocast_changes_nothing(backend: str, device: str) -> None:
    inputs = draw(2, 9, 4, 4, device=device)
    expected = run(inputs, activation="silu", backend=backend)
    with torch.autocast(device, torch.bfloat16):
        actual = run(inputs, activation="silu", backend=backend)
        slow = causal_conv1d(**inputs, activation="silu", backend="reference")
    assert all(torch.equal(actual[name], x) for name, x in expected.items())
    assert isinstance(slow, Tensor) and slow.dtype == torch.float32
    assert_close_relative(slow, expected["y"], 1e-5)


def test_a_graph_notices_a_state_that_was_overwritten() -> None:
    x, weight, bias, state = draw(1, 3, 2, 3).values()
    own = state.detach()
    y = causal_conv1d(x, weight, bias, initial_state=own)
    causal_conv1d_step(x.detach()[:, 0], weight.detach(), bias.detach(), own, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Refusals.

FLOATS = "bfloat16, float16, float32 or float64"
Z = torch.zeros
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
    ({"x": Z(2, 6, 4).int()}, TypeError, f"x must be {FLOATS}, got torch.int32"),
    ({"bias": Z(4).bool()}, TypeError, f"bias must be {FLOATS}, got torch.bool"),
    ({"x": Z(2, 4)}, ValueError, "x must have shape (B, S, F), F at least 1, got (2, 4)"),
    ({"x": Z(2, 6, 0)}, ValueError, "x must have shape (B, S, F), F at least 1, got (2, 6, 0)"),
    ({"weight": Z(4, 1, 3)}, ValueError, "weight must have shape (F=4, K), K at least 1, got (4, 1, 3)"),
    ({"weight": Z(4, 0)}, ValueError, "weight must have shape (F=4, K), K at least 1, got (4, 0)"),
    ({"weight": Z(5, 3)}, ValueError, "weight must have shape (F=4, K), K at least 1, got (5, 3)"),
    ({"weight": Z(4, 3, device="meta")}, ValueError, "weight must be on cpu like x, got meta"),
    ({"bias": Z(3)}, ValueError, "bias must have shape (F=4,), got (3,)"),
    ({"initial_state": Z(2, 3, 4)}, ValueError, "initial_state must have shape (B=2, K-1=2, F=4), got (2, 3, 4)"),
    ({"initial_state": (Z(2, 2, 4),)}, TypeError, "initial_state must be a Tensor, got tuple"),
    ({"activation": "relu"}, ValueError, "activation must be None or 'silu', got 'relu'"),
    ({"activation": True}, ValueError, "activation must be None or 'silu', got True"),
    ({"return_state": 1}, TypeError, "return_state must be True or False, got 1"),
    ({"reset": Z(2, 6)}, TypeError, "reset must have dtype torch.bool, got torch.float32"),
    ({"reset": Z(2, 5).bool()}, ValueError, "reset must have shape (B=2, S=6), got (2, 5)"),
    ({"cu_seqlens": Z(2).int()}, ValueError, "x must have B=1 with cu_seqlens, got (2, 6, 4)"),
    ({"x": Z(1, 6, 4), "cu_seqlens": Z(2)}, TypeError, "cu_seqlens must have dtype torch.int32, got torch.float32"),
    ({"x": Z(1, 6, 4), "cu_seqlens": Z(2).int()}, ValueError, "cu_seqlens must end at S=6, got 0"),
    (
        {"x": Z(1, 6, 4), "cu_seqlens": torch.tensor([0, 2, 6]).int(), "initial_state": Z(1, 2, 4)},
        ValueError,
        "initial_state must have shape (N=2, K-1=2, F=4), got (1, 2, 4)",
    ),
    ({"backend": "cuda"}, ValueError, "backend='cuda' needs tensors on a cuda device, got cpu"),
    (
        {"x": Z(0, 1, 1).expand(0, 2**30, 2**20), "weight": Z(1, 1).expand(2**20, 1), "bias": None},
        ValueError,
        "x must have fewer than 2**48 elements, an empty dimension counted as 1, got shape (0, 1073741824, 1048576)",
    ),
]
WRONG_STEPS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": Z(2)}, ValueError, "x must have shape (B, F) or (B, S, F), F at least 1, got (2,)"),
    ({"x": Z(2, 17, 4)}, ValueError, "x must have at most S=16 tokens, got (2, 17, 4)"),
    ({"state": Z(2, 2, 5)}, ValueError, "state must have shape (B=2, K-1=2, F=4), got (2, 2, 5)"),
    ({"inplace": None}, TypeError, "inplace must be True or False, got None"),
    ({"activation": "gelu"}, ValueError, "activation must be None or 'silu', got 'gelu'"),
    (
        {"inplace": True, "state": Z(2, 2, 4).requires_grad_()},
        ValueError,
        "inplace=True does not support inputs that require grad, forward mode and torch.func",
    ),
    (
        {"inplace": True, "state": Z(2, 2, 4).double()},
        TypeError,
        "state must have dtype torch.float32 like x with inplace=True, got torch.float64",
    ),
    (
        {"inplace": True, "state": Z(2, 1, 4).expand(2, 2, 4)},
        ValueError,
        "state must be contiguous in its last dimension and not expanded, nor overlap itself, with inplace=True, "
        "got strides (4, 0, 1)",
    ),
    (
        {"inplace": True, "state": torch._neg_view(Z(2, 2, 4))},
        ValueError,
        "state must not be a negated view with inplace=True, got one: use resolve_neg()",
    ),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG, ids=[case[2][:60] for case in WRONG])
def test_wrong_call(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": Z(2, 6, 4), "weight": Z(4, 3), "bias": Z(4)}
    with pytest.raises(error) as raised:
        causal_conv1d(**good | changed)
    assert str(raised.value) == f"causal_conv1d: {message}"


@pytest.mark.parametrize(("changed", "error", "message"), WRONG_STEPS, ids=[case[2][:60] for case in WRONG_STEPS])
def test_wrong_step(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": Z(2, 4), "weight": Z(4, 3), "bias": Z(4), "state": Z(2, 2, 4)}
    with pytest.raises(error) as raised:
        causal_conv1d_step(**good | changed)
    assert str(raised.value) == f"causal_conv1d_step: {message}"


def test_raw_ops_refuse() -> None:
    ops, x, w = torch.ops.xlstm_cuda, Z(1, 6, 4), Z(4, 3)
    state, cu = Z(1, 2, 4), torch.tensor([0, 4, 3, 6], dtype=torch.int32)
    calls: list[Any] = [
        lambda: ops.causal_conv1d_fwd(x, w, None, None, cu, None, True),
        lambda: ops.causal_conv1d_fwd(x, w, None, None, cu[1:], None, True),
        lambda: ops.causal_conv1d_fwd(x, Z(4, 0), None, None, None, None, True),
        lambda: ops.causal_conv1d_bwd(Z(1, 5, 4), None, x, w, None, None, None, None, True),
        lambda: ops.causal_conv1d_step_(Z(1, 17, 4), w, None, state, False),
        lambda: ops.causal_conv1d_step_(x, w, None, state.double(), False),
        lambda: ops.causal_conv1d_step_(x, w, None, Z(1, 1, 4).expand(1, 2, 4), False),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="causal_conv1d"):
            call()
