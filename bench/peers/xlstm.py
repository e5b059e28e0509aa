"""The package `xlstm`: its plain PyTorch sLSTM, what lies between its cells, and its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from .. import models
from ..calls import Builder, Call, peer
from ..glue import OPTIONS
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


def causal_conv1d(t: Tensors) -> Call:
    from xlstm.components.conv import CausalConv1d, CausalConv1dConfig

    features, taps = t["weight"].shape
    module = CausalConv1d(CausalConv1dConfig(features, taps))
    module.conv.weight = _parameter(t["weight"], t["weight"].unsqueeze(1))
    module.conv.bias = _parameter(t["bias"])
    leaves = {"x": t["x"], "weight": module.conv.weight, "bias": module.conv.bias}
    return Call(lambda: (silu(module(t["x"])),), leaves, {"weight": lambda g: g.squeeze(1)})


def headwise_linear(t: Tensors) -> Call:
    from xlstm.components.linear_headwise import LinearHeadwiseExpand, LinearHeadwiseExpandConfig

    config = LinearHeadwiseExpandConfig(t["x"].shape[-1], t["weight"].shape[0], bias=False)
    module = LinearHeadwiseExpand(config)
    module.weight = _parameter(t["weight"])
    return Call(lambda: (module(t["x"]),), {"x": t["x"], "weight": module.weight})


def multihead_norm_gate(t: Tensors) -> Call:
    """As its mLSTM layer has it: h comes with heads before tokens, which a transposed view is."""
    from xlstm.components.ln import MultiHeadLayerNorm

    module = MultiHeadLayerNorm(t["weight"].numel())
    module.weight = _parameter(t["weight"])

    def run() -> Outputs:
        normed = module(t["h"].transpose(1, 2)).transpose(1, 2).flatten(2)
        return ((normed + t["skip_weight"] * t["skip"]) * silu(t["gate"]),)

    return Call(run, {**t, "weight": module.weight})


def soft_cap(t: Tensors) -> Call:
    from xlstm.xlstm_large.components import soft_cap as function

    return Call(lambda: (function(t["x"], OPTIONS["soft_cap"]["cap"]),), t)


def _parameter(x: Tensor, value: Tensor | None = None) -> nn.Parameter:
    """That value, x itself where there is none, with gradients where x has them."""
    return nn.Parameter((x if value is None else value).detach(), x.requires_grad)


def lm(t: Tensors) -> Call:
    """With its plain PyTorch cells."""
    canonical, own = {}, dict(t)
    for name, x in t.items():
        if name.endswith("_recurrent_kernel_"):  # theirs (H, 4 D, D)
            canonical[name], own[name] = _transposed, _like(x, x.mT.contiguous())
        elif name.endswith("slstm_cell._bias_"):  # theirs by gate, head and unit
            by_head = x.unflatten(0, (models.HEADS, 4, -1))
            canonical[name], own[name] = _by_head, _like(x, by_head.transpose(0, 1).flatten())
    model = models.with_parameters(lm_model(t, "vanilla"), own)
    return Call(models.logits(model, t), models.leaves_of(model), canonical)


def lm_on_cuda(t: Tensors) -> Call:
    """With its CUDA kernels of the sLSTM, compiled for the shape; their layout of the weights is ours."""
    model = models.with_parameters(lm_model(t, "cuda"), t)
    return Call(models.logits(model, t), models.leaves_of(model))


def lm_model(t: Tensors, backend: str) -> nn.Module:
    import xlstm

    model: nn.Module = xlstm.xLSTMLMModel(models.lm_config(models.lm_shape(t), xlstm, xlstm, backend=backend))
    return model


def _transposed(grad: Tensor) -> Tensor:
    return grad.mT


def _by_head(grad: Tensor) -> Tensor:
    return grad.unflatten(0, (4, models.HEADS, -1)).transpose(0, 1).flatten()


def _like(x: Tensor, value: Tensor) -> Tensor:
    return value.detach().requires_grad_(x.requires_grad)


_INFERENCE = {"mode": "inference", "return_last_states": True}
# Plain PyTorch, as far as it goes without Triton.
LARGE_OPTIONS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    **_INFERENCE,
}
LARGE_TRITON = {
    "chunkwise_kernel": "chunkwise--triton_xl_chunk",
    "sequence_kernel": "native_sequence__triton",
    "step_kernel": "triton",
    **_INFERENCE,
}


def _large(prepare: models.Prepare, options: dict[str, Any]) -> Builder:
    def build(t: Tensors) -> Call:
        from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

        dtype = str(t["lm_head.weight"].dtype).removeprefix("torch.")
        config = xLSTMLargeConfig(**models.large_sizes(models.large_shape(t)), **options, autocast_kernel_dtype=dtype)
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


_GLUE = {
    "causal_conv1d": causal_conv1d,
    "headwise_linear": headwise_linear,
    "multihead_norm_gate": multihead_norm_gate,
}
_LARGE_CALLS = {"large_prefill": prefill, "large_step": step, "large_generate": generate}


def _large_builders(options: dict[str, Any]) -> dict[str, Builder]:
    return {op: _large(prepare, options) for op, prepare in _LARGE_CALLS.items()}


IMPLEMENTATIONS = (
    peer("xlstm", {"slstm": slstm, "lm": lm, **_GLUE}, "xlstm"),
    peer("xlstm-cuda", {"lm": lm_on_cuda}, "xlstm", devices=("cuda",)),
    peer("xlstm-large", {"soft_cap": soft_cap, **_large_builders(LARGE_OPTIONS)}, "xlstm", "mlstm_kernels"),
    peer(
        "xlstm-large-triton",
        _large_builders(LARGE_TRITON),
        *("xlstm", "mlstm_kernels", "triton"),
        devices=("cuda",),
    ),
)
