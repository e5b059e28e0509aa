"""Configs: fields set after construction, and in a file beside the weights."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from xlstm_cuda import models
from xlstm_cuda import nn as xnn
from xlstm_cuda.nn.config import Config

CONFIGS: dict[str, Config] = {
    "mLSTM layer": xnn.mLSTMLayerConfig(embedding_dim=16),
    "sLSTM layer": xnn.sLSTMLayerConfig(embedding_dim=16, constants={"a": 1.5}),
    "feedforward": xnn.FeedForwardConfig(embedding_dim=16),
    "mLSTM block": xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(embedding_dim=16)),
    "sLSTM block": xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(embedding_dim=16)),
    "stack": xnn.xLSTMBlockStackConfig.from_ratio("1:1", 2, embedding_dim=16),
    "language model": models.xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=16, vocab_size=9),
    "large": models.xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=2, vocab_size=9),
}
MODULES: dict[type[Config], Any] = {
    xnn.mLSTMLayerConfig: xnn.mLSTMLayer,
    xnn.sLSTMLayerConfig: xnn.sLSTMLayer,
    xnn.FeedForwardConfig: xnn.GatedFeedForward,
    xnn.mLSTMBlockConfig: xnn.mLSTMBlock,
    xnn.sLSTMBlockConfig: xnn.sLSTMBlock,
    xnn.xLSTMBlockStackConfig: xnn.xLSTMBlockStack,
    models.xLSTMLMModelConfig: models.xLSTMLMModel,
    models.xLSTMLargeConfig: models.xLSTMLarge,
}
configs = pytest.mark.parametrize("name", CONFIGS)


def lm_config(**fields: Any) -> models.xLSTMLMModelConfig:
    return models.xLSTMLMModelConfig.from_ratio(
        "1:1", fields.pop("num_blocks", 2), vocab_size=9, **{"embedding_dim": 16, **fields}
    )


def built(config: Config) -> nn.Module:
    return MODULES[type(config)](config)


def form(module: nn.Module) -> list[Any]:
    """Shapes, dropout rates and modules: what a config decides about."""
    rates = [module.p for module in module.modules() if isinstance(module, nn.Dropout)]
    names = [(name, type(module)) for name, module in module.named_modules()]
    return [rates, names, *((name, parameter.shape) for name, parameter in module.named_parameters())]


def test_every_config_is_tried() -> None:
    def all_below(cls: type[Config]) -> set[type[Config]]:
        return {cls, *(found for below in cls.__subclasses__() for found in all_below(below))}

    public = {cls for package in (xnn, models) for cls in vars(package).values() if isinstance(cls, type)}
    assert set(map(type, CONFIGS.values())) == public & all_below(Config) == set(MODULES)


@configs
def test_torch_load_reads_configs(name: str) -> None:
    """With weights_only, which is its default; also one whose fields were set by the config around it."""
    config, file = CONFIGS[name], io.BytesIO()
    torch.save({"config": config, "model": built(config).state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["config"] == config and type(loaded["config"]) is type(config)
    built(loaded["config"]).load_state_dict(loaded["model"])


def test_torch_load_reads_a_config_by_its_former_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As files have it that were written when xlstm_cuda.models.lm was one file."""
    config, file = CONFIGS["language model"], io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(type(config), "__module__", "xlstm_cuda.models.lm")
        torch.save(config, file)
    assert b"xlstm_cuda.models.lm\nxLSTMLMModelConfig" in file.getvalue()
    file.seek(0)
    assert torch.load(file, weights_only=True) == config


@configs
def test_copies(name: str) -> None:
    config = CONFIGS[name]
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config)):
        assert other == config and form(built(other)) == form(built(config))


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.5},
        {"bias": True},
        {"embedding_dim": 32},
        {"embedding_dim": 32, "dropout": 0.25, "bias": True},
        {"slstm_at": [0]},
        {"slstm_at": "all"},
        {"slstm_at": []},
        {"mlstm_block": None},
        {"add_post_blocks_norm": False, "add_embedding_dropout": True, "vocab_size": 11, "tie_weights": True},
    ],
    ids=str,
)
def test_fields_set_later_hold(change: dict[str, Any]) -> None:
    """The model is the one that a config with these fields from the start gives."""
    config = lm_config()
    for name, value in change.items():
        setattr(config, name, value)
    model = built(config)
    expected = dataclasses.replace(lm_config(), **change)
    assert config == expected and form(model) == form(built(expected))


def test_all_goes_on_to_mean_all() -> None:
    config = dataclasses.replace(lm_config(), slstm_at="all")
    config.num_blocks = 3
    assert form(built(config)) == form(built(dataclasses.replace(lm_config(), num_blocks=3, slstm_at="all")))
    config.slstm_at = [1]
    config.num_blocks = 4
    built(config)
    assert config.block_map == [0, 1, 0, 0]


def test_nested_fields_set_later_hold() -> None:
    config = lm_config()
    assert config.mlstm_block is not None and config.slstm_block is not None
    config.mlstm_block.mlstm.num_heads = 8
    config.slstm_block.slstm.conv1d_kernel_size = 0
    config.slstm_block.feedforward.proj_factor = 4.0
    blocks: Any = built(config).xlstm_block_stack.blocks
    assert blocks[0].xlstm.mlstm_cell.num_heads == 8
    assert blocks[1].xlstm.conv1d is None and blocks[1].ffn.proj_up.out_features == 2 * 64
    block = xnn.sLSTMBlockConfig()
    block.slstm.embedding_dim = 128
    assert xnn.sLSTMBlock(block).ffn.proj_up.in_features == 128


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "mlstm_block.mlstm.dropout",
            "mLSTMLayerConfig: dropout is that of xLSTMLMModelConfig, set it there; it is 0.0",
        ),
        ("mlstm_block.mlstm.bias", "mLSTMLayerConfig: bias is that of xLSTMLMModelConfig"),
        ("mlstm_block.mlstm.embedding_dim", "mLSTMLayerConfig: embedding_dim is that of xLSTMLMModelConfig"),
        ("slstm_block.slstm.dropout", "sLSTMLayerConfig: dropout is that of xLSTMLMModelConfig"),
        ("slstm_block.feedforward.embedding_dim", "FeedForwardConfig: embedding_dim is that of sLSTMLayerConfig"),
    ],
)
def test_what_the_outer_config_decides_is_refused_inside(path: str, message: str) -> None:
    config: Any = lm_config()
    *parts, name = path.split(".")

    def inner(outer: Any) -> Any:
        for part in parts:
            outer = getattr(outer, part)
        return outer

    for outer in (config, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        built(outer)
        setattr(inner(outer), name, 0.75)
        with pytest.raises(ValueError, match=message):
            built(outer)
        assert getattr(dataclasses.replace(inner(outer), **{name: 48}), name) == 48  # a config of its own


def test_the_same_set_inside_and_outside() -> None:
    block = xnn.sLSTMBlockConfig()
    block.slstm.embedding_dim = 64
    assert block.feedforward is not None
    block.feedforward.embedding_dim = 64
    assert form(built(block)) == form(built(xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(embedding_dim=64))))


def test_a_nested_config_stays_the_same_object() -> None:
    """Who holds it can set it between two models."""
    config = lm_config()
    assert config.mlstm_block is not None
    layer = config.mlstm_block.mlstm
    built(config)
    layer.num_heads = 8
    blocks: Any = built(config).xlstm_block_stack.blocks
    assert blocks[0].xlstm.mlstm_cell.num_heads == 8


def test_equal_after_a_round_trip_through_a_dict() -> None:
    for config in (lm_config(), dataclasses.replace(lm_config(), slstm_at="all")):
        assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("sLSTM layer", "bias_init", "nothing", "bias_init must be one of"),
        ("feedforward", "act_fn", "nothing", "act_fn must be one of"),
        ("sLSTM block", "slstm.num_heads", 3, "num_heads must divide embedding_dim 16, got 3"),
        ("stack", "slstm_at", [2], "slstm_at must hold positions from 0 to 1, got 2"),
        ("stack", "mlstm_block", 3, "mlstm_block must be"),
        ("stack", "num_blocks", -1, "num_blocks must be >= 0"),
        ("stack", "slstm_block.slstm.bias_init", "nothing", "bias_init must be one of"),
        ("language model", "vocab_size", 0, "vocab_size must be positive"),
        ("large", "num_heads", 3, "num_heads must divide the width 8"),
        ("large", "mode", "nothing", "mode must be one of"),
    ],
)
def test_wrong_values_set_later_are_refused(name: str, field: str, value: object, message: str) -> None:
    config: Any = copy.deepcopy(CONFIGS[name])
    inner = config
    *parts, last = field.split(".")
    for part in parts:
        inner = getattr(inner, part)
    setattr(inner, last, value)
    with pytest.raises(ValueError, match=message):
        built(config)


@pytest.mark.parametrize(
    "factor",
    [1e308, 1e300, 10**400, float("inf"), float("nan")],
    ids=lambda x: f"{x:.3}" if isinstance(x, float) else "int",
)
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("mLSTM layer", "proj_factor"),
        ("feedforward", "proj_factor"),
        ("sLSTM block", "feedforward.proj_factor"),
        ("language model", "mlstm_block.mlstm.proj_factor"),
        *(("large", field) for field in ("qk_dim_factor", "v_dim_factor", "ffn_proj_factor")),
    ],
)
def test_factors_that_give_no_size(name: str, field: str, factor: float) -> None:
    config: Any = copy.deepcopy(CONFIGS[name])
    inner = config
    *parts, last = field.split(".")
    for part in parts:
        inner = getattr(inner, part)
    setattr(inner, last, factor)
    with pytest.raises(ValueError, match=f"{last} (times embedding_dim must be the size of a tensor|must be positive)"):
        built(config)
