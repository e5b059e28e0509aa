"""ListOps: expressions against an evaluator of their printed form, reading at the last token, a tiny run."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from examples.tasks.__main__ import main
from examples.tasks.classification import Classification, Examples
from examples.tasks.listops import TOKENS, ListOps, ListOpsOptions
from examples.tasks.models import standard
from examples.tasks.task import Verdict

SIZES = {"steps": 2, "batch-size": 4, "dim": 8, "heads": 1, "test-sequences": 40, "max-length": 12}
TINY = ["listops", *(word for name, size in SIZES.items() for word in (f"--{name}", str(size))), "--out"]
CPU = torch.device("cpu")


def made(seed: int = 0, **options: object) -> ListOps:
    return ListOps(replace(ListOpsOptions(test_sequences=40), **options), seed, CPU)


def printed(ids: torch.Tensor) -> str:
    return " ".join(TOKENS[index] for index in ids)


def evaluated(text: str) -> tuple[int, int]:
    """Value and depth of a printed expression, read from left to right."""
    assert text.count("[") == text.count("]")
    words = iter(text.split())
    result = _read(next(words), words)
    assert next(words, None) is None, "nothing follows the last bracket"
    return result


def _read(word: str, words: Iterator[str]) -> tuple[int, int]:
    """What begins with this word, a digit or an operator; its other words are taken from `words`."""
    if not word.startswith("["):
        return int(word), 0
    arguments = [_read(following, words) for following in iter(words.__next__, "]")]
    numbers = sorted(number for number, _ in arguments)
    assert len(numbers) >= 2
    return _value(word, numbers), 1 + max(depth for _, depth in arguments)


def _value(operator: str, numbers: list[int]) -> int:
    if operator == "[MED":
        low, high = numbers[(len(numbers) - 1) // 2], numbers[len(numbers) // 2]
        return (low + high) // 2
    return {"[MAX": numbers[-1], "[MIN": numbers[0], "[SM": sum(numbers) % 10}[operator]


@pytest.mark.parametrize(
    ("text", "value", "depth"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9, 2),
        ("[MED 1 4 8 ]", 4, 1),
        ("[MED 1 4 ]", 2, 1),
        ("[MED 9 3 1 6 ]", 4, 1),
        ("[SM 9 [SM 8 7 ] [MAX 1 [MIN 3 2 ] ] ]", 6, 3),
    ],
)
def test_the_evaluator_of_these_tests(text: str, value: int, depth: int) -> None:
    assert evaluated(text) == (value, depth)


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"max_depth": 1, "min_length": 4, "max_length": 6},
        {"max_depth": 4, "max_args": 3, "nesting": 0.5, "min_length": 20, "max_length": 60},
        {"max_depth": 10, "max_args": 10, "nesting": 0.25, "min_length": 100, "max_length": 300},
        {"min_length": 13, "max_length": 13},
    ],
)
def test_values_are_those_of_the_printed_expressions(sizes: dict[str, object], fresh_seed: int) -> None:
    task = made(fresh_seed % 1000, **sizes)
    x, lengths, labels = task.draw(0, fresh_seed % 10_000, 200)
    pad = TOKENS.index("<pad>")
    assert x.shape[1] == lengths.max()
    depths = Counter()
    for ids, length, label in zip(x, lengths, labels, strict=True):
        assert not (ids[:length] == pad).any() and (ids[length:] == pad).all()
        assert task.options.min_length <= length <= task.options.max_length
        value, depth = evaluated(printed(ids[:length]))
        assert value == label
        depths[depth] += 1
    assert max(depths) <= task.options.max_depth
    if task.options.max_depth <= 4:
        assert max(depths) == task.options.max_depth, "the deepest expressions are drawn too"


def test_what_is_drawn_has_all_sizes_operators_and_answers(fresh_seed: int) -> None:
    x, lengths, labels = made(fresh_seed % 1000).draw(0, 0, 3000)
    assert set(labels.tolist()) == set(range(10))
    assert set(x.flatten().tolist()) == set(range(len(TOKENS)))
    assert set(range(8, 19)) <= set(lengths.tolist()), "the longest are rare"
    first = Counter(TOKENS[index] for index in x[:, 0])
    assert set(first) == {"[MAX", "[MIN", "[MED", "[SM"} and min(first.values()) > 500
    # Values at random: the operator and its arguments are drawn apart.
    digits = x[x < 10]
    assert (digits.bincount() / len(digits)).sub(0.1).abs().max() < 0.02


def test_draws_follow_from_seed_stream_and_index() -> None:
    task, same = made(1), made(1)
    assert torch.equal(task.draw(0, 3, 8).x, same.draw(0, 3, 8).x) and torch.equal(task.test.x, same.test.x)
    others = [made(2).draw(0, 3, 8), task.draw(0, 4, 8), task.draw(1, 3, 8)]
    assert len({printed(drawn.x[0]) for drawn in [task.draw(0, 3, 8), *others]}) == 4


@pytest.mark.parametrize("name", ["xLSTM[1:1]", "xLSTM[1:0]", "xLSTM[0:1]", "LSTM", "Transformer"])
def test_padding_is_never_read(name: str, fresh_seed: int) -> None:
    """Logits of a padded batch, with whatever in the padding, are those of each sequence alone."""
    torch.manual_seed(fresh_seed)
    task = made(fresh_seed % 1000)
    model = standard(replace(task.options, dim=16), len(TOKENS), 10, ("1:1", "1:0", "0:1"))[name]().double().eval()
    batch = task.draw(0, 0, 12)
    assert batch.lengths.unique().numel() > 1
    alone = torch.cat([model(ids[None, :length])[:, -1] for ids, length in zip(batch.x, batch.lengths, strict=True)])
    torch.testing.assert_close(task.logits(model, batch), alone)
    other = torch.where(torch.arange(batch.x.shape[1]) < batch.lengths[:, None], batch.x, 3)
    torch.testing.assert_close(task.logits(model, batch._replace(x=other)), alone)
    assert torch.equal(task.predictions(model, batch), alone.argmax(-1))


def test_predictions_of_more_than_one_batch() -> None:
    class Last(torch.nn.Module):
        """Is sure of the class given by the token."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(x, 16).double()

    task = made(batch_size=3)
    x = torch.randint(10, (10, 5))
    lengths = torch.tensor([5, 1, 2, 3, 4, 5, 5, 1, 2, 3])
    expected = torch.tensor([row[length - 1] for row, length in zip(x, lengths, strict=True)])
    assert torch.equal(task.predictions(Last(), Examples(x, lengths, lengths)), expected)


def test_baselines_are_the_best_constant_guesses() -> None:
    task = made(test_sequences=1000)
    found = task.baselines()
    labels, first = task.test.labels, task.test.x[:, 0]
    constant = labels.bincount().max().item() / 1000
    assert constant - 0.04 < found["majority"]["accuracy"] <= constant
    by_operator = sum(labels[first == operator].bincount().max().item() for operator in first.unique()) / 1000
    assert by_operator - 0.04 < found["first operator"]["accuracy"] <= by_operator
    share = found["first operator"]["accuracy"]
    assert found["first operator"]["standard error"] == pytest.approx(math.sqrt(share * (1 - share) / 1000))
    parts = found["first operator"]["by_operator"]
    counts = {name: int((first == TOKENS.index(name)).sum()) for name in parts}
    assert sum(parts[name]["accuracy"] * count for name, count in counts.items()) / 1000 == pytest.approx(share)


@pytest.mark.parametrize(
    ("accuracies", "holds"),
    [
        ({"xLSTM[1:1]": 0.6, "xLSTM[0:1]": 0.5, "LSTM": 0.5, "Transformer": 0.55}, True),
        ({"xLSTM[1:1]": 0.4, "xLSTM[0:1]": 0.6, "LSTM": 0.61, "Transformer": 0.55}, True),
        ({"xLSTM[1:1]": 0.4, "xLSTM[0:1]": 0.6, "LSTM": 0.5, "Transformer": 0.63}, False),
        ({"xLSTM[1:1]": 0.4, "xLSTM[0:1]": 0.6, "LSTM": 0.63, "Transformer": 0.5}, False),
        ({"xLSTM[1:1]": 0.31, "xLSTM[0:1]": 0.31, "LSTM": 0.3, "Transformer": 0.3}, False),
    ],
)
def test_verdict(accuracies: dict[str, float], holds: bool) -> None:
    """A standard error of 0.02; the floor is 0.3."""
    results = {name: {"accuracy": share, "standard error": 0.02} for name, share in accuracies.items()}
    verdict: Verdict = made().verdict({**results, "first operator": {"accuracy": 0.3, "standard error": 0.02}})
    assert verdict.holds is holds and "40 test sequences" in verdict.text


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, str(tmp_path)]) == 0
    found = json.loads((tmp_path / "listops-seed0.json").read_text())
    assert list(found["results"]) == ["xLSTM[1:1]", "xLSTM[0:1]", "LSTM", "Transformer", "majority", "first operator"]
    for result in found["results"].values():
        assert 0 <= result["accuracy"] <= 1 and 0 <= result["standard error"] < 0.1
        assert set(result["by_operator"]) == {"[MAX", "[MIN", "[MED", "[SM"}
    assert (tmp_path / "listops-seed0.png").stat().st_size > 5000
    assert found["verdict"] in capsys.readouterr().out
    assert main([*TINY, str(tmp_path), "--resume"]) == 0
    assert json.loads((tmp_path / "listops-seed0.json").read_text())["results"] == found["results"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("--max-args 1", "--max-args 1 must be at least 2"),
        ("--min-length 30", "--max-length 12 must be at least 30"),
        ("--max-length 3 --min-length 1", "--max-length 3 must be at least 4"),
        ("--min-length 12 --nesting 0", "expressions of 12 to 12 tokens"),
        ("--max-depth 1 --min-length 9", "expressions of 9 to 12 tokens"),
    ],
)
def test_sizes_that_do_not_fit(bad: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, str(tmp_path / "out"), *bad.split()]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_deep_nesting_ends() -> None:
    """Lists that would grow without end are given up early, not built."""
    ids, _ = made(max_depth=100, max_args=10, nesting=0.5, min_length=4).expression(random.Random(0))
    assert len(ids) <= 24


def test_full_size_is_that_of_the_long_range_arena() -> None:
    options = asdict(ListOps.full)
    assert (options["max_depth"], options["max_args"], options["max_length"]) == (9, 10, 2000)
    task: Classification = ListOps(replace(ListOps.full, test_sequences=4), 0, CPU)
    assert task.test.lengths.min() >= 500 and task.test.lengths.max() <= 2000
