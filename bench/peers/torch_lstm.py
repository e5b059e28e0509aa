"""torch.nn.LSTM and LSTMCell: on a GPU the first is cuDNN's."""

from __future__ import annotations

from torch import nn

from ..calls import Call, peer
from ..lstm_layer import NAMES, layer_call, load
from ..ops import Outputs, Shape, Tensors


def _lstm(t: Tensors) -> Call:
    D = t["u"].shape[-1]
    module = nn.LSTM(D, D, batch_first=True, device=t["u"].device, dtype=t["u"].dtype)
    call = layer_call(module, t)
    if t["u"].is_cuda:
        module.flatten_parameters()  # else cuDNN copies the weights at every call
    return call


def _cell(t: Tensors) -> Call:
    D = t["u"].shape[-1]
    module = nn.LSTMCell(D, D, device=t["u"].device, dtype=t["u"].dtype)
    load(module, NAMES, t)
    state = t["h"].squeeze(1).to(t["u"].dtype), t["c"].squeeze(1).to(t["u"].dtype)

    def run() -> Outputs:
        h, c = module(t["u"], state)
        return h.unsqueeze(1), c.unsqueeze(1)

    return Call(run, t)


def _one_head(op: str, shape: Shape) -> str | None:
    return None if shape["H"] == 1 else "has one head only"


IMPLEMENTATIONS = (
    peer("torch.nn.LSTM", {"lstm": _lstm}, refuses=_one_head),
    peer("torch.nn.LSTMCell", {"lstm_step": _cell}, refuses=_one_head),
)
