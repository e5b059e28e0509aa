"""Digits as images: the models and a tiny run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.tasks.__main__ import main
from examples.tasks.digits_2d import CNN, ONE_WAY, OURS, SHAPE, VIT, Digits2D
from examples.tasks.models import parameter_count

pytest.importorskip("sklearn.datasets")

TINY = ["digits-2d", "--steps", "2", "--batch-size", "4", "--dim", "8", "--heads", "1", "--blocks", "1", "--out"]


def made(**options: object) -> Digits2D:
    return Digits2D(replace(Digits2D.defaults, **options), 0, torch.device("cpu"))


def test_all_models_are_of_equal_size() -> None:
    sizes = {name: parameter_count(build()) for name, build in made().models().items()}
    assert list(sizes) == [OURS, ONE_WAY, VIT, CNN] and sizes[OURS] == sizes[ONE_WAY]
    assert all(abs(size - sizes[OURS]) < 0.1 * sizes[OURS] for size in sizes.values()), sizes


@pytest.mark.parametrize("name", [OURS, ONE_WAY, VIT])
def test_what_reads_what(name: str, fresh_seed: int) -> None:
    """Of the last patch knows the first one, but where all blocks read in one direction: two convolutions reach not so
    far.
    """
    model = made(blocks=1).models()[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    seen: list[torch.Tensor] = []
    last = model.blocks[-1] if name != VIT else model.layers
    last.register_forward_hook(lambda module, given, out: seen.append(out))
    x = torch.randn(2, *SHAPE)
    model.eval()(x)
    x[..., -2:, -2:] += 1
    model(x)
    assert torch.allclose(seen[0][:, 0], seen[1][:, 0], atol=1e-6) == (name == ONE_WAY)


def test_images_are_the_rows_of_pixels() -> None:
    task = made()
    batch, given = task.batch(0), []
    task.logits(lambda x: given.append(x) or torch.zeros(len(x), 10), batch)  # type: ignore[arg-type, func-returns-value]
    assert given[0].shape[1:] == SHAPE and torch.equal(given[0][:, 0, 2, 3], batch.x[:, 8 * 2 + 3, 0])


def test_verdict() -> None:
    task = made()
    results = {name: {"accuracy": 0.97, "standard error": 0.01} for name in (OURS, ONE_WAY, VIT, CNN)}
    results["majority"] = {"accuracy": 0.1, "standard error": 0.01}
    assert task.verdict(results).holds
    for name in (ONE_WAY, VIT, "majority"):
        assert not task.verdict({**results, name: {"accuracy": 0.99, "standard error": 0.01}}).holds
    assert task.verdict({**results, CNN: {"accuracy": 0.99, "standard error": 0.01}}).holds


def test_a_run(tmp_path: Path) -> None:
    assert main([*TINY, str(tmp_path)]) == 0
    found = json.loads((tmp_path / "digits-2d-seed0.json").read_text())["results"]
    assert list(found) == [OURS, ONE_WAY, VIT, CNN, "logistic regression", "majority"]
    assert (tmp_path / "digits-2d-seed0.png").stat().st_size > 5000
