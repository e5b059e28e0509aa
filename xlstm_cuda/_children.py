"""When a layer may compute a child's map itself, together with others, and how it calls the child where it may not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _module

from xlstm_cuda import _autocast

_ORDINARY = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)  # the last two: while a graph is recorded
_COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_GLOBAL_HOOKS = (
    _module._global_forward_pre_hooks,
    _module._global_forward_hooks,
    _module._global_backward_pre_hooks,
    _module._global_backward_hooks,
)


def is_plain(kind: type[nn.Module], *children: nn.Module) -> bool:
    """Whether a call of each child would do what `kind.forward` does with its weights, and nothing else.

    Else they have to be called: adapters, quantised, parametrized and sharded modules are of another class, offloading
    replaces `forward`, whoever observes a module hooks it, and weights of other classes know few functions.
    """
    for child in children:
        weight, bias = child._parameters.get("weight"), child._parameters.get("bias")
        if not is_ordinary(weight) or not (bias is None or is_ordinary(bias)):
            return False
    return only_forward(kind, *children)


def only_forward(kind: type[nn.Module], *children: nn.Module) -> bool:
    """Whether a call of each child would run `kind.forward`, and nothing else."""
    for child in children:
        hooked = child._forward_pre_hooks or child._forward_hooks or child._backward_pre_hooks or child._backward_hooks
        if type(child) is not kind or hooked or "forward" in child.__dict__:
            return False
    return not any(_GLOBAL_HOOKS)


def is_ordinary(x: Tensor | None) -> bool:
    """Whether x is a tensor for which every function is known."""
    return type(x) in _ORDINARY


def is_computed(x: Tensor) -> bool:
    """Whether x is such a tensor, and of a dtype and on a device that the compiled functions know."""
    return is_ordinary(x) and x.dtype in _COMPUTED and x.device.type in ("cpu", "cuda", "meta")


def call(child: nn.Module, x: Tensor) -> Tensor:
    """child(x) in the dtype of the child's weights, also under autocast, which would round a gate's bias to bfloat16.

    Weights in which nothing is computed (8 bits, packed) say nothing of x: it stays as it is, but for autocast's sake.
    """
    weight = getattr(child, "weight", None)  # a method of some quantised maps, and nothing that wrappers must have
    parameters = child.parameters() if not isinstance(weight, Tensor) else (weight,)
    dtype = next((p.dtype for p in parameters if p.dtype in _COMPUTED), None)
    if dtype is None:
        autocast = _autocast.enabled(x.device.type)
        quantised: Tensor = child(x.to(torch.promote_types(x.dtype, torch.float32)) if autocast else x)
        return quantised
    with _autocast.disabled(x.device.type):
        y: Tensor = child(x.to(dtype))
    return y
