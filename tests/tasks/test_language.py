"""The experiments on text: losses against loops, verdicts on planted results, the command line, bad input."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples.lm.data import held_out_batches, train_batch  # noqa: E402
from examples.tasks import domains  # noqa: E402
from examples.tasks.__main__ import main  # noqa: E402
from examples.tasks.ablation import Ablation, LSTMCell, ResidualLSTM  # noqa: E402
from examples.tasks.domains import Domains  # noqa: E402
from examples.tasks.extrapolation import Extrapolation  # noqa: E402
from examples.tasks.ladder import Ladder, rung  # noqa: E402
from examples.tasks.language import METRIC, Language  # noqa: E402
from examples.tasks.models import parameter_count  # noqa: E402
from examples.tasks.report import is_number  # noqa: E402
from xlstm_cuda.nn.slstm_layer import sLSTMLayerConfig  # noqa: E402

CPU = torch.device("cpu")
TINY = shlex.split("--steps 2 --dim 8 --blocks 2 --heads 2 --seq-len 16 --batch-size 2 --eval-windows 3")
EXTRA = {"extrapolation": ["--test-length", "64"], "ladder": ["--sizes", "2"]}
TASKS: dict[str, type[Language]] = {task.name: task for task in (Ablation, Extrapolation, Ladder, Domains)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    """Two files, of different words."""
    folder = tmp_path_factory.mktemp("data")
    for name, words in {"a.txt": ["state", "gate", "cell"], "b.txt": ["norm", "memory", "\n"]}.items():
        (folder / name).write_text(" ".join(random.Random(0).choices(words, k=1200)))
    return [str(folder / name) for name in ("a.txt", "b.txt")]


def run(name: str, out: Path, *more: str) -> int:
    return main([name, *TINY, *EXTRA.get(name, []), "--out", str(out), *more])


def tiny(kind: type[Language], data: list[str], **options) -> Language:
    chosen = {"seq_len": 16, "batch_size": 2, "eval_windows": 5, **options}
    if kind is Extrapolation:
        chosen = {"test_length": 80, **chosen}
    return kind(replace(kind.defaults, data=tuple(data), **chosen), 3, CPU)


class Table(nn.Module):
    """Logits from the byte alone, made sharper with the position in the window."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, 256))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids] * torch.linspace(0, 1, 100)[: ids.shape[1], None]

    def bits(self, inputs: Tensor, targets: Tensor, t: int) -> float:
        """Of one byte at position t."""
        return -(self.table[inputs[t]] * t / 99).log_softmax(-1)[targets[t]].item() / math.log(2)


# The command line.


@pytest.mark.parametrize("name", TASKS)
def test_a_run_leaves_finite_results_and_says_what_was_read(name: str, texts: list[str], tmp_path: Path) -> None:
    assert run(name, tmp_path, "--data", *texts) == 0
    found = json.loads((tmp_path / f"{name}-seed0.json").read_text())
    assert (tmp_path / f"{name}-seed0.png").read_bytes().startswith(b"\x89PNG")
    for result in found["results"].values():
        assert all(math.isfinite(value) and value >= 0 for value in result.values() if is_number(value))
        assert result["steps"] == 2
    read = [Path(path).read_bytes() for path in texts]
    read = read if name == "domains" else [b"".join(read)]
    assert [entry["sha256"] for entry in found["data"].values()] == [hashlib.sha256(b).hexdigest() for b in read]
    assert [entry["train_bytes"] + entry["held_out_bytes"] for entry in found["data"].values()] == list(map(len, read))


def test_resume_gives_the_same_results_and_refuses_other_text(texts, tmp_path, capsys) -> None:
    data = tmp_path / "data.txt"
    data.write_bytes(Path(texts[0]).read_bytes())
    assert run("domains", tmp_path / "out", "--data", str(data)) == 0
    first = json.loads((tmp_path / "out/domains-seed0.json").read_text())["results"]
    assert run("domains", tmp_path / "out", "--data", str(data), "--resume") == 0
    assert json.loads((tmp_path / "out/domains-seed0.json").read_text())["results"] == first
    data.write_bytes(Path(texts[1]).read_bytes())
    assert run("domains", tmp_path / "out", "--data", str(data), "--resume") == 2
    assert "cannot resume" in capsys.readouterr().err


# What cannot be used: one sentence, and nothing is written.


def refused(capsys, name: str, out: Path, *more: str) -> str:
    assert run(name, out, *more) == 2
    assert not out.exists()
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


@pytest.mark.parametrize("name", TASKS)
def test_missing_short_and_empty_data_is_refused(name: str, texts, tmp_path, capsys) -> None:
    out, short, empty = tmp_path / "out", tmp_path / "short.txt", tmp_path / "empty"
    short.write_text("too short")
    empty.mkdir()
    assert f"{tmp_path}/none.txt does not exist" in refused(capsys, name, out, "--data", f"{tmp_path}/none.txt")
    assert "9 bytes" in refused(capsys, name, out, "--data", str(short))
    assert f"no files in the folder {empty}" in refused(capsys, name, out, "--data", str(empty))
    if name == "domains":
        assert f"domain {short}: " in refused(capsys, name, out, "--data", texts[0], str(short))


def test_options_that_do_not_fit_are_refused(texts, tmp_path, capsys) -> None:
    out, data = tmp_path / "out", ["--data", texts[0]]
    for length in ("70", "16", "8"):
        assert "multiple" in refused(capsys, "extrapolation", out, *data, "--test-length", length)
    assert "--test-length" in refused(capsys, "extrapolation", out, *data, "--test-length", "4096")
    assert "--sizes 1" in refused(capsys, "ladder", out, *data, "--sizes", "1")
    assert "twice" in refused(capsys, "domains", out, "--data", texts[0], texts[0])
    assert "twice" in refused(capsys, "domains", out, "--data", texts[0], str(Path(texts[0]).parent))


def test_default_domains_say_which_package_they_need(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(domains, "find_spec", lambda name: None)
    assert "package django: pip install" in refused(capsys, "domains", tmp_path / "out")
    monkeypatch.setattr(domains, "find_spec", lambda name: importlib.util.find_spec("examples.tasks"))
    assert "no installed package has files" in refused(capsys, "domains", tmp_path / "out")


def test_default_domains_are_files_of_their_kind() -> None:
    pytest.importorskip("django")
    pytest.importorskip("statsmodels")
    suffixes = {
        "C++": ".h",
        "English": "",
        "JavaScript": ".js",
        "Python": ".py",
        "tables": ".csv",
        "translations": ".po",
    }
    found = domains.installed()
    assert {name: {path.suffix for path in files} for name, files in found.items()} == {
        name: {suffix} for name, suffix in suffixes.items()
    }
    assert all(files == sorted(set(files)) for files in found.values())


# Models.


@pytest.mark.parametrize("name", TASKS)
def test_models_are_of_equal_size(name: str, texts: list[str]) -> None:
    kind = TASKS[name]
    shorter = {"data": tuple(texts[:1]), "seq_len": 16, **({"test_length": 32} if name == "extrapolation" else {})}
    task = kind(replace(kind.defaults, **shorter), 0, CPU)
    with torch.device("meta"):
        counts = {model: parameter_count(build()) for model, build in task.models().items()}
    for size in range(task.options.sizes) if isinstance(task, Ladder) else [None]:
        rungs = [count for model, count in counts.items() if size is None or model.endswith(f"size {size + 1}")]
        assert len(rungs) > 2 and max(rungs) <= 1.2 * min(rungs), counts


def test_the_lstm_of_the_up_projection_is_an_lstm() -> None:
    cell = LSTMCell(sLSTMLayerConfig(embedding_dim=6, num_heads=2))
    nn.init.normal_(cell._recurrent_kernel_)
    x = torch.randn(2, 9, 4, 2, 3)
    R, b = cell._weights()
    h = c = torch.zeros(2, 2, 3)
    expected = []
    for t in range(9):
        i, f, g, o = (x[:, t] + torch.einsum("ghij,bhj->bghi", R, h) + b).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        expected.append(h)
    torch.testing.assert_close(cell(x)[0], torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_residual_lstm_is_a_sum_of_its_layers() -> None:
    model = ResidualLSTM(6, 2)
    nn.init.normal_(model.norms[1].weight)
    x = y = torch.randn(2, 5, 6)
    for layer, norm in zip(model.layers, model.norms, strict=False):
        plain = nn.LSTM(6, 6, batch_first=True)
        plain.load_state_dict(layer.state_dict())
        y = y + plain(norm(y))[0]
    torch.testing.assert_close(model(x), model.norms[2](y), rtol=1e-4, atol=1e-5)


def test_learning_rates_by_family(texts: list[str]) -> None:
    task = tiny(Ablation, texts, lr=1.0, lstm_lr=2.0, transformer_lr=3.0)
    rates = {"LSTM + residual": 2.0, "xLSTM[0:1]": 1.0, "LSTM": 2.0, "Transformer": 3.0}
    assert {name: task.lr(name) for name in rates} == rates
    ladder = tiny(Ladder, texts, lr=1.0, lstm_lr=2.0, transformer_lr=3.0)
    assert [ladder.lr(rung("xLSTM[1:1]", size)) for size in range(3)] == pytest.approx([1, 0.5**0.5, 0.5])
    assert ladder.lr(rung("LSTM", 2)) == pytest.approx(1)


# Losses against loops.


@pytest.mark.parametrize("kind", TASKS.values())
def test_training_loss_is_the_mean_over_all_corpora_and_a_function_of_the_step(kind, texts: list[str]) -> None:
    task, model = tiny(kind, texts), Table()
    bits = [
        model.bits(row, goal, t)
        for corpus in task.corpora.values()
        for row, goal in zip(*train_batch(corpus, 7, 2, 16, 3), strict=True)
        for t in range(16)
    ]
    loss = task.loss(model, 7).item()
    assert loss / math.log(2) == pytest.approx(sum(bits) / len(bits), rel=1e-4)
    assert tiny(kind, texts).loss(model, 7).item() == loss
    assert task.loss(model, 8).item() != loss


def test_held_out_bits_in_each_domain(texts: list[str]) -> None:
    task, model = tiny(Domains, texts), Table()
    found = task.results(model)
    assert len(found) == len(texts)
    for path in texts:
        raw = Path(path).read_bytes()
        held_out = torch.tensor(list(raw[len(raw) - len(raw) // 10 :]))
        starts = [window * ((len(held_out) - 1) // 16) // 5 * 16 for window in range(5)]
        bits = [model.bits(held_out[s:], held_out[s + 1 :], t) for s in starts for t in range(16)]
        assert found[f"bits/byte {path}"] == pytest.approx(sum(bits) / len(bits), rel=1e-4)


def test_extrapolation_by_position_and_in_pieces(texts: list[str]) -> None:
    """Positions 0-16, 16-32, 32-64, 64-80, the last of them again as one piece."""
    task, model = tiny(Extrapolation, texts), Table()
    found = task.results(model)
    windows = [pair for batch in held_out_batches(task.corpora["text"], 5, 5, 80) for pair in zip(*batch, strict=True)]
    assert found["test windows"] == len(windows) == 5
    for low, high in pairwise((0, 16, 32, 64, 80)):
        bits = [model.bits(*window, t) for window in windows for t in range(low, high)]
        assert found[f"bits at {low}-{high}"] == pytest.approx(sum(bits) / len(bits), rel=1e-4)
    bits = [model.bits(inputs[64:], targets[64:], t) for inputs, targets in windows for t in range(16)]
    assert found["the same in pieces"] == pytest.approx(sum(bits) / len(bits), rel=1e-4)
    assert len(task.ranges()) == 4


# Verdicts on planted results.


def ablated(bits: list[float]) -> Mapping[str, dict]:
    return {name: {METRIC: value} for name, value in zip((*Ablation.chain, "Transformer"), bits, strict=True)}


def test_verdict_of_the_ablation(texts: list[str]) -> None:
    task = tiny(Ablation, texts)
    assert task.verdict(ablated([4, 3, 2.5, 2.2, 2, 2.1])).holds
    assert not task.verdict(ablated([4, 3, 2.5, 2.505, 2, 2.1])).holds  # one change does nothing
    assert not task.verdict(ablated([4, 3, 2.5, 2.2, 2.195, 2.4])).holds  # less than the margin
    assert not task.verdict(ablated([4, 3, 2.5, 2.2, 2, 1.9])).holds  # the Transformer is better


def test_verdict_of_the_extrapolation(texts: list[str]) -> None:
    task = tiny(Extrapolation, texts)
    names, last, pieces = ("xLSTM[1:0]", "xLSTM[1:1]", "LSTM", "Transformer"), "bits at 64-80", "the same in pieces"

    def holds(long: list[float], short: list[float]) -> bool:
        pairs = zip(names, long, short, strict=True)
        return task.verdict({name: {last: a, pieces: b} for name, a, b in pairs}).holds

    assert holds([2, 2, 3, 5], [2.1, 2.1, 3, 4])
    assert not holds([2, 2.2, 3, 5], [2.1, 2.1, 3, 4])  # worse than in pieces
    assert not holds([2, 2, 3, 3.9], [2.1, 2.1, 3, 4])  # the Transformer extrapolates
    assert not holds([2, 3, 3, 2.9], [2.1, 3.1, 3, 2.8])  # the Transformer is better


def test_ladder_finds_a_planted_power_law(texts: list[str]) -> None:
    task = tiny(Ladder, texts)
    exponents = {"xLSTM[1:1]": -0.2, "LSTM": -0.1, "Transformer": -0.15}
    results = {
        rung(family, size): {"parameters": 1000 * 3**size, METRIC: 9 * (1000 * 3**size) ** exponent}
        for size in range(4)
        for family, exponent in exponents.items()
    }
    for family, exponent in exponents.items():
        assert task.curve(results, family)[2:] == pytest.approx((exponent, 9))
    assert task.verdict(results).holds
    changes = [("Transformer size 3", 1.7, True), ("Transformer size 3", 0.3, False), ("xLSTM[1:1] size 2", 1.7, False)]
    changes.append(("xLSTM[1:1] size 2", 0.3, False))  # better than the next size: the loss does not fall
    for name, factor, holds in changes:
        changed = {**results, name: {**results[name], METRIC: factor * results[name][METRIC]}}
        assert task.verdict(changed).holds == holds


def test_verdict_of_the_domains(texts: list[str]) -> None:
    task = tiny(Domains, texts)
    keys = [f"bits/byte {path}" for path in texts]

    def holds(**bits: list[float]) -> bool:
        names = {"x": "xLSTM[1:0]", "l": "LSTM", "t": "Transformer"}
        return task.verdict({names[k]: dict(zip(keys, v, strict=True)) for k, v in bits.items()}).holds

    assert holds(x=[1, 2], l=[1.1, 2.1], t=[1.2, 2.1])
    assert holds(x=[1, 2], l=[1.1, 1.9], t=[1.2, 2.1])
    assert not holds(x=[1, 2], l=[1.1, 2.1], t=[1.2, 2])
