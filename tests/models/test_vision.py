"""Vision-LSTM against its equations in float64, and the names and shapes of the public code's checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_cuda import reference
from xlstm_cuda.models import VisionLSTM, VisionLSTM2
from xlstm_cuda.testing import assert_close_relative

DIM, CLASSES = 8, 5
SIZES: dict[str, Any] = {"dim": DIM, "input_shape": (3, 8, 12), "patch_size": 4, "depth": 2}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "1": (VisionLSTM, {}),
    "1, old norm": (VisionLSTM, {"legacy_norm": True}),
    "1, features": (VisionLSTM, {"mode": None, "pooling": None, "output_shape": None}),
    "1, overlapping": (VisionLSTM, {"stride": (2, 4)}),
    "2": (VisionLSTM2, {}),
    "2, old norm": (VisionLSTM2, {"legacy_norm": True, "pooling": "bilateral_avg"}),
    "2, every patch": (VisionLSTM2, {"pooling": None}),
    "2, features": (VisionLSTM2, {"mode": "features", "pooling": None, "legacy_norm": True}),
    "2, image": (VisionLSTM2, {"mode": "features", "pooling": "to_image", "output_shape": None}),
    "2, causal": (VisionLSTM2, {"conv_kind": "causal1d", "proj_bias": False, "norm_bias": False}),
    "2, five": (VisionLSTM2, {"conv_kernel_size": 5}),
}
every_model = pytest.mark.parametrize("name", MODELS)
bound = 1e-9  # in float64, through two or four layers

pytestmark = pytest.mark.usefixtures("fresh_seed")


def build(name: str, **fields: Any) -> Any:
    """Every parameter away from its initial value: zeros hide mistakes."""
    kind, options = MODELS[name]
    model = kind(**{**SIZES, "output_shape": (CLASSES,), **options, **fields}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


def images(count: int = 2, height: int = 8, width: int = 12) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, requires_grad=True)


def plain(model: Any, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """The equations, from a state dict with gradients."""
    weight = p["patch_embed.proj.weight"]
    (ph, pw), (sh, sw) = weight.shape[2:], model.stride
    windows = x.unfold(2, ph, sh).unfold(3, pw, sw)  # (B, C, h, w, ph, pw)
    x = torch.einsum("bchwij,dcij->bhwd", windows, weight) + p["patch_embed.proj.bias"]
    embed = p["pos_embed.embed"]
    if embed.shape[1:3] != x.shape[1:3]:
        embed = F.interpolate(embed.permute(0, 3, 1, 2), x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
    grid, x = x.shape[1:3], (x + embed).flatten(1, 2)
    blocks = [f"blocks.{i}." for i in range(2)]
    if isinstance(model, VisionLSTM2):
        blocks = [f"{block}{name}." for block in blocks for name in ("rowwise_from_top_left", "rowwise_from_bot_right")]
    for index, block in enumerate(blocks):
        x = x + layer(p, block, normed(x, p, block + "norm", 1.0), grid, index % 2 == 1)
    if isinstance(model, VisionLSTM):
        x = normed(x, p, "legacy_norm", 1.0) if "legacy_norm.weight" in p else x
        x = normed(pooled(model, x), p, "norm", 0.0, 1e-6)
    else:
        x = pooled(model, normed(x, p, "norm", 1.0, 1e-6))
        x = normed(x, p, "legacy_norm", 0.0) if "legacy_norm.weight" in p else x
    if model.pooling == "to_image":
        return x.transpose(1, 2).reshape(len(x), DIM, *grid)
    return x if model.head is None else x @ p["head.weight"].T + p["head.bias"]


def pooled(model: Any, x: Tensor) -> Tensor:
    ends = x[:, 0], x[:, -1]
    return {"bilateral_avg": sum(ends) / 2, "bilateral_flatten": torch.cat(ends, 1)}.get(model.pooling, x)


def normed(x: Tensor, p: dict[str, Tensor], name: str, offset: float, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], offset + p[f"{name}.weight"], p.get(f"{name}.bias"), eps)


def layer(p: dict[str, Tensor], block: str, x: Tensor, grid: Any, reverse: bool) -> Tensor:
    def of(name: str) -> Tensor | None:
        return p.get(f"{block}layer.{name}")

    def headwise(x: Tensor, name: str) -> Tensor:
        weight, bias = p[f"{block}layer.{name}.weight"], of(f"{name}.bias")
        y = torch.einsum("bsni,noi->bsno", x.unflatten(-1, weight.shape[::2]), weight).flatten(2)
        return y if bias is None else y + bias

    x = x.flip(1) if reverse else x
    u, z = F.linear(x, p[f"{block}layer.proj_up.weight"], of("proj_up.bias")).chunk(2, -1)
    square = of("conv.weight")
    if square is not None:
        y = F.conv2d(
            u.transpose(1, 2).unflatten(2, grid), square, of("conv.bias"), 1, square.shape[2] // 2, 1, len(square)
        )
        conv = F.silu(y.flatten(2).transpose(1, 2))
    else:
        name = "conv1d" if of("conv1d.conv.weight") is not None else "conv"
        kernel, bias = p[f"{block}layer.{name}.conv.weight"], p[f"{block}layer.{name}.conv.bias"]
        padded = F.pad(u.transpose(1, 2), (kernel.shape[2] - 1, 0))
        conv = F.silu(F.conv1d(padded, kernel, bias, groups=len(kernel)).transpose(1, 2))
    q, k, v = headwise(conv, "q_proj"), headwise(conv, "k_proj"), headwise(u, "v_proj")
    gates = torch.cat([q, k, v], -1)
    i, f = (
        F.linear(gates, p[f"{block}layer.mlstm_cell.{g}gate.weight"], of(f"mlstm_cell.{g}gate.bias")).transpose(1, 2)
        for g in "if"
    )
    heads = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in (q, k, v))
    h = reference.mlstm(*heads, i, f).transpose(1, 2)
    h = F.layer_norm(h, h.shape[-1:]).flatten(2) * (1 + p[f"{block}layer.mlstm_cell.outnorm.weight"])
    if of("mlstm_cell.outnorm.bias") is not None:
        h = h + of("mlstm_cell.outnorm.bias")
    h = (h + p[f"{block}layer.learnable_skip"] * conv) * F.silu(z)
    y = F.linear(h, p[f"{block}layer.proj_down.weight"], of("proj_down.bias"))
    return y.flip(1) if reverse else y


@every_model
@pytest.mark.parametrize("size", [(8, 12), (16, 4)])
def test_equations(name: str, size: tuple[int, int]) -> None:
    """Values and all gradients; an image of another size too."""
    model, x = build(name).eval(), images(2, *size)
    parameters = dict(model.named_parameters())
    found, expected = model(x), plain(model, parameters, x)
    assert_close_relative(found, expected, bound)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *parameters.values()], allow_unused=True)
    grads = torch.autograd.grad((found * weights).sum(), [x, *parameters.values()], allow_unused=True)
    for key, a, e in zip(["x", *parameters], grads, wanted, strict=True):
        assert (a is None) == (e is None), key
        if a is not None and e is not None and bool(e.abs().max() > 1e-12):
            assert_close_relative(a, e, 10 * bound, key)


LAYER = {"proj_up": (32, 8), "q_proj": (4, 4, 4), "k_proj": (4, 4, 4), "v_proj": (4, 4, 4), "proj_down": (8, 16)}
CELL = {"igate.weight": (4, 48), "igate.bias": (4,), "fgate.weight": (4, 48), "fgate.bias": (4,)}


def names(conv: str, kernel: tuple[int, ...], biases: bool) -> dict[str, tuple[int, ...]]:
    """Of a layer in the public code."""
    found: dict[str, tuple[int, ...]] = {"learnable_skip": (16,), f"{conv}.weight": kernel, f"{conv}.bias": (16,)}
    for name, shape in LAYER.items():
        found[f"{name}.weight"] = shape
        if biases:
            found[f"{name}.bias"] = (shape[0],) if len(shape) == 2 else (16,)
    found |= {f"mlstm_cell.{name}": shape for name, shape in CELL.items()} | {"mlstm_cell.outnorm.weight": (16,)}
    return found | ({"mlstm_cell.outnorm.bias": (16,)} if biases else {})


def test_names_of_the_public_code() -> None:
    common = {"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,), "pos_embed.embed": (1, 2, 3, 8)}
    common |= {"norm.weight": (8,), "norm.bias": (8,), "head.bias": (5,)}
    first = {**common, "head.weight": (5, 8)}
    second = {**common, "head.weight": (5, 16)}
    for i in range(2):
        first |= {f"blocks.{i}.norm.weight": (8,)}
        first |= {f"blocks.{i}.layer.{k}": shape for k, shape in names("conv1d.conv", (16, 1, 4), False).items()}
        for direction in ("rowwise_from_top_left", "rowwise_from_bot_right"):
            block = f"blocks.{i}.{direction}"
            second |= {f"{block}.norm.weight": (8,), f"{block}.norm.bias": (8,)}
            second |= {f"{block}.layer.{k}": shape for k, shape in names("conv", (16, 1, 3, 3), True).items()}
    for name, expected in (("1", first), ("2", second)):
        assert {key: tuple(value.shape) for key, value in build(name).state_dict().items()} == expected


def test_defaults_are_those_of_the_public_models() -> None:
    """ViL-T: 6 million parameters."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model.parameters()) for model in (VisionLSTM(), VisionLSTM2())]
    assert [round(size / 1e6) for size in sizes] == [6, 6]


@every_model
def test_checkpoints_of_another_size(name: str) -> None:
    """Positions are interpolated when they are loaded, with the same result as while they are used."""
    model = build(name).eval()
    larger = build(name, input_shape=(3, 16, 16)).eval()
    larger.load_state_dict(model.state_dict())
    if name == "1, overlapping":  # its positions are interpolated once more
        return
    x = images(2, 16, 16)
    assert_close_relative(larger(x), model(x), bound)


def test_a_classifier_becomes_features() -> None:
    """Its head is left, and so is a norm over the two patches that it pools."""
    features = build("2, features")
    own = features.state_dict()["legacy_norm.weight"].clone()
    whole = build("2", legacy_norm=True).state_dict()
    features.load_state_dict(whole)
    assert torch.equal(features.state_dict()["legacy_norm.weight"], own)
    assert torch.equal(features.state_dict()["norm.weight"], whole["norm.weight"])
    build("1, features").load_state_dict(build("1").state_dict())


def test_dropped_paths() -> None:
    """A row skips a block, or its branch is scaled up; evaluation drops nothing; rates may grow with depth."""
    model = build("1", depth=1, drop_path_rate=0.75, mode=None, pooling=None)
    model.norm = nn.Identity()
    x = images(1).expand(400, -1, -1, -1)
    base = model.pos_embed(model.patch_embed(x)).flatten(1, 2)
    branch = model.eval()(x[:1]) - base[:1]
    model.train()
    factors = ((model(x) - base) / branch)[:, 0, 0]
    dropped = factors.abs() < 1e-6
    assert_close_relative(factors[~dropped], torch.full_like(factors[~dropped], 4.0), 1e-6)
    assert abs(int(dropped.sum()) - 300) < 6 * (400 * 0.75 * 0.25) ** 0.5
    grown = VisionLSTM(**{**SIZES, "depth": 3}, drop_path_rate=0.5, drop_path_decay=True)
    assert [block.drop_path for block in grown.blocks] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("name", ["1", "2"])
def test_training_aids(name: str) -> None:
    """Activation checkpointing gives the same gradients; names of what is decayed; torch.compile; dtypes."""
    model, x = build(name), images().detach()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    model.activation_checkpointing_enable()
    found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(map(torch.equal, found, expected))
    model.activation_checkpointing_disable()
    decayed, others = model.get_weight_decay_optim_group_param_names()
    assert "pos_embed.embed" in others and any(key.endswith("layer.proj_up.weight") for key in decayed)
    assert sorted(decayed + others) == sorted(key for key, _ in model.named_parameters())
    assert not any("norm" in key or key.endswith("bias") for key in decayed)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close_relative(compiled(x), model(x), bound)
    with torch.no_grad():
        assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (VisionLSTM, {"dim": 6}, "dim must be a positive multiple of 4, got 6"),
        (VisionLSTM, {"patch_size": 5}, r"^images must have sizes that are multiples of the patch's, \(5, 5\)"),
        (VisionLSTM, {"patch_size": (4, 4, 4)}, r"patch_size must be a positive number or 2 of them, got \(4, 4, 4\)"),
        (VisionLSTM, {"input_shape": (3,)}, r"input_shape must be \(channels, \*sizes\), 1 to 3 sizes, got \(3,\)"),
        (VisionLSTM, {"output_shape": None}, r"output_shape of a classifier must be \(number of classes,\), got None"),
        (VisionLSTM, {"pooling": "mean"}, "pooling must be None or 'bilateral_avg' with mode='classifier', got 'mean'"),
        (VisionLSTM, {"mode": "features"}, "mode must be 'classifier' or None, got 'features'"),
        (VisionLSTM, {"alternation": "none"}, "alternation must be 'bidirectional', got 'none'"),
        (VisionLSTM, {"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1, got 1.0"),
        (VisionLSTM2, {"mode": None}, "mode must be 'classifier' or 'features', got None"),
        (
            VisionLSTM2,
            {"mode": "features"},
            "pooling must be None or 'to_image' with mode='features', got 'bil",
        ),
        (VisionLSTM2, {"conv_kind": "3d"}, "conv_kind must be one of '2d', 'causal1d', got '3d'"),
        (VisionLSTM2, {"conv_kernel_size": 4}, "conv_kernel_size must be odd for conv_kind='2d', got 4"),
        (VisionLSTM2, {"input_shape": (3, 8)}, "conv_kind='2d' needs 2-D images, got 1-D: conv_kind='causal1d' takes"),
        (VisionLSTM2, {"init_weights": "new"}, "init_weights must be 'original' or 'original-fixed', got 'new'"),
    ],
)
def test_refusals(kind: Any, options: dict[str, Any], message: str) -> None:
    start = "" if message.startswith("^") else f"^{kind.__name__}: "
    with pytest.raises(ValueError, match=start + message):
        kind(**{**SIZES, "output_shape": (CLASSES,), **options})


def test_wrong_images() -> None:
    model = build("2")
    for x in (torch.zeros(2, 8, 12), torch.zeros(2, 1, 8, 12)):
        with pytest.raises(ValueError, match="^images must have 4 dimensions, the second one the 3 channels, got"):
            model(x.double())
    with pytest.raises(ValueError, match=r"^images must have sizes that are multiples of the patch's, \(4, 4\), got"):
        model(images(1, 8, 10))


def test_other_dimensions() -> None:
    """Series and volumes, by the causal convolution."""
    for shape in ((2, 12), (1, 4, 8, 4)):
        options: dict[str, Any] = {"conv_kind": "causal1d", "output_shape": (CLASSES,)}
        model = VisionLSTM2(dim=8, input_shape=shape, patch_size=4, depth=1, **options)
        assert model(torch.randn(3, *shape)).shape == (3, CLASSES)
