"""Second derivatives of every function: against finite differences and the reference, in every dtype, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from tests.support.derivatives import CASES, Case
from xlstm_cuda.functional import lstm, mlstm, slstm
from xlstm_cuda.testing import (
    TOLERANCE,
    assert_close_relative,
    cast,
    leaves,
    lstm_inputs,
    mlstm_inputs,
    slstm_inputs,
    tolerance_of,
)

cases = pytest.mark.parametrize("name", CASES)
ON_EVERY_BACKEND = ["mlstm", "mlstm packed", "slstm options", "lstm", "causal_conv1d", "multihead_norm_gate"]
SEQUENCES: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "mlstm": (mlstm, lambda **options: mlstm_inputs(2, 2, 20, 8, 8, state=True, **options)),
    "slstm": (slstm, lambda **options: slstm_inputs(2, 6, 2, 8, state=True, **options)),
    "lstm": (lstm, lambda **options: lstm_inputs(2, 6, 2, 8, state=True, **options)),
}
sequences = pytest.mark.parametrize(("function", "make"), SEQUENCES.values(), ids=SEQUENCES.keys())


def required(case: Case) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in case.tensors]


@cases
def test_gradgradcheck(name: str) -> None:
    case = CASES[name]()
    assert gradgradcheck(case.loss, required(case), fast_mode=True, check_batched_grad=True)


@cases
def test_gradcheck_in_every_mode(name: str) -> None:
    case = CASES[name]()
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(case.loss, required(case), fast_mode=True, **modes)


def second(case: Case, tensors: list[Tensor], backend: str | None) -> tuple[Tensor, ...]:
    """Gradients of the loss, and those of a function of these."""
    first = torch.autograd.grad(case.loss(*tensors, backend=backend), tensors, create_graph=True)
    penalty = torch.stack([g.sin().sum() for g in first]).sum()
    return *first, *torch.autograd.grad(penalty, tensors, create_graph=True, materialize_grads=True)


@pytest.mark.parametrize("name", ON_EVERY_BACKEND)
def test_backends(backend: str, device: str, name: str) -> None:
    """And third derivatives, which are those of plain PyTorch."""
    case, results = CASES[name](), []
    for each in (backend, "reference"):
        tensors = [x.to(device).requires_grad_() for x in case.tensors]
        every = second(case, tensors, each)
        third = torch.autograd.grad(torch.stack([g.cos().sum() for g in every]).sum(), tensors)
        results.append((*every, *third))
    for index, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert_close_relative(actual, expected, 1e-9, f"derivative {index}")


@sequences
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_dtypes(backend: str, device: str, dtype: torch.dtype, function: Any, make: Any) -> None:
    """Twice the error of first derivatives: the composed pass reads gradients that are rounded like these."""
    inputs = make(dtype=dtype, requires_grad=True, device=device)
    generator = torch.Generator().manual_seed(5)
    results = []
    for given, each in ((inputs, backend), (cast(inputs), "reference")):
        h, tensors = function(**given, backend=each), list(leaves(given).values())
        draw = generator.manual_seed(5)
        weights = [torch.randint(-8, 9, x.shape, generator=draw).to(x.device, x.dtype) / 4 for x in (h, *tensors)]
        first = torch.autograd.grad(h, tensors, weights[0], create_graph=True)
        results.append(torch.autograd.grad(first, tensors, weights[1:], materialize_grads=True))
    tolerance = tolerance_of(function.__name__, dtype, backend)
    for name, actual, expected in zip(leaves(inputs), *results, strict=True):
        assert actual.dtype == leaves(inputs)[name].dtype, name
        assert_close_relative(
            actual, expected, 2 * (tolerance.df if name in ("f", "n0", "m0") else tolerance.grad), name
        )


@sequences
def test_each_input_alone(function: Any, make: Any) -> None:
    """Where nothing else requires grad, the graph of the first gradient is whole."""
    every = make(dtype=torch.float64, requires_grad=True)
    h = function(**every)
    first = torch.autograd.grad(h.square().sum(), list(leaves(every).values()), create_graph=True)
    for (name, x), g in zip(leaves(every).items(), first, strict=True):
        (expected,) = torch.autograd.grad(g.square().sum(), x, retain_graph=True)
        inputs = make(dtype=torch.float64)
        source = leaves(inputs)[name].requires_grad_()
        (gradient,) = torch.autograd.grad(function(**inputs).square().sum(), source, create_graph=True)
        (actual,) = torch.autograd.grad(gradient.square().sum(), source)
        assert_close_relative(actual, expected, TOLERANCE[torch.float64].grad, name)


def test_inputs_made_of_one_another() -> None:
    """Derivatives are partial: what one input does through another one is counted once."""
    results = []
    for backend in (None, "reference"):
        q = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 4, 3).requires_grad_()
        k = q.sin()
        h = mlstm(q, k, q + k, q.sum(-1), k.sum(-1), backend=backend)
        (g,) = torch.autograd.grad(h.square().sum(), q, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), q)[0])
    assert_close_relative(*results, 1e-10)


@sequences
def test_first_gradients_are_the_same_bits(backend: str, device: str, function: Any, make: Any) -> None:
    inputs = make(requires_grad=True, device=device)
    loss = function(**inputs, backend=backend).square().sum()
    usual = torch.autograd.grad(loss, list(leaves(inputs).values()), retain_graph=True)
    differentiable = torch.autograd.grad(loss, list(leaves(inputs).values()), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(usual, differentiable, strict=True))


@sequences
def test_empty_and_unused(backend: str, device: str, function: Any, make: Any) -> None:
    """Gradients of the final state alone, one of which nothing depends on; no token, and no row."""
    inputs = make(requires_grad=True, device=device)
    _, state = function(**inputs, return_state=True, backend=backend)
    first = torch.autograd.grad(
        state[0].square().sum(), list(leaves(inputs).values()), create_graph=True, allow_unused=True
    )
    torch.autograd.grad(sum(g.sum() for g in first if g is not None), list(leaves(inputs).values()), allow_unused=True)
    sizes = {mlstm: (2, 0, 2, 2), slstm: (0, 2, 2), lstm: (0, 2, 2)}[function]
    draw = {mlstm: mlstm_inputs, slstm: slstm_inputs, lstm: lstm_inputs}[function]
    nothing = leaves(draw(2, *sizes, requires_grad=True, state=True, device=device))
    inputs = draw(2, *sizes, requires_grad=True, state=True, device=device)
    h, state = function(**inputs, return_state=True, backend=backend)
    tensors = list(leaves(inputs).values())
    loss = h.sum() + sum(s.square().sum() for s in state)
    first = torch.autograd.grad(loss, tensors, create_graph=True)
    again = torch.autograd.grad(
        sum(g.square().sum() for g in first), tensors, allow_unused=True, materialize_grads=True
    )
    assert [g.shape for g in again] == [x.shape for x in nothing.values()]


def penalty(call: Callable[[], Tensor], x: Tensor, wanted: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(call().square().sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), wanted)[0]


def test_checkpoints_and_hooks() -> None:
    inputs = slstm_inputs(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    x, R = inputs["x"], inputs["R"]
    expected = penalty(lambda: slstm(**inputs), x, R)
    again = penalty(lambda: checkpoint(lambda: slstm(**inputs), use_reentrant=False), x, R)
    assert torch.equal(again, expected)
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(penalty(lambda: slstm(**inputs), x, R), expected)
    with torch.autocast("cpu", torch.bfloat16):  # what is composed does not read it
        cell = {"x": x.float().detach().requires_grad_(), "R": R.detach().float().requires_grad_()}
        assert penalty(lambda: slstm(**cell), cell["x"], cell["R"]).dtype == torch.float32


def test_memory_is_linear_in_the_length() -> None:
    """The graph of the first gradient holds no state of every token."""
    dim, sizes = 32, list[int]()
    for S in (64, 128, 256):
        inputs = mlstm_inputs(1, 1, S, dim, dim, requires_grad=True)
        (g,) = torch.autograd.grad(mlstm(**inputs).square().sum(), inputs["v"], create_graph=True)
        sizes.append(0)

        def pack(x: Tensor) -> Tensor:
            sizes[-1] += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            torch.autograd.grad(g.square().sum(), inputs["q"], create_graph=True)
    assert sizes[2] - sizes[1] < 2.2 * (sizes[1] - sizes[0])


def test_without_the_gradient_of_the_normaliser(backend: str, device: str) -> None:
    """The first derivative is there, a second one has no meaning."""
    inputs = mlstm_inputs(1, 1, 4, 2, 2, requires_grad=True, device=device)
    h = mlstm(**inputs, norm_grad=False, backend=backend)
    (g,) = torch.autograd.grad(h.sum(), inputs["v"], create_graph=True)
    with pytest.raises(RuntimeError, match="norm_grad=False leaves out a part of the gradient.*: use norm_grad=True"):
        g.sum().backward()
    with pytest.raises(RuntimeError, match="norm_grad=False leaves out a part of the gradient.*: use norm_grad=True"):
        torch.func.jvp(
            lambda v: mlstm(**{**inputs, "v": v}, norm_grad=False, backend=backend), (inputs["v"],), (inputs["v"],)
        )


def test_compiled_calls_are_refused_by_torch() -> None:
    inputs = slstm_inputs(1, 2, 1, 3, requires_grad=True)
    torch._dynamo.reset()
    h = torch.compile(slstm, backend="aot_eager", fullgraph=True)(**inputs)
    (g,) = torch.autograd.grad(h.sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="not .*support.*double backward"):
        g.sum().backward()


def test_ops_below_the_functions_refuse() -> None:
    op, x = torch.ops.xlstm_cuda.soft_cap_bwd, torch.ones(1, 1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="by the public functions, not by the ops below them"):
        op(x, x, 1.0).sum().backward()
    with pytest.raises(RuntimeError, match="by the public functions, not by the ops below them"):
        torch.func.vmap(lambda x: op(x, x, 1.0))(x.detach())
