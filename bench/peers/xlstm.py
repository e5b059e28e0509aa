"""The package `xlstm`: its plain PyTorch sLSTM, and its models on plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import models
from ..calls import Builder, Call, peer
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


def lm(t: Tensors) -> Call:
    import xlstm

    model = xlstm.xLSTMLMModel(models.lm_config(models.lm_shape(t), xlstm, xlstm, backend="vanilla"))
    canonical, own = {}, dict(t)
    for name, x in t.items():
        if name.endswith("_recurrent_kernel_"):  # theirs (H, 4 D, D)
            canonical[name], own[name] = _transposed, _like(x, x.mT.contiguous())
        elif name.endswith("slstm_cell._bias_"):  # theirs by gate, head and unit
            by_head = x.unflatten(0, (models.HEADS, 4, -1))
            canonical[name], own[name] = _by_head, _like(x, by_head.transpose(0, 1).flatten())
    model = models.with_parameters(model, own)
    return Call(models.logits(model, t), models.leaves_of(model), canonical)


def _transposed(grad: Tensor) -> Tensor:
    return grad.mT


def _by_head(grad: Tensor) -> Tensor:
    return grad.unflatten(0, (4, models.HEADS, -1)).transpose(0, 1).flatten()


def _like(x: Tensor, value: Tensor) -> Tensor:
    return value.detach().requires_grad_(x.requires_grad)


# Plain PyTorch, as far as it goes without Triton.
LARGE_OPTIONS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
}


def _large(prepare: models.Prepare) -> Builder:
    def build(t: Tensors) -> Call:
        from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

        dtype = str(t["lm_head.weight"].dtype).removeprefix("torch.")
        config = xLSTMLargeConfig(
            **models.large_sizes(models.large_shape(t)), **LARGE_OPTIONS, autocast_kernel_dtype=dtype
        )
        model = models.with_parameters(xLSTMLarge(config), t)
        return Call(prepare(model, t), models.leaves_of(model))

    return build


def prefill(model: Any, t: Tensors) -> Callable[[], Outputs]:
    """It has no way to compute the logits of the last token alone."""
    return lambda: (model(t["ids"])[0][:, -1:],)


def step(model: Any, t: Tensors) -> Callable[[], Outputs]:
    """It overwrites the state."""
    states = {i: (C, n, m.unsqueeze(-1)) for i, (C, n, m) in enumerate(models.state_of(t))}
    return lambda: (model(t["ids"], states)[0],)


def generate(model: Any, t: Tensors) -> Callable[[], Outputs]:
    new = int(t["new"])
    return lambda: (model.generate(t["ids"], max_length=new)[0],)


IMPLEMENTATIONS = (
    peer("xlstm", {"slstm": slstm, "lm": lm}, "xlstm"),
    peer(
        "xlstm-large",
        {"large_prefill": _large(prefill), "large_step": _large(step), "large_generate": _large(generate)},
        *("xlstm", "mlstm_kernels"),
    ),
)
