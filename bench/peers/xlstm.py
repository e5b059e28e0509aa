"""The package `xlstm`: its plain PyTorch sLSTM."""

from __future__ import annotations

from torch import Tensor

from ..calls import Call, peer
from ..ops import Outputs, Tensors


def slstm(t: Tensors) -> Call:
    """The plain PyTorch sLSTM cell of `xlstm`: tokens first, gates beside the output rows of R."""
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    x: Tensor = t["x"]
    _, H, D = t["b"].shape
    grad = x.requires_grad
    R = t["R"].detach().transpose(0, 1).reshape(H, 4 * D, D).requires_grad_(grad)  # (H, 4 D, D)
    b = t["b"].detach().flatten().to(x.dtype).requires_grad_(grad)
    states = x.new_zeros(4, x.shape[0], H * D)
    pointwise = slstm_pointwise_function_registry["slstm"]

    def run() -> Outputs:
        h = slstm_forward(x.transpose(0, 1).flatten(2), states, R, b, pointwise)[0][0, 1:]  # (S, B, H D)
        return (h.transpose(0, 1).unflatten(2, (H, D)),)

    canonical = {"R": lambda g: g.unflatten(1, (4, D)).transpose(0, 1), "b": lambda g: g.unflatten(0, (4, H, D))}
    return Call(run, {"x": x, "R": R, "b": b}, canonical)


IMPLEMENTATIONS = (peer("xlstm", {"slstm": slstm}, "xlstm"),)
