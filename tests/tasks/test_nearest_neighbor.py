"""Nearest-neighbour search of examples/tasks: answers by definition, measures, runs, wrong options."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples.tasks.__main__ import main
from examples.tasks.nearest_neighbor import CHANCE, NearestNeighbor, NearestNeighborOptions

TINY = ["--steps", "2", "--batch-size", "2", "--dim", "8", "--max-length", "5", "--test-length", "9"]
TINY += ["--test-sequences", "4"]
OPTIONS = NearestNeighborOptions(batch_size=4, dim=8, max_length=6, test_length=11, test_sequences=8)


def test_answers_are_the_values_of_the_nearest_so_far(fresh_seed: int) -> None:
    """Of one of the nearest where several are equally near up to the rounding of a product of unit vectors."""
    x, answers = NearestNeighbor.sequences(10, 20, torch.Generator().manual_seed(fresh_seed))
    assert x.shape == (10, 21, 3) and answers.shape == (10, 20)
    for (query, *pairs), said in zip(x.tolist(), answers.tolist(), strict=True):
        assert query[2] == -1
        near = [pair[0] * query[0] + pair[1] * query[1] for pair in pairs]
        for t, answer in enumerate(said, 1):
            least = max(near[:t]) - 4 * torch.finfo(torch.float32).eps
            assert answer in [pair[2] for pair, product in zip(pairs[:t], near, strict=False) if product >= least]


def test_vectors_point_everywhere_and_values_fill_the_unit_interval(fresh_seed: int) -> None:
    """Bounds of six standard deviations and more."""
    x, _ = NearestNeighbor.sequences(100, 60, torch.Generator().manual_seed(fresh_seed))
    vectors, values = x[..., :2], x[:, 1:, 2]
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(100, 61))
    assert vectors.mean(dim=(0, 1)).abs().max() < 0.06
    assert values.min() >= 0 and values.max() < 1
    assert values.var().item() == pytest.approx(CHANCE, rel=0.1)


class Oracle(nn.Module):
    """The right answer and `off`, from the first vector on."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        similarity = (x[..., :2] * x[:, :1, :2]).sum(-1)
        similarity[:, 0] = -2
        return x[..., 2].gather(1, similarity.cummax(1).indices)[..., None] + self.off


def test_measures() -> None:
    task = NearestNeighbor(OPTIONS, 0, torch.device("cpu"))
    assert task.score(Oracle(0.0)) == pytest.approx(1)
    assert task.score(Oracle(math.sqrt(CHANCE))) == pytest.approx(0, abs=1e-5)
    found = task.results(Oracle(0.5))
    assert found["error 1-6"] == pytest.approx(0.25)
    assert found["error 7-11"] == pytest.approx(0.25)
    assert found["by_length"] == pytest.approx([0.25] * 11)
    assert task.loss(Oracle(0.5), 0).item() == pytest.approx(0.25)


def test_verdict() -> None:
    task = NearestNeighbor(OPTIONS, 0, torch.device("cpu"))
    for error, holds in ((0.01, True), (0.03, False)):
        assert task.verdict({"xLSTM[0:1]": {"error 1-6": error}, "LSTM": {"error 1-6": 0.04}}).holds is holds


def test_learning_rates() -> None:
    task = NearestNeighbor(OPTIONS, 0, torch.device("cpu"))
    assert [task.lr(name) for name in ("xLSTM[0:1]", "xLSTM[1:0]")] == [OPTIONS.lr] * 2
    assert task.lr("LSTM") == OPTIONS.lstm_lr
    assert task.lr("Transformer") == OPTIONS.transformer_lr


def test_run(tmp_path: Path) -> None:
    assert main(["nearest-neighbor", *TINY, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "nearest-neighbor-seed0.json").read_text())
    assert list(found["results"]) == ["xLSTM[0:1]", "xLSTM[1:0]", "LSTM", "Transformer"]
    for result in found["results"].values():
        assert all(math.isfinite(error) for error in (result["error 1-5"], result["error 6-9"], *result["by_length"]))
    assert (tmp_path / "nearest-neighbor-seed0.png").stat().st_size > 1000


def test_lengths_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["nearest-neighbor", "--max-length", "64", "--test-length", "64", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
