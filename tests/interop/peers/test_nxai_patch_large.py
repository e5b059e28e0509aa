"""xlstm_cuda.patch on xLSTMLarge of the public `xlstm` package and mLSTMBackend of `mlstm_kernels`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.block_steps import counted
from tests.support.nxai_models import randomise, refuse
from xlstm_cuda import patch, unpatch
from xlstm_cuda.interop import large as large_parts
from xlstm_cuda.testing import assert_close_relative, gradients, mlstm_inputs, relative_error

pytest.importorskip("xlstm")
pytest.importorskip("mlstm_kernels")
from mlstm_kernels.torch.backend_module import mLSTMBackend, mLSTMBackendConfig  # noqa: E402
from xlstm.xlstm_large.components import MultiHeadLayerNorm, RMSNorm  # noqa: E402
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig  # noqa: E402

# Kernels that need no GPU; chunks of 16 tokens, with exact gradients or with those of their Triton kernels.
AUTOGRAD, CUSTOM = "chunkwise--native_autograd", "chunkwise--native_custbw"


def large(**options: Any) -> Any:
    torch.manual_seed(0)
    kernels = {"chunkwise_kernel": AUTOGRAD, "sequence_kernel": "native_sequence__native", "step_kernel": "native"}
    config = {"return_last_states": True, "chunk_size": 16, "norm_reduction_force_float32": False, **kernels, **options}
    built = xLSTMLarge(xLSTMLargeConfig(embedding_dim=32, num_heads=2, num_blocks=2, vocab_size=29, **config))
    randomise(built)
    return built


def ids(length: int = 32) -> Tensor:
    return torch.randint(29, (3, length), generator=torch.Generator().manual_seed(1))


def weight_gradients(built: Any, logits: Tensor) -> dict[str, Tensor]:
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    names, parameters = zip(*built.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((logits * weight).sum(), parameters), strict=True))


def flat(state: dict[int, Any]) -> list[Tensor]:
    return [part for layer in state.values() for part in layer]


@pytest.mark.parametrize("weight_mode", ["single", "fused"])
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_outputs_and_states_stay_and_come_back(mode: str, weight_mode: str) -> None:
    built = large(mode=mode, weight_mode=weight_mode)
    expected, expected_state = built(ids())
    report = patch(built)
    layers = "1 xLSTMLarge, 1 xLSTMLargeBlockStack, 2 mLSTMBlocks, 5 RMSNorms, 2 mLSTMLayers, 2 FeedForwards"
    assert str(report) == f"2 mLSTMBackends; {layers}"
    logits, state = built(ids())
    for actual, reference in zip((logits, *flat(state)), (expected, *flat(expected_state)), strict=True):
        assert_close_relative(actual, reference, 1e-5)
    for actual, reference in zip(flat(built(ids(7), state)[1]), flat(state), strict=True):
        assert actual.shape == reference.shape
    assert unpatch(built).modules == report.modules
    assert torch.equal(built(ids())[0], expected)


@pytest.mark.parametrize("weight_mode", ["single", "fused"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_decode_step_is_one_op_a_block(hooked: bool, weight_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = large(weight_mode=weight_mode, mode="inference")
    with torch.no_grad():
        _, state = built(ids(5))
        expected, expected_state = built(ids(1), copy.deepcopy(state))
        patch(built)
        for block in built.backbone.blocks if hooked else ():
            block.mlstm_layer.ogate_act_fn.register_forward_hook(lambda *_: None)
        steps = counted(monkeypatch, large_parts)
        logits, after = built(ids(1), state)
    assert steps == ([] if hooked else [True] * 2)
    for actual, reference in zip((logits, *flat(after)), (expected, *flat(expected_state)), strict=True):
        assert_close_relative(actual, reference, 1e-5)


@pytest.mark.parametrize("weight_mode", ["single", "fused"])
def test_gradients(weight_mode: str) -> None:
    built = large(weight_mode=weight_mode).double()
    expected = weight_gradients(built, built(ids())[0])
    patch(built)
    for key, grad in weight_gradients(built, built(ids())[0]).items():
        assert_close_relative(grad, expected[key], 1e-9, key)


@pytest.mark.parametrize("how", ["float32", "bfloat16", "autocast"])
def test_norms_and_the_output_gate_are_ours(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = large(norm_reduction_force_float32=True)
    built = built.bfloat16() if how == "bfloat16" else built
    patch(built)
    with monkeypatch.context() as context, torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        refuse(context, RMSNorm, MultiHeadLayerNorm, nn.Sigmoid)
        built(ids())
        built.backbone.blocks[0].mlstm_layer.multihead_norm.register_forward_hook(lambda *_: None)
        with pytest.raises(AssertionError, match="was called"):
            built(ids())


def test_norms_in_float64_stay() -> None:
    """Which theirs reduces in float32 unless told otherwise."""
    built = large(norm_reduction_force_float32=True).double()
    expected = built(ids())[0]
    patch(built)
    assert_close_relative(built(ids())[0], expected, 1e-12)


def test_any_length_and_no_states_in_training() -> None:
    """Theirs needs multiples of the chunk; with return_last_states=False, its default, it cannot train at all."""
    for built, length in ((large(), 21), (large(return_last_states=False), 32)):
        with pytest.raises((AssertionError, ValueError), match="not divisible by chunk size|too many values to unpack"):
            built(ids(length))
        exact = large(mode="inference")(ids(length))[0]
        patch(built)
        result = built(ids(length))
        assert_close_relative(result if length == 32 else result[0], exact, 1e-5)


@pytest.mark.parametrize("kernel", [AUTOGRAD, CUSTOM])
def test_gradients_through_states(kernel: str) -> None:
    """Two segments in training. Theirs overwrites the state that backward needs."""
    tokens, built = ids(48), large(chunkwise_kernel=kernel).double()

    def segments() -> Tensor:
        first, state = built(tokens[:, :16])
        second, _ = built(tokens[:, 16:], state)
        return torch.cat([first, second], dim=1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation|modified inplace"):
        segments().sum().backward()
    patch(built)
    expected = weight_gradients(built, built(tokens)[0])
    for key, grad in weight_gradients(built, segments()).items():
        assert_close_relative(grad, expected[key], 1e-9, key)


def test_a_detached_state_is_not_overwritten_in_training() -> None:
    built = large()
    patch(built)
    _, state = built(ids(16))
    state = {layer: tuple(part.detach() for part in parts) for layer, parts in state.items()}
    before = copy.deepcopy(state)
    built(ids(7), state)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(flat(state), flat(before), strict=True))


@torch.no_grad()
def test_generation() -> None:
    """Without gradients the given state is overwritten, as theirs is."""
    built = large(mode="inference")
    expected, _ = built.generate(ids(7), max_length=6)
    patch(built)
    tokens, _ = built.generate(ids(7), max_length=6)
    assert torch.equal(tokens, expected)
    whole, _ = built(ids(9))
    _, state = built(ids(9)[:, :4])
    _, same = built(ids(9)[:, 4:8], state)
    assert all(a is b for a, b in zip(flat(same), flat(state), strict=True))
    assert_close_relative(built(ids(9)[:, 8:], state)[0], whole[:, 8:], 1e-5)


def test_compile_and_copies() -> None:
    built = large()
    patch(built)
    expected = weight_gradients(built, built(ids(21))[0])
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    for key, grad in weight_gradients(built, compiled(ids(21))[0]).items():
        assert_close_relative(grad, expected[key], 1e-5, key)
    for copied in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert torch.equal(copied(ids(21))[0], built(ids(21))[0])
        unpatch(copied)
        assert_close_relative(copied(ids())[0], built(ids())[0], 1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast: bool) -> None:
    exact = large().double()(ids())[0]
    built = large() if autocast else large().bfloat16()

    def run() -> tuple[Tensor, dict[int, Any]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return built(ids())

    theirs = relative_error(run()[0], exact)
    patch(built)
    logits, state = run()
    assert relative_error(logits, exact) < max(1.25 * theirs, 0.02)
    assert {part.dtype for part in flat(state)} == {torch.float32}


def test_gates_and_the_kernel_dtype_under_autocast() -> None:
    built, seen = large(autocast_kernel_dtype="float32"), []
    layer = built.backbone.blocks[0].mlstm_layer
    layer.mlstm_backend.register_forward_hook(
        lambda module, args, inputs, result: seen.extend((inputs["i"].dtype, result[0].dtype)), with_kwargs=True
    )
    patch(built)
    with torch.autocast("cpu", torch.bfloat16):
        built(ids())
    assert seen == [torch.float32, torch.float32]


# The backend by itself


def backend(**options: Any) -> Any:
    return mLSTMBackend(mLSTMBackendConfig(**{"chunk_size": 16, **options}))


def inputs(length: int, state: bool = False, **options: Any) -> dict[str, Any]:
    return mlstm_inputs(2, 3, length, 8, 16, dtype=torch.float64, state=state, requires_grad=True, **options)


def call(built: Any, given: dict[str, Any], **options: Any) -> Any:
    arguments = {key: value for key, value in given.items() if key in ("q", "k", "v", "i", "f")}
    if given.get("initial_state") is not None:
        C, n, m = given["initial_state"]
        options |= {"c_initial": C, "n_initial": n, "m_initial": m[..., None]}
    return built(**arguments, **options)


@pytest.mark.parametrize("state", [False, True])
def test_backend_through_the_final_state(state: bool) -> None:
    """Of a loss on the final state too: equal to autograd of theirs, where the custom backward of theirs is wrong."""
    given, errors = inputs(32, state), {}

    def grads(built: Any) -> dict[str, Tensor]:
        h, (C, n, _) = call(built, given)
        return gradients([h, C, n], given)

    expected = grads(backend())
    for name, built in (("theirs", backend(chunkwise_kernel=CUSTOM)), ("ours", backend(chunkwise_kernel=CUSTOM))):
        if name == "ours":
            patch(built)
        actual = grads(built)
        errors[name] = max(relative_error(actual[key], grad) for key, grad in expected.items() if key != "m0")
    assert errors["ours"] < 1e-9
    assert errors["theirs"] > 0.01


@pytest.mark.parametrize("normalize", [True, False])
def test_sigmoid_input_gate(normalize: bool) -> None:
    options = {"chunkwise_kernel": "parallel--native_siging_autograd", "return_last_states": False}
    built, given = backend(normalize_siging=normalize, **options), inputs(21)
    expected = call(built, given)
    expected_grads = gradients([expected], given)
    patch(built)
    actual = call(built, given)
    assert_close_relative(actual, expected, 1e-11)
    for key, grad in gradients([actual], given).items():
        assert_close_relative(grad, expected_grads[key], 1e-9, key)
    h, state = call(built, given, return_last_states=True)  # theirs has no states here
    assert_close_relative(h, actual, 1e-11)
    assert [tuple(part.shape) for part in state] == [(2, 3, 8, 16), (2, 3, 8), (2, 3, 1)]


def test_steps_with_a_sigmoid_input_gate() -> None:
    """Theirs takes a step with an exponential input gate all the same."""
    built, given = backend(chunkwise_kernel="parallel--native_siging_autograd", return_last_states=False), inputs(1)
    expected = call(built, given)
    assert relative_error(call(built, given, mode="inference")[0], expected) > 0.01
    patch(built)
    assert_close_relative(call(built, given, mode="inference")[0], expected, 1e-11)


@pytest.mark.parametrize("kernel", [AUTOGRAD, "parallel--native_autograd", "parallel--native_stablef_autograd"])
@pytest.mark.parametrize("mode", ["train", "train_with_padding", "inference"])
def test_modes(kernel: str, mode: str) -> None:
    built, given = backend(chunkwise_kernel=kernel, mode=mode, return_last_states=False), inputs(21)
    patch(built)
    exact = call(backend(mode="inference"), given)
    result = call(built, given)
    assert isinstance(result, tuple) == (mode == "inference")
    h, state = result if mode == "inference" else call(built, given, return_last_states=True)
    for actual, reference in zip((h, *state), (exact[0], *exact[1]), strict=True):
        assert_close_relative(actual, reference, 1e-5)  # their inference mode keeps states in float32
    assert isinstance(call(built, given, mode="inference"), tuple)
    with pytest.raises(ValueError, match="mode must be"):
        call(built, given, mode="test")


def test_incomplete_states() -> None:
    built = large()
    patch(built)
    _, state = built(ids())
    for wrong in ({}, {0: state[0]}, state | {2: state[1]}, tuple(state.values())):
        with pytest.raises(ValueError, match="state must be a dict of 2 blocks"):
            built(ids(), wrong)
    with pytest.raises(ValueError, match=r"must be a tuple \(C, n, m\), got 2 parts"):
        built(ids(), state | {1: state[1][:2]})
    own, given = backend(), inputs(21, state=True)
    patch(own)
    with pytest.raises(ValueError, match="must be given together"):
        call(own, given | {"initial_state": None}, c_initial=given["initial_state"].C)


def test_hugging_face() -> None:
    """transformers builds its xLSTM from these modules where xlstm is installed."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_heads": 2, "num_hidden_layers": 2, "num_blocks": 2, "vocab_size": 29}
    kernels = {"chunkwise_kernel": AUTOGRAD, "sequence_kernel": "native_sequence__native", "step_kernel": "native"}
    built = transformers.xLSTMForCausalLM(transformers.xLSTMConfig(**sizes, **kernels, chunk_size=16)).eval()
    with torch.no_grad():
        expected = built(ids(21)).logits
        tokens = built.generate(ids(5), max_new_tokens=6, do_sample=False)
        assert str(patch(built)).startswith("2 mLSTMBackends")
        assert_close_relative(built(ids(21)).logits, expected, 1e-5)
        assert torch.equal(built.generate(ids(5), max_new_tokens=6, do_sample=False), tokens)
    built.train()(ids(21), use_cache=True).logits.sum().backward()
    unpatch(built)
    with torch.no_grad():
        assert torch.equal(built.eval()(ids(21)).logits, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation|modified inplace"):
        built.train()(ids(21), use_cache=True).logits.sum().backward()
