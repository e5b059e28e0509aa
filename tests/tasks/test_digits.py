"""Digits read pixel by pixel: the split, the order of the pixels, a tiny run."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.tasks.__main__ import main
from examples.tasks.digits import Digits, DigitsOptions

datasets = pytest.importorskip("sklearn.datasets")

TINY = ["digits", "--steps", "2", "--batch-size", "4", "--dim", "8", "--heads", "1", "--out"]


def made(seed: int = 0, **options: object) -> Digits:
    return Digits(replace(DigitsOptions(), **options), seed, torch.device("cpu"))


def parts(task: Digits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(part.x, part.labels) for part in (task.training, task.validation, task.test)]


def keyed(x: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, ...]]:
    """Images as tuples with the label last, sorted."""
    return sorted((*image, label) for image, label in zip(x.flatten(1).tolist(), labels.tolist(), strict=True))


def test_every_image_is_in_one_part_with_its_label() -> None:
    images, labels = datasets.load_digits(return_X_y=True)
    given = keyed(torch.tensor(images), torch.tensor(labels))
    x, y = (torch.cat(column) for column in zip(*parts(made()), strict=True))
    assert x.shape == (1797, 64, 1)
    assert keyed((x + 1) * 8, y) == given


def test_the_split_follows_from_the_seed() -> None:
    for (x, labels), (same_x, same_labels), (other_x, _) in zip(
        parts(made(3)), parts(made(3)), parts(made(4)), strict=True
    ):
        assert torch.equal(x, same_x) and torch.equal(labels, same_labels) and not torch.equal(x, other_x)


def test_random_order_is_one_permutation_of_all_images() -> None:
    (rows, _), (shuffled, _) = parts(made(5))[2], parts(made(5, order="random"))[2]
    assert not torch.equal(rows, shuffled)
    places = [(rows[..., 0] == shuffled[:, t]).all(0).nonzero()[:, 0].tolist() for t in range(64)]
    unused = set(range(64))
    for candidates in sorted(places, key=len):  # pixels that are always blank fit in several places
        unused.remove(next(place for place in candidates if place in unused))
    assert not unused


def test_batches_are_training_images_and_follow_from_the_step(fresh_seed: int) -> None:
    task, step = made(), fresh_seed % 10_000
    batch = task.batch(step)
    assert set(keyed(batch.x, batch.labels)) <= set(keyed(task.training.x, task.training.labels))
    assert torch.equal(batch.x, task.batch(step).x) and not torch.equal(batch.x, task.batch(step + 1).x)
    assert len(batch.labels) == task.options.batch_size and (batch.lengths == 64).all()


def test_a_run(tmp_path: Path) -> None:
    assert main([*TINY, str(tmp_path)]) == 0
    found = json.loads((tmp_path / "digits-seed0.json").read_text())["results"]
    assert list(found) == ["xLSTM[1:1]", "xLSTM[0:1]", "LSTM", "Transformer", "logistic regression", "majority"]
    for result in found.values():
        share = result["accuracy"]
        assert 0 <= share <= 1
        assert result["standard error"] == pytest.approx(math.sqrt(share * (1 - share) / 600))
    assert found["logistic regression"]["accuracy"] > 0.9 and found["majority"]["accuracy"] < 0.2
    assert (tmp_path / "digits-seed0.png").stat().st_size > 5000


def test_without_scikit_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main([*TINY, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == "error: digits needs the package scikit-learn: pip install 'xlstm-cuda[tasks]'\n"
    assert not (tmp_path / "out").exists()


def test_unknown_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*TINY, str(tmp_path / "out"), "--order", "columns"])
    assert ended.value.code == 2 and "--order" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
