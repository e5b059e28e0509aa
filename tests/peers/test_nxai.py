"""Agreement with the public `xlstm` package (PyPI), where it is installed: keys, initial values, outputs, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_cuda import functional, models
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

xlstm = pytest.importorskip("xlstm")


@pytest.fixture(autouse=True, params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with functional.backend(request.param):
        yield


CONFIGS: dict[str, dict[str, Any]] = {
    "mlstm": {"num_blocks": 2, "slstm": False},
    "slstm": {"num_blocks": 3, "mlstm": False},
    "mixed": {"num_blocks": 3, "slstm_at": [1]},
    "bias": {"num_blocks": 2, "slstm_at": [1], "bias": True, "proj_factor": 1.5, "act_fn": "relu^2"},
    "tied": {"num_blocks": 2, "slstm_at": [0], "tie_weights": True, "weight_decay_on_embedding": True},
    "no conv": {"num_blocks": 1, "slstm_at": "all", "slstm_conv": 0, "group_norm_weight": False},
}


def build(library: Any, model: Any, *, num_blocks: int, mlstm: bool = True, slstm: bool = True, **options: Any) -> Any:
    """The same config, written once, in the classes of either library."""
    mlstm_layer = library.mLSTMLayerConfig(
        conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=2, proj_factor=options.pop("proj_factor", 2.0)
    )
    slstm_layer = library.sLSTMLayerConfig(
        backend="vanilla",
        num_heads=2,
        conv1d_kernel_size=options.pop("slstm_conv", 4),
        group_norm_weight=options.pop("group_norm_weight", True),
        bias_init="powerlaw_blockdependent",
    )
    feedforward = library.FeedForwardConfig(proj_factor=1.3, act_fn=options.pop("act_fn", "gelu"))
    return model.xLSTMLMModelConfig(
        mlstm_block=library.mLSTMBlockConfig(mlstm=mlstm_layer) if mlstm else None,
        slstm_block=library.sLSTMBlockConfig(slstm=slstm_layer, feedforward=feedforward) if slstm else None,
        context_length=32,
        num_blocks=num_blocks,
        embedding_dim=48,
        vocab_size=29,
        **options,
    )


def randomise(module: nn.Module) -> None:
    """Move every parameter, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Peer and ours with the peer's parameters, loaded through its state_dict."""
    torch.manual_seed(0)
    theirs = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS[name]))
    theirs.reset_parameters()
    randomise(theirs)
    ours = models.xLSTMLMModel(build(xnn, models, **CONFIGS[name]))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def ids() -> Tensor:
    return torch.randint(29, (2, 21), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_shapes(name: str) -> None:
    theirs, ours = pair(name)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    for key, shape in expected.items():
        if key.endswith("_recurrent_kernel_"):  # built with their "vanilla" layout; ours is the "cuda" one
            expected[key] = torch.Size([shape[0], shape[2], shape[1]])
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients(name: str) -> None:
    theirs, ours = pair(name)
    with torch.no_grad():
        assert_close_relative(ours(ids()), theirs(ids()), 1e-5)

    theirs.double(), ours.double()
    weight = torch.randn(2, 21, 29, generator=torch.Generator().manual_seed(2))
    expected, actual = theirs(ids()), ours(ids())
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        grad, reference = parameter.grad, gradients[key].grad
        if key.endswith("_recurrent_kernel_"):
            reference = reference.transpose(1, 2)
        if key.endswith("slstm_cell._bias_"):
            reference = reference.view(4, 2, 24).transpose(0, 1).flatten()
        assert_close_relative(grad, reference, 1e-5, key)


@pytest.mark.parametrize("name", ["mlstm", "slstm", "mixed"])
def test_their_steps(name: str) -> None:
    theirs, ours = pair(name)
    tokens, their_state, our_state = ids(), None, None
    with torch.no_grad():
        for t in range(tokens.shape[1]):
            expected, their_state = theirs.step(tokens[:, t : t + 1], their_state)
            actual, our_state = ours.step(tokens[:, t : t + 1], our_state)
            assert_close_relative(actual, expected, 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_initial_values(name: str) -> None:
    """Values that are not drawn are equal; those that are have the same mean and spread."""
    torch.manual_seed(3)
    theirs = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS[name]))
    theirs.reset_parameters()
    ours = models.xLSTMLMModel(build(xnn, models, **CONFIGS[name]))
    same_layout = models.xLSTMLMModel(build(xnn, models, **CONFIGS[name]))
    same_layout.load_state_dict(theirs.state_dict())
    expected = dict(same_layout.named_parameters())
    for key, value in ours.named_parameters():
        drawn = value.std() > 0 and not key.endswith(("fgate.bias", "_bias_"))
        if drawn and value.numel() > 100:
            assert value.std().item() == pytest.approx(expected[key].std().item(), rel=0.25), key
            assert abs(value.mean().item()) < 5 * value.std().item() / value.numel() ** 0.5, key
        elif not drawn:
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_weight_decay_groups(name: str) -> None:
    theirs, ours = pair(name)
    expected = theirs.get_weight_decay_optim_group_param_names()
    actual = ours.get_weight_decay_optim_group_param_names()
    assert [sorted(names) for names in actual] == [sorted(names) for names in expected]


@pytest.mark.parametrize("bias_init", ["powerlaw_blockdependent", "small_init", "zeros"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_bias_init(bias_init: str, index: int) -> None:
    options = {"embedding_dim": 16, "num_heads": 2, "bias_init": bias_init, "_num_blocks": 5, "_block_idx": index}
    theirs = xlstm.sLSTMLayer(xlstm.sLSTMLayerConfig(backend="vanilla", **options))
    ours = xnn.sLSTMLayer(xnn.sLSTMLayerConfig(**options))
    bias = ours.slstm_cell._bias_.clone()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(bias, ours.slstm_cell._bias_, rtol=1e-6, atol=1e-6)


def test_config_from_their_dict() -> None:
    theirs = build(xlstm, xlstm, **CONFIGS["mixed"])
    assert (
        models.xLSTMLMModelConfig.from_dict(asdict(theirs)).to_dict()
        == build(xnn, models, **CONFIGS["mixed"]).to_dict()
    )
