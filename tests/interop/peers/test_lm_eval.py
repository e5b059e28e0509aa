"""The lm-evaluation-harness with our models and with transformers' own, on small local tasks of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.support.tiny_models import blocks_lm
from xlstm_cuda.interop.checkpoints import convert

lm_eval = pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
from lm_eval.models.huggingface import HFLM  # noqa: E402

from xlstm_cuda.interop.lm_eval import XLSTMCuda  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # make test-packages
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = [
    *SPECIAL.values(),
    "the",
    "cat",
    "dog",
    "mouse",
    "sat",
    "ran",
    "lay",
    "on",
    "under",
    "a",
    "mat",
    "table",
    "to",
    "and",
    ".",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of transformers with its tokenizer."""
    found = tmp_path_factory.mktemp("model")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained(found)
    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": len(WORDS)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = transformers.xLSTMForCausalLM(transformers.xLSTMConfig(autocast_kernel_dtype="float32", **sizes, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Multiple choice as in the common-sense sets, a cloze, perplexity of two domains, and generation."""
    place = tmp_path_factory.mktemp("tasks")

    def task(name: str, kind: str, rows: list[dict[str, Any]], metrics: Sequence[str], **fields: Any) -> dict[str, Any]:
        (place / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
        files = {"data_files": {"test": str(place / f"{name}.json")}}
        found = {"task": name, "output_type": kind, "dataset_path": "json", "dataset_kwargs": files}
        return {**found, "test_split": "test", "metric_list": [{"metric": metric} for metric in metrics], **fields}

    choices = [
        {"text": "the cat sat on", "choices": ["a mat", "the dog and the mouse", "a"], "label": 0},
        {"text": "the dog ran", "choices": ["under the table", "a", "."], "label": 1},
        {"text": "a", "choices": ["cat", "mouse ran to the dog"], "label": 1},
    ]
    cloze = [{"text": "the cat sat on a", "end": "mat"}, {"text": "a dog and a mouse ran under the", "end": "table ."}]
    domains = {
        "pets": [{"text": "the cat and the dog sat on a mat ."}, {"text": "the mouse ran ."}],
        "rooms": [{"text": "a table and a mat . " * 9}],
    }
    per_word = ["word_perplexity", "bits_per_byte"]
    plain = {"doc_to_text": "{{text}}", "doc_to_target": "{{end}}"}
    chosen = {"doc_to_text": "{{text}}", "doc_to_target": "label", "doc_to_choice": "choices"}
    whole = {"doc_to_text": "", "doc_to_target": "{{text}}"}
    until = {"generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False}}
    return [
        task("choices", "multiple_choice", choices, ["acc", "acc_norm"], **chosen),
        task("cloze", "loglikelihood", cloze, ["perplexity", "acc"], **{**plain, "doc_to_target": " {{end}}"}),
        *(task(name, "loglikelihood_rolling", rows, per_word, **whole) for name, rows in domains.items()),
        task("going_on", "generate_until", cloze, ["exact_match"], **plain, **until),
    ]


def evaluated(model: Any, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model, tasks=[dict(task) for task in tasks], log_samples=True, bootstrap_iters=0
    )
    return {
        **{
            (task, name): value
            for task, of in found["results"].items()
            for name, value in of.items()
            if "stderr" not in name
        },
        **{(task, "answers"): [s["resps"] for s in samples] for task, samples in found["samples"].items()},
    }


def flat(value: Any) -> list[Any]:
    return [x for part in value for x in flat(part)] if isinstance(value, (list, tuple)) else [value]


def test_same_numbers_as_transformers(folder: Path, tasks: list[dict[str, Any]]) -> None:
    # Its cache of logits mixes up requests of different tasks whose tokens, but for the last one, are the same. Padding
    # leaves a trace in what the model of transformers generates: so one row at a time.
    theirs = HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32", logits_cache=False)
    expected = evaluated(theirs, tasks)
    assert len({task for task, _ in expected}) == len(tasks)
    for options in ({}, {"batch_size": 3, "chunk_size": 2, "max_length": 2048}):
        actual = evaluated(XLSTMCuda(str(folder), **options), tasks)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            for a, e in zip(flat(actual[key]), flat(value), strict=True):
                assert a == (pytest.approx(e, rel=1e-4, abs=1e-4) if isinstance(e, float) else e), key


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_long_texts_and_other_layouts(folder: Path, tmp_path: Path) -> None:
    """With a maximum length as the harness's own model; without, the text as a whole. The state is what is left."""
    text = "the cat and the dog ran to a mouse under the table . " * 8
    convert(folder, tmp_path / "ours", "xlstm_cuda")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = XLSTMCuda(str(tmp_path / "ours"), tokenizer=tokenizer, chunk_size=10)
    ids = torch.tensor([[1, *tokenizer.encode(text)]])
    with torch.no_grad():
        exact = -F.cross_entropy(model.model(ids[:, :-1]).mT, ids[:, 1:], reduction="sum").item()
    assert model.loglikelihood_rolling([request(text)])[0] == pytest.approx(exact, rel=1e-5)
    windows = {"pretrained": str(folder), "max_length": 16}
    theirs = HFLM(device="cpu", dtype="float32", **windows)
    ours = XLSTMCuda(**windows)
    expected = theirs.loglikelihood_rolling([request(text)])[0]
    assert ours.loglikelihood_rolling([request(text)])[0] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(exact, rel=1e-5)
    pair = [request(text, " mat .")]
    assert ours.loglikelihood(pair)[0] == pytest.approx(theirs.loglikelihood(pair)[0], rel=1e-5)


def test_our_language_model(folder: Path) -> None:
    """Scores are sums over the model's own logits, however requests share contexts."""
    torch.manual_seed(0)
    model = blocks_lm()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    harness = XLSTMCuda(model, tokenizer=tokenizer, batch_size=2, chunk_size=3)
    pairs = [
        ("the cat sat", " on a mat"),
        ("", "a dog"),
        ("the cat sat", " ."),
        ("a", " dog lay under the mat"),
        ("the cat", " sat"),
    ]
    results = harness.loglikelihood([request(*pair) for pair in pairs])
    for (context, continuation), (score, greedy) in zip(pairs, results, strict=True):
        before = tokenizer.encode(context) or [1]
        ids = torch.tensor([before + tokenizer.encode(continuation)])
        with torch.no_grad():
            logits = model(ids[:, :-1])[0, len(before) - 1 :]
        targets = ids[0, len(before) :]
        assert score == pytest.approx(-F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-4)
        assert greedy == bool((logits.argmax(-1) == targets).all())
    options = {"until": [], "max_gen_toks": 5}
    alone = [harness.generate_until([request(context, options)])[0] for context, _ in pairs]
    assert harness.generate_until([request(context, options) for context, _ in pairs]) == alone
    stopped = {"until": [alone[0].split()[2]], "max_gen_toks": 5}
    assert alone[0].startswith(harness.generate_until([request(pairs[0][0], stopped)])[0])
    sampled = {"do_sample": True, "temperature": 2.0, "top_k": 3, "max_gen_toks": 5}
    assert harness.generate_until([request("a", sampled)])[0]


def test_odd_requests(folder: Path) -> None:
    """Sampling at temperature 0 is greedy, nothing to score is 0 at any length, "auto" is a number of rows."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    harness = XLSTMCuda(blocks_lm(), tokenizer=tokenizer, batch_size="auto:4", max_length=2)
    assert harness.batch_size == 8
    greedy, cold = {"max_gen_toks": 8}, {"do_sample": True, "temperature": 0.0, "max_gen_toks": 8}
    assert harness.generate_until([request("a", cold)]) == harness.generate_until([request("a", greedy)])
    ids = tokenizer.encode("the cat sat on a mat")
    assert harness._loglikelihood_tokens([(None, ids, [])]) == [(0.0, True)]


def test_refusals(folder: Path) -> None:
    with pytest.raises(ValueError, match="^XLSTMCuda: a model that is built already needs a tokenizer"):
        XLSTMCuda(blocks_lm())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="^XLSTMCuda: the tokenizer has no eos_token"):
        XLSTMCuda(blocks_lm(), tokenizer=tokenizer)


def test_command(folder: Path, tasks: list[dict[str, Any]], tmp_path: Path) -> None:
    """The harness's command, which knows the model's name by then."""
    yaml = pytest.importorskip("yaml")
    (tmp_path / "choices.yaml").write_text(yaml.safe_dump(tasks[0]))
    command = [sys.executable, "-m", "xlstm_cuda.interop.lm_eval", "run", "--model", "xlstm_cuda", "--tasks", "choices"]
    command += ["--model_args", f"pretrained={folder}", "--include_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "|choices|" in done.stdout and "acc_norm" in done.stdout
