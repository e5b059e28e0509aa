"""torch.nn.LSTM and LSTMCell: on a GPU the first is cuDNN's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..calls import Call, peer
from ..ops import Outputs, Shape, Tensors


def _lstm(t: Tensors) -> Call:
    D = t["u"].shape[-1]
    module = nn.LSTM(D, D, batch_first=True, device=t["u"].device, dtype=t["u"].dtype)
    _load(module, ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), t)
    if t["u"].is_cuda:
        module.flatten_parameters()  # else cuDNN copies the weights at every call
    leaves = {"u": t["u"], "W": module.weight_ih_l0, "R": module.weight_hh_l0, "b": module.bias_ih_l0}
    return Call(lambda: (module(t["u"])[0].unsqueeze(2),), leaves, _LAYOUT)


def _cell(t: Tensors) -> Call:
    D = t["u"].shape[-1]
    module = nn.LSTMCell(D, D, device=t["u"].device, dtype=t["u"].dtype)
    _load(module, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), t)
    state = t["h"].squeeze(1).to(t["u"].dtype), t["c"].squeeze(1).to(t["u"].dtype)

    def run() -> Outputs:
        h, c = module(t["u"], state)
        return h.unsqueeze(1), c.unsqueeze(1)

    return Call(run, t)


_LAYOUT: dict[str, Callable[[Tensor], Tensor]] = {
    "R": lambda x: x.unflatten(0, (4, 1, -1)),
    "b": lambda x: x.unflatten(0, (4, 1, -1)),
}


def _load(module: nn.Module, names: tuple[str, ...], t: Tensors) -> None:
    """W, R and b into a module's input weight, recurrent weight and first bias, the second is zero."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in zip(names, (t["W"], t["R"], t["b"], torch.zeros_like(t["b"])), strict=True):
            parameters[name].copy_(value.reshape(parameters[name].shape))
            parameters[name].requires_grad_(t["W"].requires_grad)


def _one_head(op: str, shape: Shape) -> str | None:
    return None if shape["H"] == 1 else "has one head only"


IMPLEMENTATIONS = (
    peer("torch.nn.LSTM", {"lstm": _lstm}, refuses=_one_head),
    peer("torch.nn.LSTMCell", {"lstm_step": _cell}, refuses=_one_head),
)
