"""Language model: forward and steps, configs, parameter groups, generation, training."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from tests.support.machine import traced
from xlstm_cuda import nn as xnn
from xlstm_cuda.models import generate, xLSTMLMModel, xLSTMLMModelConfig
from xlstm_cuda.models.generation.sampling import Sampling

VOCAB = 19
pytestmark = pytest.mark.usefixtures("module_backend")


def lm_config(**fields: Any) -> xLSTMLMModelConfig:
    return xLSTMLMModelConfig.from_ratio("1:1", 2, **{"embedding_dim": 16, "vocab_size": VOCAB, **fields})


def build(dtype: torch.dtype = torch.float64, **fields: Any) -> xLSTMLMModel:
    """A model with every parameter moved away from its initial value: zeros hide mistakes."""
    torch.manual_seed(0)
    model = xLSTMLMModel(lm_config(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.to(dtype)


def ids(batch: int, seqlen: int) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seqlen)
    return torch.randint(VOCAB, (batch, seqlen), generator=generator)


@pytest.mark.parametrize("fields", [{}, {"tie_weights": True, "add_embedding_dropout": True, "dropout": 0.3}])
@pytest.mark.parametrize("seqlen", [0, 1, 17])
def test_forward_prefill_and_steps(seqlen: int, fields: dict[str, Any]) -> None:
    model, tokens = build(**fields).eval(), ids(2, seqlen)
    with torch.no_grad():
        expected, final = model(tokens, return_state=True)
        assert expected.shape == (2, seqlen, VOCAB)
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=0)
        for start in (0, seqlen // 2):
            logits, state = model(tokens[:, :start], return_state=True)
            parts = [logits]
            for t in range(start, seqlen):
                logits, state = model.step(tokens[:, t : t + 1], state)
                parts.append(logits)
            torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-10, atol=1e-10)
            for a, b in zip(pytree.tree_leaves(state), pytree.tree_leaves(final), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        if seqlen:
            last, state = model.prefill(tokens)
            torch.testing.assert_close(last, expected[:, -1:], rtol=1e-12, atol=1e-12)


def test_state_dict_keys() -> None:
    state_dict = build().state_dict()
    outside = {key: tuple(v.shape) for key, v in state_dict.items() if not key.startswith("xlstm_block_stack.blocks.")}
    assert outside == {
        "xlstm_block_stack.post_blocks_norm.weight": (16,),
        "token_embedding.weight": (VOCAB, 16),
        "lm_head.weight": (VOCAB, 16),
    }
    assert "xlstm_block_stack.blocks.0.xlstm.mlstm_cell.fgate.weight" in state_dict
    assert "xlstm_block_stack.blocks.1.xlstm.slstm_cell._recurrent_kernel_" in state_dict


def test_tied_weights() -> None:
    model = build(tie_weights=True)
    assert model.lm_head.weight is model.token_embedding.weight
    assert copy.deepcopy(model).lm_head.weight is not model.lm_head.weight
    other = copy.deepcopy(model)
    assert other.lm_head.weight is other.token_embedding.weight


@pytest.mark.parametrize("missing", [None, "lm_head.weight", "token_embedding.weight"])
def test_tied_weights_after_loading(missing: str | None) -> None:
    """assign=True and to_empty would leave two parameters, which training drives apart."""
    model = build(tie_weights=True)
    values = {name: value.clone() for name, value in model.state_dict().items() if name != missing}
    with torch.device("meta"):
        empty = build(tie_weights=True)
    device = torch.get_default_device()
    for loaded in (build(tie_weights=True), empty, copy.deepcopy(empty).to_empty(device=device)):
        loaded.load_state_dict(values, strict=missing is None, assign=loaded.lm_head.weight.is_meta or missing is None)
        assert loaded.lm_head.weight is loaded.token_embedding.weight
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    again = copy.deepcopy(empty).to_empty(device=device)
    again.reset_parameters()
    assert again.lm_head.weight is again.token_embedding.weight


def test_tie_weights() -> None:
    """What tools call that made new parameters: the matrix is that of the one that has values."""
    model = build(tie_weights=True)
    with torch.device("meta"):
        empty = build(tie_weights=True)
    for owner in ("token_embedding", "lm_head"):
        other = copy.deepcopy(empty)
        values = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        getattr(other, owner).weight = values
        other.tie_weights()
        assert other.lm_head.weight is other.token_embedding.weight is values
    plain = build()
    before = dict(plain.named_parameters())
    plain.tie_weights()
    assert before.keys() == dict(plain.named_parameters()).keys() and plain.lm_head.weight is before["lm_head.weight"]


def test_tie_weights_leaves_an_adapted_head_alone() -> None:
    """An adapter in the place of the head has no weight of its own to share."""
    model = build(tie_weights=True)
    head = model.lm_head
    model.lm_head = torch.nn.Sequential(head)  # type: ignore[assignment]
    model.tie_weights()
    assert model.lm_head[0] is head and head.weight is model.token_embedding.weight  # type: ignore[index]


@pytest.mark.parametrize("stored", ["lm_head.weight", "token_embedding.weight", "both"])
def test_accelerate_loads_tied_weights(stored: str, tmp_path: Path) -> None:
    """Into a model without memory, from a file that has the shared matrix under one name, as safetensors wants it."""
    accelerate = pytest.importorskip("accelerate")
    model, tokens = build(torch.float32, tie_weights=True).eval(), ids(2, 7)
    shared = ("lm_head.weight", "token_embedding.weight")
    values = {k: v.clone() for k, v in model.state_dict().items() if k not in shared or stored in (k, "both")}
    device = str(torch.get_default_device())
    safetensors.torch.save_file(values, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with accelerate.init_empty_weights():
        dispatched, assigned = (xLSTMLMModel(model.config).eval() for _ in range(2))
    dispatched.tie_weights()
    assert dispatched.lm_head.weight is dispatched.token_embedding.weight
    dispatched = accelerate.load_checkpoint_and_dispatch(dispatched, str(tmp_path), device_map={"": device})
    assigned.to_empty(device=device).load_state_dict(values, strict=stored == "both", assign=True)
    assigned.tie_weights()
    for loaded in (dispatched, assigned):
        assert loaded.lm_head.weight is loaded.token_embedding.weight
        assert torch.equal(loaded(tokens), model(tokens))


def test_reset_parameters() -> None:
    model = build(torch.float32, embedding_dim=64, vocab_size=500)
    model.reset_parameters()
    for weight in (model.token_embedding.weight, model.lm_head.weight):
        assert weight.std().item() == pytest.approx((2 / (5 * 64)) ** 0.5, rel=0.05)
    assert model.xlstm_block_stack.post_blocks_norm.weight.abs().max() == 0


@pytest.mark.parametrize("on_embedding", [False, True])
def test_weight_decay_groups(on_embedding: bool) -> None:
    model = build(weight_decay_on_embedding=on_embedding, tie_weights=True)
    model.xlstm_block_stack.blocks[0].xlstm.proj_up.weight.requires_grad_(False)
    names = model.get_weight_decay_optim_group_param_names()
    decay, no_decay = model.get_weight_decay_optim_groups()
    parameters = dict(model.named_parameters())
    assert [parameters[name] for name in names[0]] == list(decay)
    assert {id(p) for p in (*decay, *no_decay)} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(decay) + len(no_decay) == len(parameters) - 1
    short = [{name.removeprefix("xlstm_block_stack.blocks.") for name in group} for group in names]
    assert {"0.xlstm.q_proj.weight", "0.xlstm.conv1d.conv.weight", "1.ffn.proj_up.weight"} <= short[0]
    assert {"0.xlstm.learnable_skip", "1.xlstm.slstm_cell._recurrent_kernel_", "1.ffn_norm.weight"} <= short[1]
    assert "token_embedding.weight" in short[0 if on_embedding else 1]


@pytest.mark.parametrize(
    ("ratio", "num_blocks", "slstm_at"),
    [
        ("7:1", 8, [7]),
        ("7:1", 16, [7, 15]),
        ("1:1", 6, [1, 3, 5]),
        ("1:0", 3, []),
        ("0:1", 3, [0, 1, 2]),
        ("2:2", 4, [2, 3]),
        ("7:1", 0, []),
    ],
)
def test_from_ratio(ratio: str, num_blocks: int, slstm_at: list[int]) -> None:
    config = xnn.xLSTMBlockStackConfig.from_ratio(ratio, num_blocks, embedding_dim=32)
    assert (config.slstm_at, config.num_blocks) == (slstm_at, num_blocks)
    assert config.block_map == [int(index in slstm_at) for index in range(num_blocks)]
    assert (config.mlstm_block is None, config.slstm_block is None) == (ratio == "0:1", ratio == "1:0")


@pytest.mark.parametrize("ratio", ["7", "7:1:1", "a:b", "0:0", "-1:1", "", "1:"])
def test_from_ratio_malformed(ratio: str) -> None:
    with pytest.raises(ValueError, match="ratio must look like '7:1'"):
        xLSTMLMModelConfig.from_ratio(ratio, 8)


def test_from_ratio_errors() -> None:
    with pytest.raises(ValueError, match="num_blocks must be a multiple of 8, got 12"):
        xLSTMLMModelConfig.from_ratio("7:1", 12)
    with pytest.raises(ValueError, match="slstm_at follows from the ratio"):
        xLSTMLMModelConfig.from_ratio("7:1", 8, slstm_at=[1])


def test_config_as_dict() -> None:
    feedforward = xnn.FeedForwardConfig(act_fn="swish", proj_factor=2.0)
    config = lm_config(
        slstm_block=xnn.sLSTMBlockConfig(slstm=xnn.sLSTMLayerConfig(bias_init="zeros"), feedforward=feedforward),
        mlstm_block=xnn.mLSTMBlockConfig(mlstm=xnn.mLSTMLayerConfig(num_heads=2, proj_factor=1.5)),
        tie_weights=True,
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert xLSTMLMModelConfig.from_dict(values) == config
    assert values["slstm_block"]["feedforward"]["act_fn"] == "swish"
    values["slstm_block"]["feedforward"] = None
    other = xLSTMLMModelConfig.from_dict(values)
    assert other.slstm_block is not None and other.slstm_block.feedforward is None
    assert xLSTMLMModelConfig.from_dict({"vocab_size": 5, "mlstm_block": {}, "slstm_at": []}).mlstm_block is not None


def test_config_unknown_keys() -> None:
    with pytest.raises(ValueError, match="xLSTMLMModelConfig: unknown keys depth, width; known are mlstm_block"):
        xLSTMLMModelConfig.from_dict({"width": 3, "depth": 4})
    with pytest.raises(ValueError, match="mLSTMLayerConfig: unknown keys heads; known are"):
        xLSTMLMModelConfig.from_dict({"mlstm_block": {"mlstm": {"heads": 3}}})


def test_input_errors() -> None:
    model = build()
    with pytest.raises(ValueError, match="vocab_size must be positive"):
        xLSTMLMModel(lm_config(vocab_size=-1))
    with pytest.raises(ValueError, match=r"ids must have shape \(B, S\), got \(3,\)"):
        model(ids(1, 3)[0])
    with pytest.raises(TypeError, match="ids must be int64 or int32"):
        model(ids(1, 3).double())
    with pytest.raises(ValueError, match=r"step takes 1 to 16 tokens, \(B, S, ...\), got \(1, 17\)"):
        model.step(ids(1, 17))
    with pytest.raises(ValueError, match="S >= 1"):
        model.prefill(ids(1, 0))
    with pytest.raises(ValueError, match="state must hold 2 block states"):
        model(ids(1, 3), ())
    for call in (model, model.prefill):
        with pytest.raises(TypeError, match="ids must be a Tensor, got list"):
            call([[1, 2]])
    with pytest.raises(TypeError, match="the input of a step must be a Tensor, got list"):
        model.step([[1]])
    with pytest.raises(TypeError, match="reset must be a Tensor, got list"):
        model(ids(1, 2), reset=[[True, False]])
    _, (mlstm, slstm) = model.prefill(ids(1, 3))
    wrong: list[tuple[Any, str]] = [
        (3, "state must be None or a tuple of block states, got int"),
        ((mlstm.cell, slstm), r"state of a layer must be None or \(conv, cell\), got MLSTMState of 3"),
        ((mlstm, 3), r"state of a layer must be None or \(conv, cell\), got int"),
        (((3, mlstm.cell), slstm), "conv state must be a Tensor, got int"),
    ]
    for state, message in wrong:
        with pytest.raises(TypeError, match=message):
            model.step(ids(1, 1), state)


def test_checkpoint() -> None:
    """Safetensors and JSON are enough to build the same model again; pickle and torch.save work too."""
    model, tokens = build(), ids(2, 5)
    payload, config = safetensors.torch.save(model.state_dict()), json.dumps(model.config.to_dict())
    other = xLSTMLMModel(xLSTMLMModelConfig.from_dict(json.loads(config))).double()
    other.load_state_dict(safetensors.torch.load(payload))
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    third = copy.deepcopy(other)
    third.reset_parameters()
    third.load_state_dict(torch.load(saved))
    for loaded in (other, third, pickle.loads(pickle.dumps(model))):
        assert torch.equal(loaded(tokens), model(tokens))


def test_saved_state() -> None:
    """A state may be saved and read with weights_only, and generation goes on from it."""
    model, tokens = build(), ids(2, 5)
    saved = io.BytesIO()
    torch.save(model(tokens[:, :3], return_state=True)[1], saved)
    saved.seek(0)
    torch.testing.assert_close(model(tokens[:, 3:], torch.load(saved)), model(tokens)[:, 3:])


@traced
def test_compile_step() -> None:
    model = build().eval()
    step = torch.compile(model.step, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        state = model.prefill(ids(2, 3))[1]
        expected = model.step(ids(2, 1), state)
        actual = step(ids(2, 1), state)
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_greedy() -> None:
    model, prompt = build(), ids(3, 4)
    generated = generate(model, prompt, 6, temperature=0)
    assert generated.shape == (3, 10) and generated.dtype == prompt.dtype and torch.equal(generated[:, :4], prompt)
    assert torch.equal(generated, model.generate(prompt, 6, temperature=0, seed=5))
    expected = prompt
    for _ in range(6):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, expected)
    assert torch.equal(model.generate(prompt, 6, top_k=1), expected)
    assert torch.equal(model.generate(prompt, 6, top_p=1e-9), expected)
    assert torch.equal(model.generate(prompt, 6, temperature=1e-6), expected)
    assert torch.equal(model.generate(prompt.int(), 6, temperature=0), expected.int())
    assert torch.equal(model.generate(prompt, 0), prompt)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 50, "top_p": 0.9, "temperature": 1.5}])
def test_seeded_sampling(options: dict[str, Any]) -> None:
    model, prompt = build(), ids(4, 2)
    torch.manual_seed(1)
    first = model.generate(prompt, 8, seed=7, **options)
    untouched = torch.rand(())
    assert torch.equal(first, model.generate(prompt, 8, seed=7, **options))
    assert not torch.equal(first, model.generate(prompt, 8, seed=8, **options))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(()), untouched), "a seed must leave the global generator alone"
    torch.manual_seed(2)
    unseeded = model.generate(prompt, 8, **options)
    torch.manual_seed(2)
    assert torch.equal(unseeded, model.generate(prompt, 8, **options))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((1.0, None, None), [0.1, 0.4, 0.2, 0.3]),
        ((1.0, 2, None), [0, 0.4, 0, 0.3]),
        ((1.0, None, 0.6), [0, 0.4, 0, 0.3]),
        ((1.0, None, 0.75), [0, 0.4, 0.2, 0.3]),
        ((1.0, 3, 0.9), [0, 0.4, 0.2, 0.3]),
        ((1.0, 3, 0.7), [0, 0.4, 0, 0.3]),
        ((0.5, None, None), [0.01, 0.16, 0.04, 0.09]),
    ],
)
def test_sampling_frequencies(options: tuple[float, int | None, float | None], kept: list[float]) -> None:
    draws = 20_000
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(draws, 4)
    chosen = Sampling(*options, torch.Generator(logits.device).manual_seed(0)).choose(logits)
    expected = torch.tensor(kept) / sum(kept)
    frequencies = torch.bincount(chosen, minlength=4) / draws
    assert (frequencies - expected).abs().max() < 5 * (0.25 / draws) ** 0.5
    assert (frequencies[expected == 0] == 0).all()


def test_callback_streams_the_new_ids() -> None:
    model, seen = build(), []
    generated = model.generate(ids(3, 4), 6, seed=0, callback=seen.append)
    assert torch.equal(torch.stack(seen, 1), generated[:, 4:])


def test_end_of_sequence() -> None:
    model, prompt = build(), ids(4, 4)
    free = model.generate(prompt, 12, seed=3)
    eos = int(free[0, 6])
    stopped = model.generate(prompt, 12, seed=3, eos_id=eos)
    for row, full in zip(stopped[:, 4:], free[:, 4:], strict=True):
        ends = (full == eos).nonzero().flatten().tolist()
        end = ends[0] if ends else 12
        assert torch.equal(row[: end + 1], full[: min(end + 1, len(row))])
        assert (row[end:] == eos).all()
    one = model.generate(prompt[:1], 12, temperature=0)
    ended = model.generate(prompt[:1], 12, temperature=0, eos_id=int(one[0, 5]))
    assert ended.shape[1] <= 6 and ended[0, -1] == one[0, 5]


def test_modes_are_restored() -> None:
    model = build(torch.float32, dropout=0.5, add_embedding_dropout=True).train()
    frozen = model.xlstm_block_stack.blocks[1].eval()
    prompt = ids(2, 3)
    assert torch.equal(model.generate(prompt, 5, temperature=0), model.generate(prompt, 5, temperature=0))
    assert model.training and model.emb_dropout.training and not frozen.training
    assert not any(module.training for module in frozen.modules())

    def fail(_: Tensor) -> None:
        assert not model.training
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt, 5, callback=fail)
    assert model.training and not frozen.training
    assert not model.generate(prompt, 2).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be >= 0, got -1"),
        ({"top_k": 0}, "top_k must be None or >= 1"),
        ({"top_p": 0.0}, r"top_p must be None or in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must be None or in \(0, 1\]"),
        ({"max_new_tokens": -1}, "max_new_tokens must be >= 0"),
        ({"prompt_ids": ids(2, 0)}, r"prompt_ids must have shape \(B, S\), S >= 1, got \(2, 0\)"),
        ({"prompt_ids": ids(1, 2)[0]}, "prompt_ids must have shape"),
    ],
)
def test_generate_errors(options: dict[str, Any], message: str) -> None:
    arguments = {"prompt_ids": ids(1, 2), "max_new_tokens": 3, **options}
    with pytest.raises(ValueError, match=message):
        build().generate(**arguments)


@pytest.mark.parametrize("autocast", [False, True])
def test_training_overfits(autocast: bool) -> None:
    torch.manual_seed(0)
    model = xLSTMLMModel(lm_config(embedding_dim=32))
    decay, no_decay = model.get_weight_decay_optim_groups()
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    tokens = ids(4, 13)
    losses = []
    for _ in range(30):
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
