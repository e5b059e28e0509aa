"""Fine-tuning of each kind of language model, by PEFT, transformers, TRL, accelerate, bitsandbytes and torchao."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_cuda import nn as xnn
from xlstm_cuda.interop import transformers as ours
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig, xLSTMLMModel, xLSTMLMModelConfig
from xlstm_cuda.testing import assert_close_relative

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # make test-packages; warnings of theirs

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [
    *SPECIAL,
    *sorted({"the", "cat", "dog", "mouse", "sat", "ran", "lay", "on", "under", "a", "mat", "table", "to"}),
]
STEPS = 4


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    ours.patch()
    yield
    ours.unpatch()


def lm() -> nn.Module:
    blocks: Any = {
        "mlstm_block": xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(num_heads=2)),
        "slstm_block": xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(num_heads=2)),
    }
    return xLSTMLMModel(xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=32, vocab_size=len(WORDS), **blocks))


def large() -> nn.Module:
    return xLSTMLarge(xLSTMLargeConfig(embedding_dim=32, num_heads=2, num_blocks=2, vocab_size=len(WORDS)))


def hugging_face() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.xLSTMForCausalLM(transformers.xLSTMConfig(autocast_kernel_dtype="float32", **sizes, **ids))


MODELS: dict[str, Callable[[], Any]] = {"lm": lm, "large": large, "transformers": hugging_face}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> Any:
    """Every parameter moved: DoRA divides by the norms of weights, and gates begin with zeros."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def ids(rows: int = 4, length: int = 9) -> Tensor:
    return torch.randint(4, len(WORDS), (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model: Any, x: Tensor) -> Tensor:
    y = model(x)
    return y if isinstance(y, Tensor) else y.logits


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Of logits (B, S, V), as Trainer calls it."""
    y = outputs if isinstance(outputs, Tensor) else outputs.logits
    return F.cross_entropy(y[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def train(model: nn.Module) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        loss_of(logits(model, ids()), ids()).backward()
        assert all(p.grad is not None for p in parameters), "a part of an adapter is not used"
        optimizer.step()
        optimizer.zero_grad()


def linear_maps(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def of_parameters(model: nn.Module) -> list[str]:
    """Matrices that are no nn.Linear's: block-diagonal maps and recurrent weights."""
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d)
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}
    return [name for name, p in model.named_parameters() if p.ndim == 3 and not isinstance(owners[name], kinds)]


@pytest.mark.parametrize("kind", ["lora", "dora", "parameters"])
@every_model
def test_adapters_train_and_come_back(name: str, kind: str, tmp_path: Path) -> None:
    """On every linear map, or on what has no nn.Linear; saved, read again, merged."""
    base = build(name)
    targets: dict[str, Any] = {"target_modules": linear_maps(base), "use_dora": kind == "dora"}
    if kind == "parameters":
        if name != "lm":
            pytest.skip("every matrix of this model is an nn.Linear's")
        targets = {"target_modules": [], "target_parameters": of_parameters(base)}
        assert any("recurrent" in path for path in targets["target_parameters"])
    adapted = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, **targets))
    train(adapted)
    with torch.no_grad():
        before, trained = logits(base.eval(), ids()), logits(adapted.eval(), ids())
        assert (trained - before).abs().max() > 1e-3
        adapted.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        assert torch.equal(logits(loaded, ids()), trained)
        assert_close_relative(logits(loaded.merge_and_unload(), ids()), trained, 1e-5)


def arguments(folder: Path, **options: Any) -> Any:
    plain: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1}
    sizes: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": STEPS, "learning_rate": 1e-2}
    return transformers.TrainingArguments(str(folder), remove_unused_columns=False, **plain, **sizes, **options)


def trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    """Our models take ids, and return logits alone: two arguments of Trainer say so."""
    data = [{"input_ids": row, "labels": row} for row in ids(16)]
    own: dict[str, Any] = {}
    if not hasattr(model, "generation_config"):

        def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {
                "ids": torch.stack([r["input_ids"] for r in rows]),
                "labels": torch.stack([r["labels"] for r in rows]),
            }

        own = {"data_collator": collate, "compute_loss_func": loss_of}
    return transformers.Trainer(model, arguments(folder, **options), train_dataset=data, **own)


@pytest.mark.parametrize("bf16", [False, True])
@every_model
def test_trainer(name: str, bf16: bool, tmp_path: Path) -> None:
    """Interrupted after half of the steps it ends with the same bits; recomputing activations changes nothing."""
    options: dict[str, Any] = {"bf16": bf16, "save_strategy": "steps", "save_steps": STEPS // 2}
    whole, resumed, recomputed = build(name), build(name), build(name)
    run = trainer(whole, tmp_path / "whole", **options)
    run.train()
    first = next(entry["loss"] for entry in run.state.log_history if "loss" in entry)
    assert 0.5 < first / torch.tensor(float(len(WORDS))).log() < 3
    checkpoint = str(tmp_path / "whole" / f"checkpoint-{STEPS // 2}")
    trainer(resumed, tmp_path / "resumed", **options).train(resume_from_checkpoint=checkpoint)
    trainer(recomputed, tmp_path / "recomputed", gradient_checkpointing=True, **options).train()
    for p, q, r, before in zip(*(m.parameters() for m in (whole, resumed, recomputed, build(name))), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, before)
        assert_close_relative(r, p, 1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of transformers and its tokenizer on disk."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path)
    build("transformers").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("weights", ["float32", "8 bits", "4 bits"])
def test_sft_trainer(weights: str, folder: Path) -> None:
    """TRL's SFTTrainer with LoRA, on weights in 8 or 4 bits by bitsandbytes too; what it saved answers the same."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    quantised = None
    if weights != "float32":
        pytest.importorskip("bitsandbytes")
        # The gates are maps to one number per head: bitsandbytes packs 32 rows on a CPU.
        bits: dict[str, Any] = {"llm_int8_skip_modules": ["igate_preact", "fgate_preact", "lm_head"]}
        bits |= {"load_in_8bit": weights == "8 bits", "load_in_4bit": weights == "4 bits"}
        quantised = transformers.BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=torch.float32)

    def load() -> Any:
        options = {"quantization_config": quantised, "device_map": "cpu"} if quantised else {}
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)

    text = [
        "the cat sat on a mat",
        "the dog lay under the table",
        "a mouse ran",
        "the cat ran to the mouse and then lay on it",
    ]
    config = trl.SFTConfig(
        str(folder / "run"), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_length=16,
        max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-2, bf16=False,
    )  # fmt: skip
    run = trl.SFTTrainer(
        load(),
        config,
        train_dataset=datasets.Dataset.from_dict({"text": text * 4}),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    run.train()
    trained = run.model.eval()
    trained.save_pretrained(folder / "adapter")
    for parameter in trained.parameters():
        if parameter.requires_grad:  # TRL keeps adapters of quantised weights in bfloat16, PEFT reads them as float32
            parameter.data = parameter.data.float()
    loaded = peft.PeftModel.from_pretrained(load(), folder / "adapter").eval()
    with torch.no_grad():
        assert (logits(trained, ids()) - logits(load().eval(), ids())).abs().max() > 1e-3
        assert_close_relative(logits(loaded, ids()), logits(trained, ids()), 1e-5)
        if weights == "float32":
            loaded.merge_and_unload().save_pretrained(folder / "merged")
            merged = transformers.AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
            assert_close_relative(logits(merged, ids()), logits(trained, ids()), 1e-5)


def test_device_map_with_parts_on_disk(folder: Path) -> None:
    pytest.importorskip("accelerate")
    load = transformers.AutoModelForCausalLM.from_pretrained
    places = {"backbone.embeddings": "cpu", "backbone.blocks.0": "disk", "backbone.blocks.1": "cpu"}
    places |= {"backbone.out_norm": "cpu", "lm_head": "disk"}
    plain, spread = load(folder).eval(), load(folder, device_map=places, offload_folder=folder / "offload").eval()
    assert any(p.is_meta for p in spread.parameters())
    with torch.no_grad():
        assert_close_relative(logits(spread, ids()), logits(plain, ids()), 1e-5)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(spread.generate(ids(), **options)[:, :9], ids())


@pytest.mark.parametrize("bits", [8, 4])
@every_model
def test_lora_on_weights_of_torchao(name: str, bits: int) -> None:
    """Weights in 8 or 4 bits under an adapter: as with the numbers that they stand for."""
    quantization = pytest.importorskip("torchao.quantization")
    model = build(name)
    if bits == 8:
        config = quantization.Int8WeightOnlyConfig()
    else:  # Int4WeightOnlyConfig has no packing for a CPU
        group = quantization.PerGroup(16)
        config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=group)
    before = logits(model, ids()).detach()
    quantization.quantize_(model, config)
    exact = build(name)
    with torch.no_grad():
        for path in linear_maps(model):
            exact.get_submodule(path).weight.copy_(model.get_submodule(path).weight.dequantize())
    config = peft.LoraConfig(r=2, target_modules=linear_maps(model))
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        y, wanted = logits(adapted, ids()), logits(exact, ids())
    assert (y - wanted).norm() < 0.01 * (wanted - before).norm()
    train(adapted)
    assert (logits(adapted, ids()) - y).abs().max() > 1e-3
