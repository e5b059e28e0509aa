"""Associative recall of examples/tasks: questions and labels by definition, runs, wrong options."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples.tasks.__main__ import main
from examples.tasks.recall import IGNORED, Recall, RecallOptions

TINY = ["--steps", "2", "--batch-size", "2", "--dim", "8", "--vocabulary", "8", "--pairs", "3", "--length", "9"]
TINY += ["--test-sequences", "4"]
OPTIONS = RecallOptions(batch_size=4, dim=8, vocabulary=20, pairs=5, length=24, test_sequences=8)


def task() -> Recall:
    return Recall(OPTIONS, 0, torch.device("cpu"))


def test_labels_are_the_values_of_the_keys_asked_for() -> None:
    seed = random.SystemRandom().randrange(2**31)
    ids, labels = task().sequences(50, torch.Generator().manual_seed(seed))
    assert ids.shape == labels.shape == (50, 24), seed
    asked: set[int] = set()
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        pairs, questions = row[:10], row[10:]
        memory = dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert len(memory) == 5, seed
        assert all(key < 10 <= value < 20 for key, value in memory.items()), seed
        assert label == [IGNORED] * 10 + [memory[key] for key in questions], seed
        asked |= {pairs[::2].index(key) for key in questions}
    assert asked == set(range(5)), seed
    assert set(ids.flatten().tolist()) == set(range(20)), seed


class Oracle(nn.Module):
    """Looks the key up; wrong for the first `wrong` pairs."""

    def __init__(self, wrong: int = 0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        keys, values = ids[:, :10:2], ids[:, 1:10:2].clone()
        values[:, : self.wrong] = 0
        found = (ids[:, :, None] == keys[:, None]).long().argmax(-1)
        return 20.0 * nn.functional.one_hot(values.gather(1, found), 20).float()


def test_measures() -> None:
    assert task().score(Oracle()) == 1
    assert task().results(Oracle()) == {"accuracy": 1}
    assert task().results(Oracle(wrong=5)) == {"accuracy": 0}
    assert 0.6 < task().results(Oracle(wrong=1))["accuracy"] < 0.95
    assert task().loss(Oracle(), 0).item() < 1e-3


def test_verdict() -> None:
    for mlstm, lstm, holds in ((1.0, 0.5, True), (0.98, 0.5, False), (1.0, 0.95, False)):
        assert task().verdict({"xLSTM[1:0]": {"accuracy": mlstm}, "LSTM": {"accuracy": lstm}}).holds is holds


def test_run(tmp_path: Path) -> None:
    assert main(["recall", *TINY, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "recall-seed0.json").read_text())
    assert set(found["results"]) == set(task().models())
    assert {"xLSTM[1:0]", "LSTM"} <= set(found["results"])
    assert all(0 <= result["accuracy"] <= 1 for result in found["results"].values())
    assert (tmp_path / "recall-seed0.png").stat().st_size > 1000


@pytest.mark.parametrize("given", [["--pairs", "33"], ["--pairs", "24"]])
def test_sizes_that_do_not_fit(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More pairs than keys; no room for a question."""
    out = tmp_path / "out"
    assert main(["recall", *given, "--length", "48", "--vocabulary", "64", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--pairs" in error
    assert not out.exists()
