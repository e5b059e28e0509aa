"""xLSTMLarge: against the recurrence written plainly, states, resets, both layouts of weights, precision, saving."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from tests.support.machine import traced
from tests.support.rounding import distance
from xlstm_cuda import MLSTMState, functional
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.models.large.layers import GateLinear
from xlstm_cuda.models.large.weights import fuse_weights, split_weights
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

VOCAB, DIM, HEADS, BLOCKS = 19, 32, 2, 2
pytestmark = pytest.mark.usefixtures("module_backend")


FIELDS: dict[str, dict[str, Any]] = {
    "single": {},
    "fused": {"weight_mode": "fused"},
    "bias": {"use_bias": True, "add_out_norm": False, "qk_dim_factor": 0.75, "eps": 0.1, "norm_eps": 0.2},
    "fused, bias": {"use_bias": True, "weight_mode": "fused", "v_dim_factor": 0.5, "gate_soft_cap": 2.0},
    "no caps": {"gate_soft_cap": None, "output_logit_soft_cap": None, "ffn_round_up_to_multiple_of": 5},
    "sigmoid input gate": {"chunkwise_kernel": "chunkwise--triton_xl_chunk_siging"},
}


def config(**fields: Any) -> xLSTMLargeConfig:
    sizes = {"embedding_dim": DIM, "num_heads": HEADS, "num_blocks": BLOCKS, "vocab_size": VOCAB}
    return xLSTMLargeConfig(**{**sizes, **fields})


def build(dtype: torch.dtype = torch.float64, noise: float = 0.3, **fields: Any) -> xLSTMLarge:
    """A model with every parameter moved away from its initial value: zeros hide mistakes."""
    torch.manual_seed(0)
    model = xLSTMLarge(config(**fields)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += noise * torch.randn(parameter.shape)
            if name.endswith(("igate_preact.bias", "ifgate_preact.bias")):
                parameter[:HEADS] += 9  # else nothing is written
    return model


def ids(batch: int, seqlen: int) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seqlen)
    return torch.randint(VOCAB, (batch, seqlen), generator=generator)


def state_like(model: xLSTMLarge, batch: int, seed: int = 5) -> tuple[MLSTMState, ...]:
    """A random state of all blocks, leaves that require grad."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    qk, v = model.config.qk_dim // HEADS, model.config.v_dim // HEADS

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, HEADS, *shape, dtype=torch.float64, generator=generator).requires_grad_()

    return tuple(MLSTMState(draw(qk, v), draw(qk), draw()) for _ in range(BLOCKS))


def assert_states_close(actual: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert_close_relative(a, b, tolerance)


class Plain:
    """The model token by token (arXiv 2405.04517, equations 19-27, in the blocks of arXiv 2503.13427)."""

    def __init__(self, config: xLSTMLargeConfig, parameters: Mapping[str, Tensor]) -> None:
        self.config, self.parameters = config, parameters

    def linear(self, name: str, x: Tensor) -> Tensor:
        y, bias = x @ self.parameters[f"{name}.weight"].T, self.parameters.get(f"{name}.bias")
        return y if bias is None else y + bias

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return self.scaled(name, x / (x.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt())

    def head_norm(self, name: str, x: Tensor) -> Tensor:
        """x (B, H, D)."""
        x = x - x.mean(-1, keepdim=True)
        return self.scaled(name, (x / (x.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()).flatten(1))

    def scaled(self, name: str, x: Tensor) -> Tensor:
        return x * self.parameters[f"{name}.weight"] + self.parameters.get(f"{name}.bias", torch.zeros(()))

    def projections(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        """q, k, v, o, i, f."""
        if self.config.weight_mode == "single":
            maps = ("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact")
            return tuple(self.linear(f"{name}.{part}", x) for part in maps)
        qk, v = self.config.qk_dim, self.config.v_dim
        qkvo, gates = (self.linear(f"{name}.{part}", x) for part in ("qkv_opreact", "ifgate_preact"))
        bounds = (0, qk, 2 * qk, 2 * qk + v, 2 * qk + 2 * v)
        parts = tuple(qkvo[:, a:b] for a, b in zip(bounds, bounds[1:], strict=False))
        return (*parts, gates[:, :HEADS], gates[:, HEADS:])

    def mlstm(self, name: str, x: Tensor, state: MLSTMState) -> tuple[Tensor, MLSTMState]:
        q, k, v, o, i, f = self.projections(name, x)
        q, k, v = (u.reshape(len(x), HEADS, -1) for u in (q, k, v))
        i, f = (capped(gate, self.config.gate_soft_cap) for gate in (i, f))
        C, n, m = state
        if "siging" in self.config.chunkwise_kernel:
            forget, write, floor = torch.sigmoid(f), torch.sigmoid(i), torch.ones(())
        else:
            decayed = m - torch.log1p(torch.exp(-f))
            m = torch.maximum(decayed, i)
            forget, write, floor = torch.exp(decayed - m), torch.exp(i - m), torch.exp(-m)
        C = forget[..., None, None] * C + write[..., None, None] * k[..., :, None] * v[..., None, :]
        n = forget[..., None] * n + write[..., None] * k
        q = q / q.shape[-1] ** 0.5
        size = torch.maximum((q * n).sum(-1).abs(), floor) + self.config.eps
        h = torch.einsum("bhk,bhkv->bhv", q, C) / size[..., None]
        h = torch.sigmoid(o) * self.head_norm(f"{name}.multihead_norm", h)
        return self.linear(f"{name}.out_proj", h), MLSTMState(C, n, m)

    def feedforward(self, name: str, x: Tensor) -> Tensor:
        if self.config.weight_mode == "single":
            gate, up = self.linear(f"{name}.proj_up_gate", x), self.linear(f"{name}.proj_up", x)
        else:
            gate, up = self.linear(f"{name}.proj_up_gate_z", x).chunk(2, -1)
        return self.linear(f"{name}.proj_down", gate * torch.sigmoid(gate) * up)

    def token(self, ids: Tensor, states: list[MLSTMState]) -> Tensor:
        """ids (B,) -> logits (B, V); overwrites the states."""
        x = self.parameters["embedding.weight"][ids]
        for index, state in enumerate(states):
            name = f"backbone.blocks.{index}"
            y, states[index] = self.mlstm(f"{name}.mlstm_layer", self.rms_norm(f"{name}.norm_mlstm", x), state)
            x = x + y
            x = x + self.feedforward(f"{name}.ffn", self.rms_norm(f"{name}.norm_ffn", x))
        if self.config.add_out_norm:
            x = self.rms_norm("backbone.out_norm", x)
        return capped(self.linear("lm_head", x), self.config.output_logit_soft_cap)

    def run(self, ids: Tensor, state: tuple[MLSTMState, ...]) -> tuple[Tensor, tuple[MLSTMState, ...]]:
        states = list(state)
        logits = torch.stack([self.token(token, states) for token in ids.T], 1)
        return logits, tuple(states)


def capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else torch.tanh(x / cap) * cap


def loss(logits: Tensor, state: tuple[MLSTMState, ...]) -> Tensor:
    """A random linear function of all outputs."""
    generator = torch.Generator(logits.device).manual_seed(9)
    leaves = [logits, *pytree.tree_leaves(state)]
    return sum((torch.randn(x.shape, dtype=x.dtype, generator=generator) * x).sum() for x in leaves)


@pytest.mark.parametrize("name", FIELDS)
def test_against_the_plain_recurrence(name: str) -> None:
    """Outputs, final state, and the gradients of every parameter and of the initial state."""
    model, tokens = build(**FIELDS[name]), ids(2, 11)
    state = state_like(model, 2)
    parameters = dict(model.named_parameters())
    inputs = [*parameters.values(), *pytree.tree_leaves(state)]
    expected, expected_state = Plain(model.config, parameters).run(tokens, state)
    expected_grads = torch.autograd.grad(loss(expected, expected_state), inputs)
    logits, final = model(tokens, state, True)
    assert_close_relative(logits, expected, 1e-11)
    assert_states_close(final, expected_state, 1e-11)
    names = [*parameters, *(f"state {n}" for n in range(3 * BLOCKS))]
    grads = torch.autograd.grad(loss(logits, final), inputs)
    for key, actual, wanted in zip(names, grads, expected_grads, strict=True):
        assert wanted.abs().max() > 0, key
        assert_close_relative(actual, wanted, 1e-9, key)


@pytest.mark.parametrize("name", FIELDS)
def test_float32(name: str) -> None:
    model, tokens = build(torch.float32, **FIELDS[name]), ids(2, 37)
    wide = {key: value.double() for key, value in model.state_dict().items()}
    empty = tuple(MLSTMState(*(torch.zeros_like(x) for x in block)) for block in state_like(model, 2))
    with torch.no_grad():
        assert_close_relative(model(tokens), Plain(model.config, wide).run(tokens, empty)[0], 1e-5)


@pytest.mark.parametrize("mode", ["train", "train_with_padding", "inference"])
@pytest.mark.parametrize("weight_mode", ["single", "fused"])
@pytest.mark.parametrize("seqlen", [0, 1, 5, 37])
def test_forms_agree(seqlen: int, weight_mode: str, mode: str) -> None:
    """forward, prefill, steps of one and several tokens, and chunks with a carried state."""
    model, tokens = build(torch.float32, weight_mode=weight_mode).double(), ids(2, seqlen)
    model.config.mode = mode
    close = 1e-10 if mode != "inference" else 1e-5  # C of states is rounded to float32
    with torch.no_grad():
        expected, final = model(tokens, return_state=True)
        assert expected.shape == (2, seqlen, VOCAB)
        assert torch.equal(model(tokens), expected)
        for sizes in ([1], [3, 1, 16], [seqlen // 2 + 1]):
            parts, state, start = [expected[:, :0]], None, 0
            while start < seqlen:
                part = tokens[:, start : start + sizes[len(parts) % len(sizes)]]
                few = part.shape[1] <= 16
                logits, state = model.step(part, state) if few else model(part, state, return_state=True)
                parts.append(logits)
                start += part.shape[1]
            assert_close_relative(torch.cat(parts, 1), expected, close)
            if seqlen:
                assert_states_close(state, final, close)
        if seqlen:
            last, state = model.prefill(tokens[:, seqlen // 2 :], model(tokens[:, : seqlen // 2], return_state=True)[1])
            assert_close_relative(last, expected[:, -1:], close)
            assert_states_close(state, final, close)


def test_gradients_through_steps_and_chunks() -> None:
    model, tokens = build(), ids(2, 12)
    loss(*model(tokens, return_state=True)).backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()
    first, state = model(tokens[:, :7], return_state=True)
    second, state = model.step(tokens[:, 7:], state)
    loss(torch.cat([first, second], 1), state).backward()
    for key, parameter in model.named_parameters():
        assert_close_relative(parameter.grad, expected[key], 1e-10, key)


def test_reset_begins_a_sequence() -> None:
    model, tokens = build(), ids(2, 20)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[0, 7] = reset[0, 15] = reset[1, 0] = True
    state = state_like(model, 2)
    logits, final = model(tokens, state, True, reset=reset)
    rows = [[(0, 7), (7, 15), (15, 20)], [(0, 20)]]
    for row, bounds in enumerate(rows):
        for begin, end in bounds:
            mine = pytree.tree_map(lambda x: x[row : row + 1], state)  # noqa: B023
            before = mine if (row, begin) == (0, 0) else None
            expected, after = model(tokens[row : row + 1, begin:end], before, True)
            assert_close_relative(logits[row : row + 1, begin:end], expected, 1e-10)
        assert_states_close(pytree.tree_map(lambda x: x[row : row + 1], final), after, 1e-10)  # noqa: B023
    last, prefilled = model.prefill(tokens, state, reset=reset)
    assert_close_relative(last, logits[:, -1:], 1e-12)
    assert_states_close(prefilled, final, 1e-12)


def test_states_that_are_taken() -> None:
    model, tokens = build(), ids(2, 9)
    state = model(tokens[:, :4], return_state=True)[1]
    public = {1: None, 0: (state[0].C, state[0].n, state[0].m[..., None])}
    expected = model(tokens[:, 4:], (state[0], None))
    before = [x.clone() for x in public[0]]
    assert torch.equal(model(tokens[:, 4:], public), expected)
    assert_close_relative(model.step(tokens[:, 4:], public)[0], expected, 1e-10)
    assert all(torch.equal(x, y) for x, y in zip(public[0], before, strict=True)), "a given state was changed"


def test_return_last_states() -> None:
    model, tokens = build(), ids(2, 4)
    expected = model(tokens, return_state=True)
    model.config.return_last_states = True
    logits, state = model(tokens)
    assert torch.equal(logits, expected[0])
    assert_states_close(state, expected[1], 0)


def test_inference_mode_records_nothing() -> None:
    model, tokens = build(torch.float32, mode="inference"), ids(2, 9)
    logits, state = model(tokens, return_state=True)
    assert not any(x.requires_grad for x in pytree.tree_leaves((logits, state)))
    assert not model.prefill(tokens)[0].requires_grad and not model.step(tokens)[0].requires_grad
    assert torch.is_grad_enabled()
    model.config.mode = "train"
    assert model(tokens).requires_grad
    assert torch.equal(model(tokens), logits)
    with torch.no_grad():
        assert not model(tokens).requires_grad


def test_a_models_mode_is_its_own() -> None:
    """Of two models made from one config, as teacher and student are, each has its own."""
    shared = config()
    teacher, student = xLSTMLarge(shared), xLSTMLarge(shared)
    teacher.config.mode = "inference"
    assert not teacher(ids(1, 3)).requires_grad and student(ids(1, 3)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inference_state_dtype(dtype: torch.dtype) -> None:
    fields = {"mode": "inference", "inference_state_dtype": str(dtype).removeprefix("torch.")}
    model, tokens = build(torch.float32, **fields), ids(2, 12)
    for _, state in (model(tokens, return_state=True), model.prefill(tokens), model.step(tokens)):
        assert [tuple(x.dtype for x in block) for block in state] == [(dtype, torch.float32, torch.float32)] * BLOCKS
    following, _ = model.step(ids(2, 3), state)
    exact = tuple(MLSTMState(block.C.float(), block.n, block.m) for block in state)
    model.config.mode = "train"
    assert_close_relative(following, model(ids(2, 3), exact)[:, : following.shape[1]], 2e-2)
    assert_close_relative(model.step(ids(2, 1), state)[0], model.step(ids(2, 1), exact)[0], 1e-5)


def test_generate() -> None:
    model, prompt = build(), ids(3, 4)
    expected = prompt
    for _ in range(5):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(prompt, 5, temperature=0), expected)
    sampled = model.generate(prompt, 5, seed=3, top_k=5)
    assert torch.equal(sampled, model.generate(prompt, 5, seed=3, top_k=5)) and sampled.shape == (3, 9)
    with pytest.raises(ValueError, match="generate: top_k"):
        model.generate(prompt, 5, top_k=0)


@pytest.mark.parametrize("use_bias", [False, True])
def test_either_layout_loads_into_either(use_bias: bool) -> None:
    single, fused = (build(weight_mode=mode, use_bias=use_bias) for mode in ("single", "fused"))
    assert not torch.equal(fused(ids(2, 3)), single(ids(2, 3)))
    checkpoint = single.state_dict()
    fused.load_state_dict(checkpoint)
    assert_close_relative(fused(ids(2, 9)), single(ids(2, 9)), 1e-12)
    again = build(use_bias=use_bias)
    again.reset_parameters()
    again.load_state_dict(fused.state_dict())
    for key, value in again.state_dict().items():
        assert torch.equal(value, checkpoint[key]), key


def test_conversion_of_weights() -> None:
    """Both ways, with more than ten blocks, any prefix, and nothing shared: safetensors refuses shared memory."""
    fields = {"num_blocks": 12, "use_bias": True, "embedding_dim": 8, "qk_dim_factor": 0.5}
    model, other = xLSTMLarge(config(**fields)), xLSTMLarge(config(**fields, weight_mode="fused"))
    single = {f"wrapped.{key}": value for key, value in model.state_dict().items()}
    fused = fuse_weights(single)
    assert list(fused) == [f"wrapped.{key}" for key in other.state_dict()]
    assert {k: v.shape for k, v in fused.items()} == {f"wrapped.{k}": v.shape for k, v in other.state_dict().items()}
    block = "wrapped.backbone.blocks.11."
    gates = [single[f"{block}mlstm_layer.{gate}gate_preact.bias"] for gate in "if"]
    assert torch.equal(fused[f"{block}mlstm_layer.ifgate_preact.bias"], torch.cat(gates))
    back = split_weights(fused, model.config)
    assert set(back) == set(single) and all(torch.equal(back[key], single[key]) for key in single)
    safetensors.torch.save(back)
    for key in set(fused) - set(single):
        fused[key].zero_()
    assert all(torch.equal(back[key], single[key]) for key in single)
    assert list(fuse_weights(fused)) == list(fused) and list(split_weights(single, model.config)) == list(single)


def test_what_cannot_be_converted_stays() -> None:
    model = build()
    key = "backbone.blocks.0.mlstm_layer.v.weight"
    whole = dict(model.state_dict())
    partial = {name: value for name, value in whole.items() if name != key}
    assert "backbone.blocks.0.mlstm_layer.q.weight" in fuse_weights(partial)
    assert "backbone.blocks.1.mlstm_layer.qkv_opreact.weight" in fuse_weights(partial)
    for odd in (whole[key][:, 1:], torch.zeros(()), "text"):
        assert "backbone.blocks.0.mlstm_layer.q.weight" in fuse_weights({**whole, key: odd})
    fused, name = fuse_weights(whole), "backbone.blocks.0.mlstm_layer.qkv_opreact.weight"
    assert name in split_weights({**fused, name: fused[name][1:]}, model.config)
    both = {**whole, **fused}
    assert set(fuse_weights(both)) == set(split_weights(both, model.config)) == set(both)
    assert fuse_weights({"weight": 1, "q.bias": 2}) == {"weight": 1, "q.bias": 2}


@pytest.mark.parametrize("weight_mode", ["single", "fused"])
def test_wrong_checkpoints_are_refused_whole(weight_mode: str) -> None:
    model = build(weight_mode=weight_mode)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = dict(build(num_blocks=1).state_dict())
    wrong["extra"] = torch.zeros(3)
    wrong["embedding.weight"] = torch.zeros(3, DIM)
    wrong["backbone.blocks.0.ffn.proj_up.weight"] = torch.zeros(7, DIM)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(wrong)
    message = str(error.value)
    assert "xLSTMLarge: this checkpoint does not fit, nothing was loaded" in message
    assert "looks like xLSTMLarge with weight_mode='single'" in message
    assert "missing: backbone.blocks.1.norm_mlstm.weight (32,)" in message
    assert "extra: extra (3,)" in message
    assert f"wrong shape: embedding.weight is (3, {DIM}), expected ({VOCAB}, {DIM})" in message
    up = "proj_up.weight is (7, 32), expected (128, 32)"
    assert (up if weight_mode == "single" else "proj_up_gate_z.weight is (135, 32), expected (256, 32)") in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_config_as_dict() -> None:
    full = config(use_bias=True, mode="inference", gate_soft_cap=None, chunk_size=128, step_kernel="native")
    values = json.loads(json.dumps(full.to_dict()))
    assert "chunk_size" not in values and values["gate_soft_cap"] is None
    again = xLSTMLargeConfig.from_dict(values)
    assert again.to_dict() == values and again.mode == "inference"
    assert xLSTMLargeConfig.from_dict({**values, "chunk_size": 7}).to_dict() == values
    with pytest.raises(ValueError, match="xLSTMLargeConfig: unknown keys depth"):
        xLSTMLargeConfig.from_dict({**values, "depth": 7})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, r"num_heads must divide the width 16 \(embedding_dim 32 times qk_dim_factor 0.5\), got 3"),
        ({"num_heads": 4, "v_dim_factor": 0.2}, "width 6 .*v_dim_factor 0.2"),
        ({"qk_dim_factor": 0.01}, "width 0"),
        ({"vocab_size": 0}, "vocab_size must be positive and finite, got 0"),
        ({"num_blocks": -1}, "num_blocks must be positive and finite, got -1"),
        ({"ffn_proj_factor": 0}, "ffn_proj_factor must be positive"),
        ({"ffn_round_up_to_multiple_of": 0}, "ffn_round_up_to_multiple_of must be positive"),
        ({"weight_mode": "both"}, "weight_mode must be one of single, fused, got 'both'"),
        ({"mode": "eval"}, "mode must be one of train, train_with_padding, inference, got 'eval'"),
        ({"inference_state_dtype": "int8"}, "inference_state_dtype must be one of float32, bfloat16, float16"),
        ({"v_dim_factor": float("inf")}, "v_dim_factor must be positive and finite, got inf"),
        ({"ffn_proj_factor": float("nan")}, "ffn_proj_factor must be positive and finite, got nan"),
        ({"gate_soft_cap": 0.0}, "gate_soft_cap must be None or positive and finite, got 0.0"),
        ({"gate_soft_cap": float("inf")}, "gate_soft_cap must be None or positive and finite, got inf"),
        ({"output_logit_soft_cap": -1.0}, "output_logit_soft_cap must be None or positive"),
        ({"eps": -1e-6}, "eps must be finite and >= 0"),
        ({"norm_eps": -1e-6}, "norm_eps must be finite and >= 0"),
        ({"norm_eps": float("inf")}, "norm_eps must be finite and >= 0, got inf"),
    ],
)
def test_config_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"xLSTMLargeConfig: .*{message}"):
        xLSTMLarge(config(**fields))


def test_input_errors() -> None:
    model = build()
    state = model(ids(2, 3), return_state=True)[1]
    with pytest.raises(ValueError, match=r"ids must have shape \(B, S\), got \(3,\)"):
        model(ids(1, 3)[0])
    with pytest.raises(TypeError, match="ids must be int64 or int32, got torch.float64"):
        model(ids(1, 3).double())
    with pytest.raises(ValueError, match=r"S >= 1, got \(1, 0\)"):
        model.prefill(ids(1, 0))
    for length in (0, 17):
        with pytest.raises(ValueError, match=rf"step takes 1 to 16 tokens, .*got \(1, {length}\)"):
            model.step(ids(1, length))
    with pytest.raises(ValueError, match=r"state must hold 2 block states, got those of blocks \[0\]"):
        model(ids(2, 3), state[:1])
    with pytest.raises(ValueError, match=r"got those of blocks \[0, 2\]"):
        model(ids(2, 3), {0: None, 2: None})
    with pytest.raises(ValueError, match=r"state of block 0: m must have shape \(B, H, 1\), got \(2, 2\)"):
        model(ids(2, 3), {0: tuple(state[0]), 1: None})
    with pytest.raises(ValueError, match=r"state of block 1 must be \(C, n, m\), got 2 parts"):
        model(ids(2, 3), {0: None, 1: tuple(state[0][:2])})
    wrong: list[tuple[Any, str]] = [
        (3, "state must be None, a tuple of block states or {block: state}, got int"),
        ({0: None, 1: 3}, r"state of block 1 must be None or tensors \(C, n, m\), got int"),
        ({0: None, 1: (1, 2, 3)}, r"state of block 1 must be None or tensors \(C, n, m\), got tuple"),
    ]
    for given, message in wrong:
        with pytest.raises(TypeError, match=message):
            model(ids(2, 3), given)
    with pytest.raises(ValueError, match=r"got those of blocks \['0', 1\]"):
        model(ids(2, 3), {"0": None, 1: None})
    with pytest.raises(TypeError, match="ids must be a Tensor, got list"):
        model([[1]])
    with pytest.raises(ValueError, match="initial_state"):
        model(ids(3, 3), state)
    with pytest.raises(ValueError, match="reset"):
        model(ids(2, 3), reset=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="reset"):
        model(ids(2, 3), reset=torch.zeros(2, 3))


@pytest.mark.parametrize("weight_mode", ["single", "fused"])
def test_initial_values(weight_mode: str) -> None:
    model = xLSTMLarge(config(weight_mode=weight_mode, embedding_dim=64, num_heads=4, vocab_size=500, use_bias=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.reset_parameters()
    small, output = (2 / (5 * 64)) ** 0.5, 2 / (BLOCKS * 64**0.5)
    values = split_weights(model.state_dict(), model.config)
    for key, value in values.items():
        if key.endswith("igate_preact.bias"):
            assert value.tolist() == [-10.0] * 4
        elif key.endswith("fgate_preact.bias"):
            assert value.tolist() == [3.0, 4.0, 5.0, 6.0]
        elif "norm" in key and key.endswith("weight"):
            assert (value == 1).all(), key
        elif key.endswith("bias") or "igate" in key or "fgate" in key:
            assert (value == 0).all(), key
        else:
            expected = output if "out_proj" in key or "proj_down" in key else small
            assert value.std().item() == pytest.approx(expected, rel=0.1), key


def test_meta_device_and_the_7b_size() -> None:
    with torch.device("meta"):
        model = xLSTMLarge(xLSTMLargeConfig(4096, 8, 32, 50304))
        tiny = xLSTMLarge(config())
    assert (model.config.ffn_dim, model.config.qk_dim, model.config.v_dim) == (10944, 2048, 4096)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_865_424_896
    tiny.to_empty(device=torch.get_default_device())
    other = xLSTMLarge(config())
    for built in (tiny, other):
        torch.manual_seed(1)
        built.reset_parameters()
    assert torch.equal(tiny(ids(2, 5)), other(ids(2, 5)))
    with torch.device("meta"):
        tiny = xLSTMLarge(config())
    tiny.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(tiny(ids(2, 5)), other(ids(2, 5)))


@pytest.mark.parametrize(("dim", "factor", "multiple", "expected"), [(32, 2.6667, 64, 128), (43, 1.5, 64, 64)])
def test_feedforward_width(dim: int, factor: float, multiple: int, expected: int) -> None:
    fields = {"embedding_dim": dim, "ffn_proj_factor": factor, "ffn_round_up_to_multiple_of": multiple}
    assert config(**fields).ffn_dim == expected  # 64.5 is not rounded up to 128: so are the public models


def test_weight_decay_groups() -> None:
    model = build(use_bias=True)
    model.lm_head.weight.requires_grad_(False)
    names = model.get_weight_decay_optim_group_param_names()
    decay, no_decay = model.get_weight_decay_optim_groups()
    parameters = dict(model.named_parameters())
    assert [parameters[name] for name in names[0]] == list(decay)
    assert [parameters[name] for name in names[1]] == list(no_decay)
    assert sorted([*names[0], *names[1], "lm_head.weight"]) == sorted(parameters)
    for name in names[0]:
        assert name.endswith(".weight") and "norm" not in name and not name.startswith("embedding")
    exempt = {name.rsplit(".", 2)[-2] for name in names[1] if name.endswith(".weight")}
    assert exempt == {"embedding", "norm_mlstm", "multihead_norm", "norm_ffn", "out_norm"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gate_maps_are_float32(dtype: torch.dtype) -> None:
    gate, x = GateLinear(64, 4).to(dtype), torch.randn(3, 5, 64, dtype=dtype)
    expected = F.linear(x.double(), gate.weight.double(), gate.bias.double())
    for enabled in (False, True):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
            y = gate(x)
        assert y.dtype == torch.float32
        assert_close_relative(y, expected, 1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates reach the kernel in float32; outputs and gradients are nearer to float64 than all in bfloat16 is.

    The root mean square over all tensors: of a single small one either may be nearer by chance.
    """
    model, tokens, seen = build(torch.float32, noise=0.05), ids(2, 33), []
    if not autocast:
        model.bfloat16()
    empty = tuple(MLSTMState(*map(torch.zeros_like, block)) for block in state_like(model, 2))
    mlstm = functional.mlstm

    def spy(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, **options: Any) -> Any:
        seen.append((q.dtype, i.dtype, f.dtype))
        return mlstm(q, k, v, i, f, **options)

    def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
        parameters = {k: v.detach().to(dtype).requires_grad_() for k, v in model.named_parameters()}
        state = tuple(MLSTMState(*(x.to(dtype) for x in block)) for block in empty)
        return with_gradients(Plain(model.config, parameters).run(tokens, state)[0], parameters)

    def with_gradients(logits: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return logits, *torch.autograd.grad(logits.double().square().sum(), list(parameters.values()))

    monkeypatch.setattr(functional, "mlstm", spy)
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        logits, state = model(tokens, return_state=True)
    assert seen == [(torch.bfloat16, torch.float32, torch.float32)] * BLOCKS
    assert {x.dtype for x in pytree.tree_leaves(state)} == {torch.float32}
    results = with_gradients(logits, dict(model.named_parameters())), plain(torch.bfloat16), plain(torch.float64)
    actual, rounded, exact = (dict(zip(["logits", *model.state_dict()], r, strict=True)) for r in results)
    assert distance(actual, exact) < distance(rounded, exact)


def test_copies() -> None:
    model, tokens = build(weight_mode="fused"), ids(2, 9)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    expected = model(tokens)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)):
        assert torch.equal(other(tokens), expected)
        other.config.mode = "inference"
        assert not other(tokens).requires_grad and model(tokens).requires_grad


def test_saved_state() -> None:
    """A state may be saved and read with weights_only, and the sequence goes on from it."""
    model, tokens = build(), ids(2, 5)
    saved = io.BytesIO()
    torch.save(model(tokens[:, :3], return_state=True)[1], saved)
    saved.seek(0)
    assert_close_relative(model(tokens[:, 3:], torch.load(saved)), model(tokens)[:, 3:], 1e-10)


def test_activation_checkpointing() -> None:
    model, tokens = build(), ids(2, 9)
    loss(model(tokens), ()).backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()
    x = model.embedding(tokens)
    for block in model.backbone.blocks:
        x, _ = checkpoint(block, x, None, use_reentrant=False)
    loss(30 * torch.tanh(model.lm_head(model.backbone.out_norm(x)) / 30), ()).backward()
    for key, parameter in model.named_parameters():
        assert_close_relative(parameter.grad, expected[key], 1e-12, key)


@traced
@pytest.mark.parametrize(("weight_mode", "autocast"), [("single", False), ("fused", True)])
def test_compile_a_block(weight_mode: str, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.float64
    block = build(dtype, weight_mode=weight_mode).backbone.blocks[1]
    x = torch.randn(2, 9, DIM, dtype=dtype, generator=torch.Generator(torch.get_default_device()).manual_seed(3))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        results = [compiled(x, None), block(x, None)]
    grads = [torch.autograd.grad(loss(*result), list(block.parameters())) for result in results]
    assert_states_close(results[0], results[1], 1e-10)
    assert_states_close(grads[0], grads[1], TOLERANCE[torch.bfloat16].grad if autocast else 1e-10)
    if not autocast:
        first, state = x[:, :2], results[1][1]
        with torch.no_grad():
            assert_states_close(compiled(first, state, is_step=True), block(first, state, is_step=True), 1e-10)


@traced
def test_training_overfits() -> None:
    torch.manual_seed(0)
    model = xLSTMLarge(config())
    decay, no_decay = model.get_weight_decay_optim_groups()
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    tokens, losses = ids(4, 13), []
    for _ in range(30):
        value = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.3 * losses[0]
