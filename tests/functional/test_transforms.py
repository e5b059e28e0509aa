"""torch.func and forward mode over every function: against loops of calls, the reference, and one another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap

from tests.support.derivatives import CASES
from xlstm_cuda import _transforms
from xlstm_cuda.functional import (
    causal_conv1d,
    causal_conv1d_step,
    gated_activation,
    mlstm,
    mlstm_step,
    slstm,
    soft_cap,
)
from xlstm_cuda.testing import assert_close_relative, mlstm_inputs, slstm_inputs

TIGHT = 1e-10  # float64
cases = pytest.mark.parametrize("name", CASES)
ON_EVERY_BACKEND = pytest.mark.parametrize("name", ["mlstm packed", "slstm options", "lstm", "causal_conv1d"])


def same(actual: Any, expected: Any, what: str) -> None:
    for index, (a, b) in enumerate(zip(*map(torch.utils._pytree.tree_leaves, (actual, expected)), strict=True)):
        assert_close_relative(a, b, TIGHT, f"{what} {index}")


def batch(x: Tensor, dim: int = 0) -> Tensor:
    return torch.stack([x, 0.9 * x, 1.1 * x], dim)


def loop(function: Callable[..., Any], *batches: Tensor) -> Any:
    """function for each element of what vmap has in dimension 0."""
    found = [function(*row) for row in zip(*(x.unbind() for x in batches), strict=True)]
    leaves, spec = zip(*map(torch.utils._pytree.tree_flatten, found), strict=True)
    return torch.utils._pytree.tree_unflatten([torch.stack(each) for each in zip(*leaves, strict=True)], spec[0])


def direction(x: Tensor) -> Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=x.dtype, device=x.device)).view(x.shape)


# vmap


@cases
def test_vmap_of_all_inputs(name: str) -> None:
    """Nested, with the new dimensions last; values of a state are not looked at, which nobody can."""
    case = CASES[name]()
    once = loop(case.call, *map(batch, case.tensors))
    same(vmap(case.call)(*map(batch, case.tensors)), once, "output")
    inner = vmap(case.call, in_dims=-1, out_dims=1)
    twice = vmap(inner, in_dims=-1)(*(torch.stack([batch(x, -1)] * 2, -1) for x in case.tensors))
    same(twice, [torch.stack([y.movedim(0, 1)] * 2) for y in once], "nested output")


@cases
def test_vmap_of_one_input(name: str) -> None:
    """The others are shared: parameters with a batch of their own under data that has none, and the other way round."""
    case = CASES[name]()
    for place in range(len(case.tensors)):
        one = lambda x: case.call(*case.tensors[:place], x, *case.tensors[place + 1 :])  # noqa: B023, E731
        rows = batch(case.tensors[place], 1) if case.tensors[place].ndim > 1 else batch(case.tensors[place], -1)
        dim = 1 if case.tensors[place].ndim > 1 else -1
        same(vmap(one, in_dims=dim)(rows), loop(one, rows.movedim(dim, 0)), f"input {place}, output")


@cases
def test_per_sample_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernels: nothing is computed in plain PyTorch."""
    case = CASES[name]()
    gradient = grad(case.loss, tuple(range(len(case.tensors))))
    first, rest = batch(case.tensors[0]), case.tensors[1:]
    expected = loop(lambda x: gradient(x, *rest), first)
    monkeypatch.setattr(_transforms.Call, "plain", None)
    same(vmap(gradient, (0, *[None] * len(rest)))(first, *rest), expected, "gradient")
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    same(gradient(*case.tensors), torch.autograd.grad(case.loss(*leaves), leaves), "gradient by autograd")


@ON_EVERY_BACKEND
def test_backends(backend: str, device: str, name: str) -> None:
    case = CASES[name]()
    first, *rest = [x.to(device) for x in case.tensors]

    def results(backend: str) -> Any:
        loss = partial(case.loss, backend=backend)
        gradient = vmap(grad(loss, (0, 1)), (0, *[None] * len(rest)))(batch(first), *rest)
        hessian_product = grad(lambda x: (grad(loss)(x, *rest) * direction(first)).sum())(first)
        return gradient, hessian_product, jvp(partial(loss, first), tuple(rest), tuple(map(direction, rest)))

    same(results(backend), results("reference"), "result")


@cases
def test_vmap_below_autograd(name: str) -> None:
    """loss.backward() over a vmap, and vmap inside of grad, where no input shows that it requires grad."""
    case = CASES[name]()
    rest = len(case.tensors) - 1

    def loss(*tensors: Tensor, backend: str | None = None) -> Tensor:
        call = partial(case.loss, backend=backend)
        return vmap(call, (0, *[None] * rest))(batch(tensors[0]), *tensors[1:]).square().sum()

    leaves = [x.clone().requires_grad_() for x in case.tensors]
    expected = torch.autograd.grad(loss(*leaves, backend="reference"), leaves)
    same(torch.autograd.grad(loss(*leaves), leaves), expected, "gradient")
    same(grad(loss, tuple(range(rest + 1)))(*case.tensors), expected, "gradient by grad")


@cases
def test_batched_gradients_of_outputs(name: str) -> None:
    """torch.autograd.grad(is_grads_batched=True), and vmap over a function of vjp that was made outside."""
    case = CASES[name]()
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    outputs = case.call(*leaves)
    rows = tuple(batch(direction(y)) for y in outputs)
    gradient = partial(torch.autograd.grad, outputs, leaves, retain_graph=True, materialize_grads=True)
    expected = loop(lambda *row: gradient(row), *rows)
    same(gradient(rows, is_grads_batched=True), expected, "gradient")
    pull = vjp(case.call, *case.tensors)[1]
    same(vmap(lambda *row: pull(row))(*rows), expected, "gradient by vjp")


OPTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], Tensor]] = {
    "cu_seqlens": (mlstm, mlstm_inputs(1, 2, 4, 2, 3, dtype=torch.float64), torch.tensor([[0, 1, 4], [0, 0, 4]]).int()),
    "reset": (mlstm, mlstm_inputs(2, 2, 4, 2, 3, dtype=torch.float64), torch.arange(16).view(2, 2, 4) % 5 == 1),
    "lengths": (slstm, slstm_inputs(2, 4, 2, 3, dtype=torch.float64), torch.tensor([[1, 4], [0, 2]])),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_batches_of_options(name: str) -> None:
    """Every element has its own lengths, resets or bounds."""
    function, inputs, option = OPTIONS[name]
    first_name = next(iter(inputs))
    call = lambda x, option: function(**inputs | {first_name: x, name: option})  # noqa: E731
    first = grad(lambda x, option: call(x, option).square().sum())
    second = grad(lambda x, option: first(x, option).square().sum())
    tangent = lambda x, option: jvp(lambda x: call(x, option), (x,), (direction(x),))[1]  # noqa: E731
    rows = batch(inputs[first_name])[: len(option)]
    for derivative in (call, first):
        same(vmap(derivative)(rows, option), loop(derivative, rows, option), "result")
    for derivative in (second, tangent):
        if name == "cu_seqlens":
            with pytest.raises(RuntimeError, match="torch.vmap over cu_seqlens goes with neither"):
                vmap(derivative)(rows, option)
        else:
            same(vmap(derivative)(rows, option), loop(derivative, rows, option), "result")


# Forward mode, and both together


@cases
def test_forward_mode(name: str) -> None:
    """Tangents against reverse mode: <J t, u> = <t, J^T u>. Dual numbers give the same."""
    case = CASES[name]()
    tangents = tuple(map(direction, case.tensors))
    outputs, found = jvp(case.call, tuple(case.tensors), tangents)
    pulled = vjp(case.call, *case.tensors)[1](tuple(map(torch.sin, outputs)))
    left = sum((y.sin() * t).sum() for y, t in zip(outputs, found, strict=True))
    right = sum((g * t).sum() for g, t in zip(pulled, tangents, strict=True))
    assert_close_relative(left, right, TIGHT, "product")
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(case.tensors, tangents, strict=True)]
        pairs = [forward_ad.unpack_dual(y) for y in case.call(*duals)]
        same([torch.zeros_like(y) if t is None else t for y, t in pairs], found, "tangent")


@cases
def test_hessian_products(name: str) -> None:
    """Reverse over reverse, forward over reverse, reverse over forward; and forward over a function of vjp."""
    case = CASES[name]()
    x, *rest = case.tensors
    t, loss = direction(x), lambda x: case.loss(x, *rest)
    expected = grad(lambda x: (grad(loss)(x) * t).sum())(x)
    same(jvp(grad(loss), (x,), (t,))[1], expected, "forward over reverse")
    same(grad(lambda x: jvp(loss, (x,), (t,))[1])(x), expected, "reverse over forward")
    value, pull = vjp(loss, x)
    same(jvp(pull, (value,), (torch.ones_like(value),))[1][0], pull(torch.ones_like(value))[0], "forward over vjp")


@pytest.mark.parametrize("name", ["mlstm options", "slstm_step", "lstm options", "causal_conv1d packed"])
def test_jacobians(name: str) -> None:
    case = CASES[name]()
    x, *rest = case.tensors
    call = lambda x: case.call(x, *rest)[0]  # noqa: E731
    expected = torch.autograd.functional.jacobian(call, x)
    same(jacfwd(call)(x), expected, "jacfwd")
    same(jacrev(call)(x), expected, "jacrev")
    same(torch.autograd.functional.jacobian(call, x, vectorize=True, strategy="forward-mode"), expected, "duals")


@pytest.mark.parametrize("name", ["mlstm_step", "soft_cap"])
def test_hessians_of_a_batch(name: str) -> None:
    case = CASES[name]()
    x, *rest = case.tensors
    loss = lambda x: case.loss(x, *rest)  # noqa: E731
    expected = torch.stack([torch.autograd.functional.hessian(loss, row) for row in batch(x)])
    same(vmap(jacfwd(jacrev(loss)))(batch(x)), expected, "hessian")
    same(vmap(jacrev(grad(loss)))(batch(x)), expected, "hessian")
    vectorized = [torch.autograd.functional.hessian(loss, row, vectorize=True) for row in batch(x)]
    same(torch.stack(vectorized), expected, "vectorized hessian")


# What else traces


@pytest.mark.parametrize("name", ["mlstm options", "slstm_step"])
def test_compiled_transforms(name: str) -> None:
    """torch.compile takes them in one graph, of the function in plain PyTorch."""
    case = CASES[name]()
    x, *rest = case.tensors
    transforms: list[Callable[..., Any]] = [
        lambda x: vmap(grad(lambda x: case.loss(x, *rest)))(batch(x)),
        lambda x: jvp(lambda x: case.loss(x, *rest), (x,), (x.cos(),)),
    ]
    for transform in transforms:
        torch._dynamo.reset()
        same(torch.compile(transform, backend="aot_eager", fullgraph=True)(x), transform(x), "result")


def test_functionalize() -> None:
    x = torch.linspace(-1, 1, 6).requires_grad_()
    (expected,) = torch.autograd.grad(soft_cap(x, 2.0).sum(), x)
    (actual,) = torch.autograd.grad(functionalize(lambda x: soft_cap(x, 2.0))(x).sum(), x)
    assert_close_relative(actual, expected, 1e-6)


def test_what_does_not_go() -> None:
    inputs = mlstm_inputs(2, 1, 1, 2, 3, state=True)
    state = inputs.pop("initial_state")
    x, weight = torch.randn(3, 2, 4), torch.randn(4, 3)
    message = "does not support inputs that require grad, forward mode and torch.func"
    for options in ({"inplace": True}, {"out": type(state)(*map(torch.zeros_like, state))}):
        call = lambda q: mlstm_step(**inputs | {"q": q}, state=state, **options)[0]  # noqa: B023, E731
        with pytest.raises(ValueError, match=message):
            vmap(call)(batch(inputs["q"]))
        with pytest.raises(ValueError, match=message):
            jvp(call, (inputs["q"],), (inputs["q"],))
    with pytest.raises(ValueError, match=message):
        vmap(lambda x: causal_conv1d_step(x, weight, None, torch.zeros(2, 2, 4), inplace=True)[0])(x)
    with pytest.raises(ValueError, match="torch.vmap over a dimension of size 0"):
        vmap(gated_activation)(x[:0])
    with pytest.raises(RuntimeError, match="causal_conv1d: torch.vmap over cu_seqlens goes with neither"):
        bounds = torch.tensor([[0, 2]] * 3, dtype=torch.int32)
        tangent = lambda x, bounds: jvp(lambda x: causal_conv1d(x, weight, cu_seqlens=bounds), (x,), (x,))[1]  # noqa: E731
        vmap(tangent)(x[:, None], bounds)
