"""Agreement with the public `xlstm` package (PyPI), where it is installed: keys, initial values, outputs, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch
from torch import nn

from tests.support.nxai_models import CONFIGS, build, copy_weights, ids, randomise, without_compilation
from xlstm_cuda import functional, models
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

xlstm = pytest.importorskip("xlstm")


@pytest.fixture(autouse=True, params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with functional.backend(request.param):
        yield


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Peer and ours with the peer's parameters, loaded through its state_dict."""
    torch.manual_seed(0)
    theirs = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS[name]))
    theirs.reset_parameters()
    randomise(theirs)
    ours = models.xLSTMLMModel(build(xnn, models, **CONFIGS[name]))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


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


def test_their_configs_are_refused() -> None:
    """Half of the imports changed: the classes have the same names."""
    theirs = build(xlstm, xlstm, **CONFIGS["mixed"])
    advice = r"must be xlstm_cuda\..*Config, got xlstm\..*Config: .*from_dict"
    mlstm, slstm = theirs.mlstm_block.mlstm, theirs.slstm_block.slstm
    for module, config in (
        (models.xLSTMLMModel, theirs),
        (xnn.xLSTMBlockStack, theirs),
        (xnn.mLSTMLayer, mlstm),
        (xnn.sLSTMLayer, slstm),
    ):
        with pytest.raises(TypeError, match=advice):
            module(config)
    with pytest.raises(TypeError, match=r"must be .*xLSTMBlockStackConfig, got builtins.dict: .*from_dict"):
        xnn.xLSTMBlockStack(asdict(theirs))
    with pytest.raises(TypeError, match="must be .*xLSTMLargeConfig, got"):
        models.xLSTMLarge(theirs)
    with pytest.raises(ValueError, match=r"must be xlstm_cuda\.nn\.blocks\.mLSTMBlockConfig or None, got xlstm\."):
        xnn.xLSTMBlockStackConfig(mlstm_block=theirs.mlstm_block)


@pytest.mark.parametrize("layout", ["vanilla", "cuda"])
@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoints_of_both_layouts(name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of their block stack and language model, told apart by shapes; in the cuda layout it is saved as it came."""
    source, ours = pair(name)
    without_compilation(monkeypatch)
    theirs = xlstm.xLSTMLMModel(build(xlstm, xlstm, backend=layout, **CONFIGS[name]))
    copy_weights(source, theirs)
    expected = ours.state_dict()
    ours.reset_parameters()
    ours.load_state_dict(theirs.state_dict())
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    if layout == "cuda":
        theirs.load_state_dict(ours.state_dict())

    stack = xnn.xLSTMBlockStack(build(xnn, models, **CONFIGS[name]))
    stack.load_state_dict(theirs.xlstm_block_stack.state_dict())
    x = torch.randn(2, 9, 48)
    with torch.no_grad():
        assert_close_relative(stack(x), source.xlstm_block_stack(x), 1e-5)


def test_wrong_checkpoints_are_refused_whole() -> None:
    theirs, ours = pair("mixed")
    stack = ours.xlstm_block_stack
    longer = xlstm.xLSTMLMModel(build(xlstm, xlstm, num_blocks=4, slstm_at=[1]))
    more_slstm = xlstm.xLSTMLMModel(build(xlstm, xlstm, num_blocks=3, slstm_at=[1, 2]))
    wrong = [
        (stack, theirs, "looks like xLSTMLMModel"),
        (ours, theirs.xlstm_block_stack, "looks like xLSTMBlockStack"),
        (ours, longer, r"extra: xlstm_block_stack.blocks.3.xlstm.learnable_skip \(128,\)"),
        (ours, more_slstm, r"missing: xlstm_block_stack.blocks.2.xlstm.learnable_skip \(128,\)"),
    ]
    for model, source, message in wrong:
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(source.state_dict())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
