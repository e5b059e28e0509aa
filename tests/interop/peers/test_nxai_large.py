"""Agreement with the xLSTMLarge of the public `xlstm` package (PyPI), where it is installed, with its CPU kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_cuda import functional
from xlstm_cuda.models import LargeState, xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.models.large.weights import fuse_weights, split_weights
from xlstm_cuda.testing import assert_close_relative

peer = pytest.importorskip("xlstm.xlstm_large.model")


@pytest.fixture(autouse=True, params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with functional.backend(request.param):
        yield


VOCAB, BLOCKS, CHUNK = 29, 2, 16
KERNELS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "autocast_kernel_dtype": "float32",
    "chunk_size": CHUNK,
    "return_last_states": True,  # their training modes do not work without
}
FIELDS: dict[str, dict[str, Any]] = {
    "single": {},
    "fused": {"weight_mode": "fused"},
    "bias": {"use_bias": True, "add_out_norm": False, "qk_dim_factor": 0.75, "eps": 0.1, "norm_eps": 0.2},
    "fused, bias": {"use_bias": True, "weight_mode": "fused", "v_dim_factor": 0.5},
    "other caps": {"gate_soft_cap": 2.0, "output_logit_soft_cap": None, "ffn_proj_factor": 3.1},
}
names = pytest.mark.parametrize("name", FIELDS)


def pair(name: str, **options: Any) -> tuple[nn.Module, xLSTMLarge]:
    """Theirs with parameters moved away from what could hide a mistake, and ours with its state_dict."""
    torch.manual_seed(0)
    sizes = {"embedding_dim": 32, "num_heads": 2, "num_blocks": BLOCKS, "vocab_size": VOCAB}
    config = peer.xLSTMLargeConfig(**{**sizes, **KERNELS, **FIELDS[name], **options})
    theirs = peer.xLSTMLarge(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    ours = xLSTMLarge(xLSTMLargeConfig.from_dict(asdict(config)))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def ids(seqlen: int) -> Tensor:
    return torch.randint(VOCAB, (3, seqlen), generator=torch.Generator().manual_seed(seqlen))


def as_theirs(state: LargeState) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    return {index: (block.C, block.n, block.m[..., None]) for index, block in enumerate(state)}


def assert_same_state(ours: LargeState, theirs: dict[int, Any], tolerance: float = 1e-5) -> None:
    assert len(ours) == len(theirs)
    for index, expected in theirs.items():
        for actual, value in zip(as_theirs(ours)[index], expected, strict=True):
            assert_close_relative(actual, value, tolerance)


def test_config() -> None:
    """The same fields in the same order, with the same defaults."""
    ours, theirs = fields(xLSTMLargeConfig), fields(peer.xLSTMLargeConfig)
    assert [(f.name, f.default) for f in ours] == [(f.name, f.default) for f in theirs]
    assert [f.name for f in ours if f.default is MISSING] == ["embedding_dim", "num_heads", "num_blocks", "vocab_size"]


@names
def test_keys_and_shapes(name: str) -> None:
    theirs, ours = pair(name)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(expected)


def test_keys_and_shapes_of_7b() -> None:
    options = {**KERNELS, "embedding_dim": 4096, "num_heads": 8, "num_blocks": 32, "vocab_size": 50304}
    with torch.device("meta"):
        theirs = peer.xLSTMLarge(peer.xLSTMLargeConfig(**options)).state_dict()
        ours = xLSTMLarge(xLSTMLargeConfig(**options)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 2.017, 2.6667, 4.02])
@pytest.mark.parametrize("multiple", [1, 3, 64])
def test_feedforward_width(factor: float, multiple: int) -> None:
    ours, theirs = (
        config(32, 2, 1, 5, **KERNELS, ffn_proj_factor=factor, ffn_round_up_to_multiple_of=multiple)
        for config in (xLSTMLargeConfig, peer.xLSTMLargeConfig)
    )
    assert ours.ffn_dim == peer.FeedForward(theirs).up_proj_dim


@names
def test_training_outputs_and_gradients(name: str) -> None:
    theirs, ours = pair(name, norm_reduction_force_float32=False)  # else theirs is not float64
    tokens = ids(3 * CHUNK)
    with torch.no_grad():
        expected, expected_state = theirs(tokens)
        logits, state = ours(tokens)
    assert_close_relative(logits, expected, 1e-5)
    assert_same_state(state, expected_state)

    theirs.double(), ours.double()
    weight = torch.randn(3, 3 * CHUNK, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for model in (theirs, ours):
        logits, state = model(tokens)
        (logits * weight).sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert gradients[key].grad.abs().max() > 0, key
        assert_close_relative(parameter.grad, gradients[key].grad, 1e-9, key)


@names
@pytest.mark.parametrize("seqlen", [1, 5, CHUNK, 2 * CHUNK + 7])
def test_inference_outputs(name: str, seqlen: int) -> None:
    theirs, ours = pair(name, mode="inference")
    with torch.no_grad():
        expected, expected_state = theirs(ids(seqlen))
    logits, state = ours(ids(seqlen))
    assert_close_relative(logits, expected, 1e-5)
    assert_same_state(state, expected_state)
    ours.double()  # in float32 two sizes of a product may be rounded differently
    assert_close_relative(ours.prefill(ids(seqlen))[0], ours(ids(seqlen))[0][:, -1:], 1e-12)


def test_return_last_states() -> None:
    theirs, ours = pair("single", mode="inference", return_last_states=False)
    with torch.no_grad():
        assert_close_relative(ours(ids(5)), theirs(ids(5)), 1e-5)


@names
def test_step_by_step(name: str) -> None:
    theirs, ours = pair(name, mode="inference")
    their_state, state, expected, logits = None, None, [], []
    with torch.no_grad():
        for token in ids(21).split(1, dim=1):
            theirs_now, their_state = theirs(token, their_state)
            now, state = ours.step(token, state)
            expected.append(theirs_now), logits.append(now)
    assert_close_relative(torch.cat(logits, 1), torch.cat(expected, 1), 1e-5)
    assert_same_state(state, their_state)


@names
@pytest.mark.parametrize("following", [1, 20])
def test_states_handed_over(name: str, following: int) -> None:
    """A state of either model continues the sequence in the other one."""
    theirs, ours = pair(name, mode="inference")
    tokens = ids(21 + following)
    with torch.no_grad():
        expected = theirs(tokens)[0][:, 21:]
        their_state = theirs(tokens[:, :21])[1]
        state = ours(tokens[:, :21])[1]
        assert_close_relative(ours(tokens[:, 21:], their_state)[0], expected, 1e-5)
        if following <= 16:
            assert_close_relative(ours.step(tokens[:, 21:], their_state)[0], expected, 1e-5)
        assert_close_relative(theirs(tokens[:, 21:], as_theirs(state))[0], expected, 1e-5)


def test_weights_of_the_other_mode() -> None:
    """Their checkpoint of either mode in our model of the other one; their conversion and ours."""
    single, _ = pair("single", mode="inference")
    fused, _ = pair("fused", mode="inference")
    for theirs, mode in ((single, "fused"), (fused, "single")):
        ours = xLSTMLarge(xLSTMLargeConfig.from_dict({**asdict(theirs.config), "weight_mode": mode}))
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            assert_close_relative(ours(ids(9))[0], theirs(ids(9))[0], 1e-5)
    convert = pytest.importorskip("xlstm.xlstm_large.utils").convert_single_weights_to_fused_weights
    expected = convert(dict(single.state_dict()))  # right for up to ten blocks
    actual = fuse_weights(single.state_dict())
    assert set(actual) == set(expected) == set(fused.state_dict())
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    fused.load_state_dict(actual)
    single.load_state_dict(split_weights(actual, xLSTMLargeConfig.from_dict(asdict(single.config))))


def test_generate() -> None:
    theirs, ours = pair("single", mode="inference")
    new, _ = theirs.generate(ids(6), 8)
    assert torch.equal(ours.generate(ids(6), 8, temperature=0), torch.cat([ids(6), new], 1))


def test_sigmoid_input_gate() -> None:
    """Their CPU kernel returns no state and their layer expects one."""
    theirs, ours = pair("single")
    backends = pytest.importorskip("mlstm_kernels.torch.backend_module")
    kernel = "parallel--native_siging_autograd"
    config = backends.mLSTMBackendConfig(chunkwise_kernel=kernel, return_last_states=False)
    ours.config.chunkwise_kernel = kernel
    for block in theirs.backbone.blocks:
        block.mlstm_layer.mlstm_backend = WithoutState(backends.mLSTMBackend(config))
    with torch.no_grad():
        assert_close_relative(ours(ids(2 * CHUNK))[0], theirs(ids(2 * CHUNK))[0], 1e-5)


class WithoutState(nn.Module):
    def __init__(self, backend: nn.Module) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, **inputs: Any) -> tuple[Tensor, None]:
        return self.backend(**inputs), None
