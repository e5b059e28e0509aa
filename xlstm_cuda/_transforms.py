"""What torch does with a function beyond one backward pass: second derivatives, torch.func, forward mode.

A first-order function (`_autograd`) is a pair of kernels. Here it gets the rest, exact and for all of them alike:

  torch.func (grad, vjp, vmap and what is made of them)   `Values`, whose backward pass is `Gradients`
  second derivatives, and higher ones                     `Gradients`, whose backward pass is composed
  forward mode (jvp, jacfwd, dual numbers)                the function in plain PyTorch

Composed means: the function in plain PyTorch is computed again, and autograd differentiates that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import Function, forward_ad

from xlstm_cuda import _autocast
from xlstm_cuda._batching import SHARED, Axes, Folding, Tensors, one_by_one


class Options(Protocol):
    """Options of a first-order function, which know the function without kernels."""

    def plain(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The outputs for the same inputs, in plain PyTorch. RuntimeError where it has no second derivative."""


class FirstOrder(Function):
    """outputs = function.apply(namespace, options, *inputs): kernels, differentiated once.

    A tuple of tensors. ROWS and HEADS: see `_batching`; INNER: of which kind a folding to more heads is.
    """

    ROWS: Axes
    HEADS: Axes | None = None
    INNER = False

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs, by the op alone: nothing is saved."""
        raise NotImplementedError

    @staticmethod
    def laid_out(inputs: Tensors) -> list[Tensor | None]:
        """The inputs as the kernels take them: copies where they lie in another way."""
        return [dense(x) for x in inputs]

    @staticmethod
    def with_heads(options: Any, factor: int) -> Any:
        """The options of a call with so many times as many heads."""
        return options

    @staticmethod
    def shared_gradients(options: Any, inputs: Tensors, dx: Tensor, h: Tensor, size: int) -> dict[int, Tensor]:
        """By place, the gradients of shared inputs for each element of a batch that was folded into the rows.

        dx: gradient of the first input; h: the first output. Empty where there is no such shortcut.
        """
        return {}


@dataclass(frozen=True)
class Call:
    """One function with its options: all but the inputs."""

    function: type[FirstOrder]
    namespace: str
    options: Options

    def kernels(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self.function.apply(self.namespace, self.options, *self.function.laid_out(inputs))

    def plain(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        device = next(x.device for x in inputs if x is not None)
        with _autocast.disabled(device.type):
            return self.options.plain(*map(_bare, inputs))


def differentiable(function: type[FirstOrder], namespace: str, options: Options, inputs: Tensors) -> tuple[Tensor, ...]:
    """function.apply, under whatever transform of torch is active."""
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return function.apply(namespace, options, *inputs)
    call = Call(function, namespace, options)
    # A Function has no rule for functionalize, and torch.compile traces none under a transform.
    if in_forward_mode() or torch.compiler.is_compiling() or _is_functionalized():
        return call.plain(*inputs)
    return Values.apply(call, *inputs)


def is_differentiated() -> bool:
    """In a backward pass: whether its results may be differentiated or batched, so that kernels alone will not do."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def gradients(call: Call, needed: Sequence[bool], inputs: Tensors, grads: Tensors) -> list[Tensor | None]:
    """Gradients of the inputs that need one, given those of the outputs; they can be differentiated themselves."""
    wanted = tuple(place for place, need in enumerate(needed) if need)
    results: list[Tensor | None] = [None] * len(inputs)
    if wanted:
        compute = _composed if in_forward_mode() else Gradients.apply
        for place, grad in zip(wanted, compute(call, wanted, len(inputs), *inputs, *grads), strict=True):
            results[place] = grad
    return results


def in_transform() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()


def _is_functionalized() -> bool:
    return any(level.key() == TransformType.Functionalize for level in retrieve_all_functorch_interpreters())


def in_forward_mode() -> bool:
    """Whether there may be dual numbers: of torch.autograd.forward_ad or of torch.func.jvp."""
    return forward_ad._current_level >= 0


def dense(x: Tensor | None) -> Tensor | None:
    """x, copied if its last dimension is not contiguous: what the ops require of every tensor."""
    if x is None or x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    return x.clone(memory_format=torch.contiguous_format)  # x.contiguous() keeps the strides of empty tensors


class Values(Function):
    """outputs = Values.apply(call, *inputs)

    Saved for backward: the inputs. The backward pass computes the outputs again, for what its kernels read of them.
    """

    @staticmethod
    def forward(call: Call, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return call.kernels(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *gradients(ctx.call, ctx.needs_input_grad[1:], ctx.saved_tensors, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *inputs: Tensor | None) -> Any:
        return _batched(Values, call, (), inputs, in_dims[1:], info.batch_size)


class Gradients(Function):
    """grads = Gradients.apply(call, wanted, num_inputs, *inputs, *grads of the outputs)

    Of the inputs at the places `wanted`. Saved for backward: all tensors.
    """

    @staticmethod
    def forward(call: Call, wanted: tuple[int, ...], num_inputs: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs, grads = list(tensors[:num_inputs]), tensors[num_inputs:]
        with torch.enable_grad():
            leaves = [_given(inputs[place]).detach().requires_grad_() for place in wanted]
            return _gradients_at(leaves, call.kernels(*_replaced(inputs, wanted, leaves)), grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, ctx.wanted, ctx.num_inputs, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, results = list(ctx.saved_tensors), [None] * len(ctx.saved_tensors)
        places = [place for place, need in enumerate(ctx.needs_input_grad[3:]) if need]

        def function(*inputs: Tensor) -> tuple[Tensor, ...]:
            return _composed(ctx.call, ctx.wanted, ctx.num_inputs, *_replaced(tensors, places, inputs))

        found = _pullback(function, [tensors[place] for place in places], grads)
        return None, None, None, *_replaced(results, places, found)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], call: Call, wanted: tuple[int, ...], num_inputs: int, *tensors: Any
    ) -> Any:
        dims, size = in_dims[3:], info.batch_size
        found = _with_shared(call, wanted, num_inputs, tensors, dims, size)
        return found or _batched(Gradients, call, (wanted, num_inputs), tensors, dims, size)


def _composed(call: Call, wanted: Sequence[int], num_inputs: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """`Gradients`, by autograd from the function in plain PyTorch."""
    inputs, grads = list(tensors[:num_inputs]), tensors[num_inputs:]
    return _pullback(
        lambda *some: call.plain(*_replaced(inputs, wanted, some)), [_given(inputs[place]) for place in wanted], grads
    )


def _pullback(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Tensors
) -> tuple[Tensor, ...]:
    """Gradients of the inputs, given those of the outputs (None: zero), as functions of both."""
    some = [place for place, grad in enumerate(grads) if grad is not None]
    if in_transform() and some:

        def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
            every = function(*inputs)
            return tuple(every[place] for place in some)

        alone = [x.view_as(x) for x in inputs]  # an op unwraps what a finished transform has left
        return torch.func.vjp(outputs, *alone)[1](tuple(grads[place] for place in some))
    # The same, in three quarters of the time, and with hooks on saved tensors, which torch.func refuses. These are
    # partial derivatives: an input that was made of another one is taken by itself, as a view.
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        alone = [x.view_as(x) if graph and x.requires_grad else x.detach().requires_grad_() for x in inputs]
        return _gradients_at(alone, function(*alone), grads, graph)


def _gradients_at(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], grads: Tensors, graph: bool = False
) -> tuple[Tensor, ...]:
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
    if not pairs:
        return tuple(map(torch.zeros_like, inputs))
    ys, gs = zip(*pairs, strict=True)
    return torch.autograd.grad(ys, inputs, gs, create_graph=graph, allow_unused=True, materialize_grads=True)


def _batched(
    function: type[Function], call: Call, more: tuple[Any, ...], tensors: Tensors, dims: Sequence[Any], size: int
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule of torch.vmap for function.apply(call, *more, *tensors)."""
    if not size:
        raise ValueError("xlstm_cuda: torch.vmap over a dimension of size 0 is not supported")
    for axes in (call.function.ROWS, call.function.HEADS):
        if axes is None:
            continue
        folding = _folding(axes, more, len(tensors), size, call.function.INNER)
        if folding.fits(tensors, dims):
            options = call.options if axes is call.function.ROWS else call.function.with_heads(call.options, size)
            call = replace(call, options=options)
            return folding.unfold(function.apply(call, *more, *folding.fold(tensors, dims)))
    return one_by_one(partial(function.apply, call, *more), tensors, dims, size)


def _with_shared(
    call: Call, wanted: tuple[int, ...], num_inputs: int, tensors: Tensors, dims: Sequence[Any], size: int
) -> tuple[tuple[Tensor, ...], tuple[int, ...]] | None:
    """The same for `Gradients`, as rows of one call, where `shared_gradients` knows the others."""
    axes, function = call.function.ROWS, call.function
    of_rows = tuple(sorted({0, *(place for place in wanted if axes.inputs[place] is not SHARED)}))
    folding = _folding(axes, (of_rows, num_inputs), len(tensors), size, function.INNER)
    if function.shared_gradients is FirstOrder.shared_gradients or not folding.fits(tensors, dims):
        return None
    folded = folding.fold(tensors, dims)
    inputs = folded[:num_inputs]
    every = Gradients.apply(call, of_rows, num_inputs, *folded)
    shared = function.shared_gradients(call.options, inputs, every[0], Values.apply(call, *inputs)[0], size)
    found = dict(zip(of_rows, zip(*folding.unfold(every), strict=True), strict=True))
    found |= {place: (grad, 0) for place, grad in shared.items()}
    results, places = zip(*(found[place] for place in wanted), strict=True)
    return results, places


def _folding(axes: Axes, more: tuple[Any, ...], count: int, size: int, inner: bool) -> Folding:
    if not more:
        return Folding(axes.inputs, axes.outputs, size, inner)
    wanted, num_inputs = more
    return Folding((*axes.inputs, *axes.outputs)[:count], tuple(axes.inputs[place] for place in wanted), size, inner)


def _bare(x: Tensor | None) -> Tensor | None:
    """Integers without what torch.func.grad wraps around them: plain PyTorch reads their values."""
    if x is not None and not x.is_floating_point() and not torch.compiler.is_compiling():
        while torch._C._functorch.is_gradtrackingtensor(x):
            x = torch._C._functorch.get_unwrapped(x)
    return x


def _replaced(values: Sequence[Any], places: Sequence[int], others: Sequence[Any]) -> list[Any]:
    result = list(values)
    for place, other in zip(places, others, strict=True):
        result[place] = other
    return result


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
