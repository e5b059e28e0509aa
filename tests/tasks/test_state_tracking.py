"""The formal languages of examples/tasks: labels by definition, when a model may stop, runs, wrong options."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples.tasks.__main__ import main
from examples.tasks.state_tracking import (
    IGNORED,
    CycleNavigation,
    EvenPairs,
    ModularArithmetic,
    Parity,
    StateTracking,
    StateTrackingOptions,
)

TASKS = (Parity, EvenPairs, CycleNavigation, ModularArithmetic)
TINY = ["--steps", "2", "--batch-size", "2", "--dim", "8", "--max-length", "5", "--test-length", "9"]
TINY += ["--test-sequences", "4"]
SIZES = {"batch_size": 4, "dim": 8, "max_length": 6, "test_length": 11, "test_sequences": 8}
OPTIONS = StateTrackingOptions(**SIZES)


def task_of(kind: type[StateTracking], **options: float) -> StateTracking:
    return kind(replace(kind.defaults, **SIZES, **options), 0, torch.device("cpu"))


def parity(word: list[int]) -> int:
    return word.count(1) % 2


def even_pairs(word: list[int]) -> int:
    return sum(a != b for a, b in zip(word, word[1:], strict=False)) % 2 == 0


def cycle_navigation(word: list[int], modulus: int) -> int:
    position = 0
    for token in word:
        position = {0: position - 1, 1: position, 2: position + 1}[token]
        position = {-1: modulus - 1, modulus: 0}.get(position, position)
    return position


def modular_arithmetic(word: list[int], modulus: int) -> int:
    """IGNORED after an operator."""
    if len(word) % 2 == 0:
        return IGNORED
    return eval("".join(str(token) if token < modulus else "+-*"[token - modulus] for token in word)) % modulus


CASES = [
    (task_of(Parity), parity),
    (task_of(EvenPairs), even_pairs),
    *((task_of(CycleNavigation, modulus=m), partial(cycle_navigation, modulus=m)) for m in (3, 5)),
    *((task_of(ModularArithmetic, modulus=m), partial(modular_arithmetic, modulus=m)) for m in (3, 5)),
]


@pytest.mark.parametrize(("task", "definition"), CASES)
def test_labels_of_all_prefixes(task: StateTracking, definition: Callable[[list[int]], int], fresh_seed: int) -> None:
    ids, labels = task.sequences(20, 17, torch.Generator().manual_seed(fresh_seed))
    assert ids.shape == labels.shape == (20, 17)
    expected = [[definition(row[: t + 1]) for t in range(17)] for row in ids.tolist()]
    assert labels.tolist() == expected


@pytest.mark.parametrize("task", [task for task, _ in CASES])
def test_all_tokens_and_answers_occur(task: StateTracking, fresh_seed: int) -> None:
    ids, labels = task.sequences(300, 20, torch.Generator().manual_seed(fresh_seed))
    assert set(ids.flatten().tolist()) == set(range(task.tokens))
    assert set(labels.flatten().tolist()) - {IGNORED} == set(range(task.answers))


def test_expressions_alternate() -> None:
    ids = task_of(ModularArithmetic).sequences(50, 12, torch.Generator().manual_seed(0))[0]
    assert ids[:, ::2].max() == 2
    assert ids[:, 1::2].min() == 3


def test_modulus_of_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cycle-navigation", "--modulus", "1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: --modulus 1 must be at least 2\n"


def test_walks_have_their_own_odds(fresh_seed: int) -> None:
    """The steps of one walk agree more than those of walks with equal odds would."""
    ids = task_of(CycleNavigation).sequences(500, 40, torch.Generator().manual_seed(fresh_seed))[0]
    assert (ids - 1).sum(1).double().std() > 2 * math.sqrt(40 * 2 / 3)


class Oracle(nn.Module):
    """The logits of parity, `confidence` for the right answer; wrong after `until` tokens."""

    def __init__(self, confidence: float, until: int = 1000) -> None:
        super().__init__()
        self.confidence, self.until = confidence, until

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        answer = ids.cumsum(1) % 2 ^ (torch.arange(ids.shape[1]) >= self.until)
        return self.confidence * nn.functional.one_hot(answer, 2).float()


def test_score_is_1_only_of_a_sure_model_that_is_right_on_longer_sequences() -> None:
    task = Parity(OPTIONS, 0, torch.device("cpu"))
    assert task.score(Oracle(20.0)) == 1
    assert task.score(Oracle(2.0)) == 0.999
    assert task.score(Oracle(20.0, until=OPTIONS.max_length)) == pytest.approx(0.5)


def test_results_and_verdict() -> None:
    task = Parity(OPTIONS, 0, torch.device("cpu"))
    found = task.results(Oracle(20.0, until=9))
    assert found["accuracy 1-6"] == 1
    assert found["accuracy 7-11"] == pytest.approx(3 / 5)
    assert found["at the worst length"] == 0
    assert found["by_length"] == [[t, float(t <= 9)] for t in range(1, 12)]
    right, wrong = {"accuracy 7-11": 1.0}, {"accuracy 7-11": 0.5}
    good = dict.fromkeys(Parity.solvers, right) | dict.fromkeys(Parity.failing, wrong)
    assert task.verdict(good).holds
    for name in good:
        flipped = {**good, name: wrong if name in Parity.solvers else right}
        assert not task.verdict(flipped).holds


def lengths_in_training(**sizes: float) -> list[int]:
    """The length of the sequences of each step."""
    seen: list[int] = []

    class Listener(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            seen.append(ids.shape[1])
            return torch.zeros(*ids.shape, 2)

    task = Parity(
        replace(OPTIONS, steps=200, min_length=3, max_length=12, test_length=13, **sizes), 0, torch.device("cpu")
    )
    for step in range(200):
        task.loss(Listener(), step)
    return seen


def test_training_lengths() -> None:
    seen = lengths_in_training()
    assert set(seen) == set(seen[:100]) == set(range(3, 13))
    growing = lengths_in_training(growth=0.5)
    assert max(growing[:20]) <= 5
    assert max(growing[:50]) <= 8
    assert max(growing[100:]) == 12
    assert min(growing[100:]) == 3


def test_training_test_and_score_draw_other_sequences() -> None:
    task = Parity(OPTIONS, 0, torch.device("cpu"))
    drawn = {tuple(task.sequences(1, 64, task.rng(stream))[0].flatten().tolist()) for stream in range(3)}
    assert len(drawn) == 3


def test_arithmetic_has_no_answers_at_even_lengths() -> None:
    options = replace(task_of(ModularArithmetic).options, max_length=5, test_length=8)
    task = ModularArithmetic(options, 0, torch.device("cpu"))
    found = task.results(next(iter(task.models().values()))().eval())
    assert [length for length, _ in found["by_length"]] == [1, 3, 5, 7]
    assert math.isfinite(found["accuracy 1-5"] + found["accuracy 6-8"] + found["at the worst length"])
    assert math.isfinite(task.score(task.models()["LSTM"]().eval()))


@pytest.mark.parametrize("kind", TASKS)
def test_run(kind: type[StateTracking], tmp_path: Path) -> None:
    assert main([kind.name, *TINY, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{kind.name}-seed0.json").read_text())
    assert list(found["results"]) == ["xLSTM[0:1]", "xLSTM[1:1]", "xLSTM[1:0]", "LSTM", "Transformer"]
    for result in found["results"].values():
        assert all(0 <= result[key] <= 1 for key in ("accuracy 1-5", "accuracy 6-9", "at the worst length"))
    assert (tmp_path / f"{kind.name}-seed0.png").stat().st_size > 1000


def test_a_resumed_run_repeats_nothing_and_ends_with_the_same_numbers(tmp_path: Path) -> None:
    command = ["parity", *TINY, "--out", str(tmp_path)]
    assert main(command) == 0
    first = json.loads((tmp_path / "parity-seed0.json").read_text())
    assert main([*command, "--resume"]) == 0
    second = json.loads((tmp_path / "parity-seed0.json").read_text())
    assert first["results"] == second["results"]


@pytest.mark.parametrize(
    "given",
    [["--min-length", "6", "--max-length", "5"], ["--max-length", "40", "--test-length", "40"]],
)
def test_lengths_that_do_not_fit(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["parity", *given, "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()
