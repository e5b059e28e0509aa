"""An LSTM layer with the weights of a case: torch.nn.LSTM, and the one of this library that takes its place."""

from __future__ import annotations

import torch
from torch import nn

from .calls import Call
from .ops import Tensors

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def layer_call(module: nn.Module, t: Tensors) -> Call:
    """module: with batch_first=True. Its weights are leaves in its own layout, which tells rows from heads."""
    load(module, tuple(f"{name}_l0" for name in NAMES), t)
    parameters = dict(module.named_parameters())
    leaves = {"u": t["u"], "W": parameters["weight_ih_l0"]}
    leaves |= {"R": parameters["weight_hh_l0"], "b": parameters["bias_ih_l0"]}
    gates = (4, t["R"].shape[1], -1)
    layout = dict.fromkeys(("R", "b"), lambda x: x.unflatten(0, gates))
    return Call(lambda: (module(t["u"])[0].unflatten(2, gates[1:]),), leaves, layout)


def load(module: nn.Module, names: tuple[str, ...], t: Tensors) -> None:
    """W, R and b into a module's input weight, recurrent weight and first bias, the second is zero."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in zip(names, (t["W"], t["R"], t["b"], torch.zeros_like(t["b"])), strict=True):
            parameters[name].copy_(value.reshape(parameters[name].shape))
            parameters[name].requires_grad_(t["W"].requires_grad)
