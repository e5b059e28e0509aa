"""xLSTM models of Hugging Face transformers on our functions against the same models as they come.

`make test-transformers` runs this with transformers 4.57 and 5, with and without the package xlstm.
"""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.block_steps import counted
from tests.support.nxai_models import refuse
from xlstm_cuda.interop import large as large_parts
from xlstm_cuda.interop import transformers as integration
from xlstm_cuda.interop.feedforward import GatedForward
from xlstm_cuda.interop.transformers import MLSTMBackend, patch, unpatch
from xlstm_cuda.nn import linear
from xlstm_cuda.testing import assert_close_relative, relative_error

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")

VERSION = int(transformers.__version__.partition(".")[0])
# transformers 4 without xlstm fails in its own chunkwise kernel: there its recurrent one is what we compare with.
OLD_NATIVE = VERSION < 5 and not modeling.external_xlstm
CHUNK = 1024 if OLD_NATIVE else 16
# float64 but for what has to be float32: logits, and a state dtype that the config does not let us choose.
DOUBLE = {"norm_reduction_force_float32": False, **({"inference_state_dtype": "float64"} if OLD_NATIVE else {})}
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
chunked = pytest.mark.skipif(VERSION < 5, reason="transformers 4 fails for prompts above max_inference_chunksize")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    unpatch()


def build(**options: Any) -> Any:
    """A model as it comes, its parameters moved so that none is at a value that hides a mistake."""
    config = transformers.xLSTMConfig(
        **{
            "vocab_size": 31,
            "hidden_size": 128,  # the cache wants multiples of 64: q, k of 64, v of 128
            "num_hidden_layers": 2,
            "num_heads": 2,
            "chunk_size": CHUNK,
            "autocast_kernel_dtype": "float32",
            **options,
        }
    )
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if config.weight_mode == "fused":  # their initial values fail for shapes
            monkeypatch.setattr(modeling.xLSTMPreTrainedModel, "_init_weights", lambda self, module: None)
        model = transformers.xLSTMForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("gate_preact.bias"):  # input gates near 0 (they start at -10), forget gates near 3
                parameter += 10.0 * ("igate" in name)
    return model.eval()


def pair(**options: Any) -> tuple[Any, Any]:
    """A model as it comes and the same one on our functions."""
    stock = build(**options)
    ours = copy.deepcopy(stock)
    patch(ours)
    return stock, ours


def tokens(batch: int, length: int, seed: int = 2) -> Tensor:
    return torch.randint(3, 31, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 7, 32, 45])
def test_logits_and_cache(length: int) -> None:
    stock, ours = pair()
    with torch.no_grad():
        expected, actual = (model(tokens(2, length), use_cache=True) for model in (stock, ours))
    assert_close_relative(actual.logits, expected.logits, 1e-5)
    for theirs, part in zip(
        expected.cache_params.rnn_state.values(), actual.cache_params.rnn_state.values(), strict=True
    ):
        C, n, m = theirs
        # Only C e^m is given by the formulas: chunkwise kernels start the maximum m differently.
        assert_close_relative(part[0] * part[2].exp()[..., None], C * m.exp()[..., None], 1e-5)
        assert_close_relative(part[1] * part[2].exp(), n * m.exp(), 1e-5)


@pytest.mark.parametrize("options", [{}, {"weight_mode": "fused", "eps": 1e-2}, {"use_bias": True}], ids=str)
def test_a_decode_step_is_one_op_a_block(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stock, ours = pair(**options)
    steps = counted(monkeypatch, large_parts)
    with torch.no_grad():
        for model in (stock, ours):
            cache = model(tokens(2, 6), use_cache=True).cache_params
            for token in tokens(2, 3, seed=3).split(1, dim=1):
                logits = model(token, cache_params=cache, use_cache=True).logits
            if model is stock:
                expected = logits
    assert_close_relative(logits, expected, 1e-5)
    assert steps == [not options.get("use_bias", False)] * 6


def test_the_head_reads_its_weights_once_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own kernel, whether it was there or is built afterwards; unpatch() gives the class back."""
    stock, ours = pair()
    calls: list[int] = []
    real = linear.few_rows_linear
    monkeypatch.setattr(linear, "few_rows_linear", lambda x, *rest: calls.append(len(x)) or real(x, *rest))
    patch()
    for model in (ours, build()):
        assert isinstance(model.lm_head, nn.Linear)
        calls.clear()
        with torch.no_grad():
            assert_close_relative(model(tokens(2, 4)).logits[:, -1], stock(tokens(2, 4)).logits[:, -1], 1e-5)
            model.lm_head(torch.randn(2, 1, 128))
        assert 2 in calls
    unpatch(ours)
    assert type(ours.lm_head) is nn.Linear


@pytest.mark.parametrize(
    "options", [{"weight_mode": "fused"}, {"use_bias": True}, {"num_heads": 4, "eps": 1e-2}], ids=str
)
def test_options(options: dict[str, Any]) -> None:
    stock, ours = pair(**options)
    with torch.no_grad():
        assert_close_relative(ours(tokens(2, 20)).logits, stock(tokens(2, 20)).logits, 1e-5)


@pytest.mark.parametrize("how", ["float32", "bfloat16", "autocast"])
def test_norms_and_the_output_gate_are_ours(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, ours = pair(autocast_kernel_dtype="bfloat16")
    ours = ours.bfloat16() if how == "bfloat16" else ours
    multihead_norm = type(stock.backbone.blocks[0].mlstm_layer.multihead_norm)
    with monkeypatch.context() as context, torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        refuse(context, modeling.xLSTMRMSNorm, multihead_norm, nn.Sigmoid)
        ours(tokens(2, 9))
        ours.backbone.blocks[0].mlstm_layer.multihead_norm.register_forward_hook(lambda *_: None)
        with pytest.raises(AssertionError, match="was called"):
            ours(tokens(2, 9))
    unpatch(ours)
    assert [type(module) for module in ours.modules()] == [type(module) for module in stock.modules()]


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(use_cache: bool, checkpointing: bool) -> None:
    stock, ours = (model.double().train() for model in pair(**DOUBLE))
    if checkpointing:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    ids = tokens(2, 21)
    expected = stock(ids, labels=ids, use_cache=False)
    actual = ours(ids, labels=ids, use_cache=use_cache)
    expected.loss.backward()
    actual.loss.backward()
    assert_close_relative(actual.loss, expected.loss, 1e-6)
    assert_same_gradients(ours, stock, 1e-5)


def assert_same_gradients(actual: nn.Module, expected: nn.Module, tol: float) -> None:
    theirs = dict(expected.named_parameters())
    for name, parameter in actual.named_parameters():
        assert_close_relative(parameter.grad, theirs[name].grad, tol, name)


def test_gradients_of_a_layer() -> None:
    layers = [model.double().backbone.blocks[0].mlstm_layer for model in pair(**DOUBLE)]
    x = torch.randn(2, 32, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for layer in layers:
        layer(x)[0].pow(2).sum().backward()
    assert_same_gradients(layers[1], layers[0], 1e-9)


@chunked
def test_chunked_inference() -> None:
    stock, ours = pair(max_inference_chunksize=13)
    whole = build()
    with torch.no_grad():
        actual = ours(tokens(2, 30)).logits
        assert_close_relative(actual, stock(tokens(2, 30)).logits, 1e-5)
        assert_close_relative(actual, whole(tokens(2, 30)).logits, 1e-5)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (9, 10), (12,)])
def test_continued(cuts: tuple[int, ...]) -> None:
    _, ours = pair()
    ids, cache, parts = tokens(2, 24), None, []
    with torch.no_grad():
        for part in torch.tensor_split(ids, cuts, dim=1):
            output = ours(part, cache_params=cache, use_cache=True)
            cache = output.cache_params
            parts.append(output.logits)
        assert_close_relative(torch.cat(parts, dim=1), ours(ids).logits, 1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"do_sample": True, "top_k": 5}, {"num_beams": 3, "use_cache": False}],
    ids=["greedy", "no cache", "sampling", "beams"],
)
def test_generation(options: dict[str, Any]) -> None:
    results = []
    for model in pair(eos_token_id=2):
        torch.manual_seed(4)
        results.append(model.generate(tokens(2, 9), max_new_tokens=12, pad_token_id=1, **options))
    assert torch.equal(*results)


def padded() -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows of different lengths, and what a tokenizer with left padding makes of them."""
    rows = [tokens(1, length, seed) for seed, length in enumerate((11, 4, 7))]
    ids = torch.cat([nn.functional.pad(row, (11 - row.shape[1], 0), value=1) for row in rows])
    return rows, ids, (ids != 1).long()


@pytest.mark.parametrize("chunk", [pytest.param(6, marks=chunked), 100])
def test_left_padding(chunk: int) -> None:
    rows, ids, mask = padded()
    _, ours = pair(max_inference_chunksize=chunk)
    with torch.no_grad():
        actual = ours(ids, attention_mask=mask)
        embedded = ours(inputs_embeds=ours.get_input_embeddings()(ids), attention_mask=mask)
        further = ours(
            tokens(3, 5), attention_mask=torch.cat([mask, mask.new_ones(3, 5)], 1), cache_params=actual.cache_params
        )
        for b, row in enumerate(rows):
            alone = ours(torch.cat([row, tokens(3, 5)[b : b + 1]], dim=1)).logits[0]
            assert_close_relative(actual.logits[b, -row.shape[1] :], alone[:-5], 1e-5)
            assert_close_relative(further.logits[b], alone[-5:], 1e-5)
    assert torch.equal(embedded.logits, actual.logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_left_padding_in_training(checkpointing: bool) -> None:
    rows, ids, mask = padded()
    alone, together = (build(**DOUBLE).double().train() for _ in range(2))
    patch(alone)
    patch(together)
    if checkpointing:
        together.gradient_checkpointing_enable({"use_reentrant": False})
    for row in rows:
        (alone(row, labels=row, use_cache=False).loss * (row.shape[1] - 1)).backward()
    labels = ids.masked_fill(mask == 0, -100)
    for b, row in enumerate(rows):
        labels[b, -row.shape[1]] = -100  # not to be predicted from padding
    loss = together(ids, attention_mask=mask, labels=labels, use_cache=False).loss
    (loss * sum(row.shape[1] - 1 for row in rows)).backward()
    assert_same_gradients(together, alone, 1e-4)


def test_generation_from_a_padded_batch() -> None:
    rows, ids, mask = padded()
    stock, ours = pair(eos_token_id=2)
    expected = [stock.generate(row, max_new_tokens=9, pad_token_id=1)[0, row.shape[1] :] for row in rows]
    actual = ours.generate(ids, attention_mask=mask, max_new_tokens=9, pad_token_id=1)[:, 11:]
    for row, alone in zip(actual, expected, strict=True):
        assert torch.equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == 1).all()


def test_masks_in_generation_outlive_unpatch() -> None:
    """Of models that stay ours, and not of those that come."""
    _, ids, mask = padded()
    stock, ours = pair(eos_token_id=2)
    options = {"attention_mask": mask, "max_new_tokens": 9, "pad_token_id": 1}
    expected = ours.generate(ids, **options)
    unpatch()
    assert torch.equal(ours.generate(ids, **options), expected)
    assert not torch.equal(stock.generate(ids, **options), expected)


def test_masks_in_generation_of_an_unpickled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process where nobody has called patch()."""
    _, ids, mask = padded()
    _, ours = pair(eos_token_id=2)
    options = {"attention_mask": mask, "max_new_tokens": 9, "pad_token_id": 1}
    expected = ours.generate(ids, **options)
    pickled = pickle.dumps(ours)
    causal = modeling.xLSTMForCausalLM
    if causal in integration._handing_on:
        original = causal.prepare_inputs_for_generation.__wrapped__
        monkeypatch.setattr(causal, "prepare_inputs_for_generation", original)
    monkeypatch.setattr(integration, "_handing_on", set())
    assert torch.equal(pickle.loads(pickled).generate(ids, **options), expected)


@pytest.mark.parametrize("shape", [(2, 4), (1, 9), (3, 9)])
def test_masks_that_do_not_fit(shape: tuple[int, int]) -> None:
    _, ours = pair()
    with pytest.raises(ValueError, match=r"attention_mask must be \(B, S\) .* at least \(2, 9\), got \("):
        ours(tokens(2, 9), attention_mask=torch.ones(shape))


def test_padding_with_biases_is_said_to_be_ignored() -> None:
    _, ids, mask = padded()
    stock, ours = pair(use_bias=True)
    with torch.no_grad(), pytest.warns(UserWarning, match="ignored by xLSTM models with use_bias"):
        assert_close_relative(ours(ids, attention_mask=mask).logits, stock(ids).logits, 1e-5)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(how: str) -> None:
    """As far from float32 as the model as it comes."""
    exact, ids = build(), tokens(2, 30)
    with torch.no_grad():
        expected = exact(ids).logits
        errors = []
        for model in pair(autocast_kernel_dtype="bfloat16"):
            model.bfloat16() if how == "weights" else model
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                errors.append(relative_error(model(ids).logits, expected))
                model.generate(ids[:, :5], max_new_tokens=3, pad_token_id=1)
    assert errors[1] < 1.5 * errors[0] < 0.2


def is_ours(model: Any) -> bool:
    kinds = {isinstance(block.mlstm_layer.mlstm_backend, MLSTMBackend) for block in model.backbone.blocks}
    kinds |= {isinstance(block.ffn, GatedForward) for block in model.backbone.blocks}
    assert len(kinds) == 1
    return kinds.pop()


def test_saved_and_loaded(tmp_path: Path) -> None:
    stock, ours = pair()
    ours.save_pretrained(tmp_path)
    assert not is_ours(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    patch()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert is_ours(loaded)
    assert stock.state_dict().keys() == loaded.state_dict().keys()
    with torch.no_grad():
        assert_close_relative(loaded(tokens(1, 8)).logits, stock(tokens(1, 8)).logits, 1e-5)


@pytest.mark.parametrize(
    "copied", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_copies(copied: Any) -> None:
    _, ids, mask = padded()
    _, ours = pair()
    twin = copied(ours)
    with torch.no_grad():
        assert torch.equal(twin(ids, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits)
    unpatch(ours)
    assert is_ours(twin) and not is_ours(ours)


def test_patched_and_unpatched() -> None:
    _, ids, mask = padded()
    before = build()
    init = vars(modeling.xLSTMModel)["__init__"]
    patch()
    patch()
    during, twice = build(), build()
    patch(twice)
    unpatch()
    assert [is_ours(model) for model in (before, during, twice, build())] == [False, True, True, False]
    assert vars(modeling.xLSTMModel)["__init__"] is init
    unpatch(during)
    unpatch(twice)
    unpatch(before)
    assert not any(map(is_ours, (before, during, twice)))
    with torch.no_grad():
        expected = before(ids, attention_mask=mask).logits
        for model in (during, twice):
            assert not model.backbone._forward_pre_hooks
            assert torch.equal(model(ids, attention_mask=mask).logits, expected)


def test_feed_forwards_of_other_classes_stay() -> None:
    model = build()
    ffn, other = (block.ffn for block in model.backbone.blocks[:2])
    ffn.__class__ = changed = type("Changed", (type(ffn),), {})
    patch(model)
    assert type(ffn) is changed and isinstance(other, GatedForward)
    unpatch(model)
    assert type(ffn) is changed and type(other) is changed.__base__


def test_former_names() -> None:
    model = build()
    integration.enable(model)
    assert is_ours(model)
    integration.disable(model)
    assert not is_ours(model)
    integration.enable()
    assert is_ours(build())
    integration.disable()
    assert not is_ours(build())


def test_the_base_model() -> None:
    stock = build().backbone
    ours = copy.deepcopy(stock)
    patch(ours)
    with torch.no_grad():
        expected = stock(tokens(2, 9)).last_hidden_state
        assert_close_relative(ours(tokens(2, 9), None, None, False)[0], expected, 1e-5)


def test_refused() -> None:
    with pytest.raises(ValueError, match="there is no xLSTMModel of transformers in this Linear"):
        patch(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        pair()[1](attention_mask=torch.ones(2, 3))
    for switch in (patch, unpatch):
        with pytest.raises(TypeError, match="a model .* or nothing is expected, got the class xLSTMForCausalLM"):
            switch(transformers.xLSTMForCausalLM)
        with pytest.raises(TypeError, match="a model .* or nothing is expected, got str"):
            switch("NX-AI/xLSTM-7b")  # type: ignore[arg-type]
    model, other = build(), build()
    for block in model.backbone.blocks:
        vars(block.mlstm_layer.mlstm_backend.config)["chunkwise_kernel"] = "chunkwise--triton_xl_chunk_siging"
    with pytest.raises(ValueError, match="sigmoid input gates"):
        patch(nn.ModuleList([other, model]))
    assert not is_ours(other) and not is_ours(model)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("transformers", "needs the package transformers: pip install"),
        ("transformers.models.xlstm", "has no xLSTM model, 4.57 or later is needed"),
    ],
)
def test_transformers_is_missing_or_old(module: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == module or name.startswith(module + ".")]:
        monkeypatch.delitem(sys.modules, name)
    if module.count("."):
        monkeypatch.delattr(transformers.models, "xlstm", raising=False)
    finder = type("Missing", (), {"find_spec": staticmethod(lambda name, *_: missing(name, module))})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(ImportError, match=message):
        patch()


def missing(name: str, hidden: str) -> None:
    if name == hidden:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
