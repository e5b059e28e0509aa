"""Speculative decoding: what plain decoding gives, whatever is guessed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import MODELS, VOCAB, build
from xlstm_cuda.models import GraphedStep, SlotDecoder, generate, model_draft, prompt_lookup

EOS = [4, 7]


@pytest.fixture(autouse=True)
def seed(fresh_seed: int) -> None:
    random.seed(fresh_seed)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def draw(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape)


class Oracle:
    """Guesses what plain decoding gives, with mistakes at random places; counts what it was asked for."""

    def __init__(self, texts: Tensor, mistakes: float) -> None:
        self.texts, self.mistakes, self.asked = texts.tolist(), mistakes, []

    def __call__(self, ids: tuple[int, ...], count: int) -> Sequence[int]:
        assert isinstance(ids, tuple) and count >= 1
        self.asked.append(count)
        known = [text for text in self.texts if tuple(text[: len(ids)]) == ids]
        guess = known[0][len(ids) : len(ids) + count + 3] if known else []  # more than was asked for
        return [(token + 1) % VOCAB if random.random() < self.mistakes else token for token in guess]


@pytest.mark.parametrize("window", [2, 3, 8, 16])
@pytest.mark.parametrize("mistakes", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("eos", [None, EOS], ids=str)
def test_greedy_tokens_are_those_of_plain_decoding(model: Any, window: int, mistakes: float, eos: Any) -> None:
    prompt = draw(3, 5)
    whole = generate(model, prompt, 40, temperature=0)
    expected = generate(model, prompt, 40, temperature=0, eos_id=eos)
    oracle = Oracle(whole, mistakes)
    found = generate(model, prompt, 40, temperature=0, eos_id=eos, draft=oracle, window=window)
    assert torch.equal(found, expected)
    assert max(oracle.asked, default=1) < window


@pytest.mark.parametrize("window", [4, 16])
def test_steps_are_saved(model: Any, window: int) -> None:
    """With a guess that is right, every step gives as many tokens as it may."""
    prompt = draw(1, 5)
    expected = generate(model, prompt, 1 + 5 * window, temperature=0)
    steps, step = [], model.step
    model.step = lambda ids, state: steps.append(ids.shape[1]) or step(ids, state)
    found = generate(model, prompt, 1 + 5 * window, temperature=0, draft=Oracle(expected, 0.0), window=window)
    assert torch.equal(found, expected) and steps == [window] * 5


def test_padded_prompts(model: Any) -> None:
    """A guess is asked for with the ids of a row alone, without its padding."""
    prompt, mask = draw(2, 6), torch.ones(2, 6, dtype=torch.int64)
    mask[1, :3] = 0
    expected = generate(model, prompt, 12, temperature=0, attention_mask=mask)
    seen: list[tuple[int, ...]] = []

    def draft(ids: tuple[int, ...], count: int) -> list[int]:
        seen.append(ids)
        return [random.randrange(VOCAB) for _ in range(count)]

    found = generate(model, prompt, 12, temperature=0, attention_mask=mask, draft=draft)
    assert torch.equal(found, expected)
    rows = (tuple(expected[0].tolist()), tuple(expected[1, 3:].tolist()))
    assert all(any(row[: len(ids)] == ids for row in rows) for ids in seen)
    assert {ids[: 3 + 1] for ids in seen} == {row[: 3 + 1] for row in rows}


def test_a_step_that_is_recorded(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one shape, whose state is overwritten by the next one: a stand-in records where there is no GPU."""
    recordings: list[torch.device] = []

    def record(body: Any, device: torch.device) -> Any:
        body()
        recordings.append(device)
        return body

    prompt = draw(3, 5)
    expected = generate(model, prompt, 40, temperature=0)
    graphed = GraphedStep(model.eval(), record=record)
    monkeypatch.setattr("xlstm_cuda.models.generation.token_by_token.make_step", lambda *args: graphed)
    found = generate(model, prompt, 40, temperature=0, draft=Oracle(expected, 0.3), window=6)
    assert torch.equal(found, expected) and len(recordings) == 1


def test_samples_have_the_distribution_of_plain_ones() -> None:
    """Of three new tokens, all combinations that three ids have: chi-square, 26 degrees of freedom, 8 sigma."""

    class Coin(torch.nn.Module):
        """Logits of three ids depend on the last id and on the number of ids."""

        def prefill(self, ids: Tensor, state: Any = None, *, reset: Any = None) -> Any:
            logits, state = self.step(ids, torch.zeros(len(ids), 1) if state is None else state)
            return logits[:, -1:], state

        def step(self, ids: Tensor, state: Any) -> Any:
            place = state + torch.arange(1, ids.shape[1] + 1)
            angle = (ids + 2 * place)[..., None] * torch.tensor([0.7, 1.1, 1.9])
            return angle.sin(), state + ids.shape[1]

    model, count = Coin(), 20000
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 3, "seed": random.randrange(2**31)}
    prompt = torch.zeros(count, 1, dtype=torch.int64)
    found = generate(model, prompt, 3, draft=lambda ids, n: [1, 0, 2][:n], window=3, **options)[:, 1:]
    expected = torch.ones(1)
    state = model.prefill(prompt[:1])[1]
    prefixes = [((), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), 1.0)]
    for _ in range(3):
        following = []
        for ids, last, state, probability in prefixes:
            logits, after = model.step(last, state)
            p = (logits[0, -1] / 0.8).softmax(-1)
            following += [((*ids, i), torch.tensor([[i]]), after, probability * float(p[i])) for i in range(3)]
        prefixes = following
    expected = torch.tensor([probability for *_, probability in prefixes]) * count
    index = (found * torch.tensor([9, 3, 1])).sum(1)
    chi_square = ((torch.bincount(index, minlength=27) - expected).square() / expected).sum()
    assert chi_square < 26 + 8 * (2 * 26) ** 0.5


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("eos", [None, EOS], ids=str)
def test_slots(model: Any, capacity: int, eos: Any) -> None:
    """Requests that come and go; a step gives each of them some tokens, in the order of its text."""
    given = [(draw(random.randint(1, 9)), random.randint(0, 30)) for _ in range(7)]
    texts = [generate(model, ids[None], 31, temperature=0)[0] for ids, _ in given]
    oracle = Oracle(torch.nn.utils.rnn.pad_sequence(texts, True), 0.2)
    decoder = SlotDecoder(model, capacity, eos_id=eos, temperature=0, draft=oracle, window=5)
    numbers = [decoder.submit(*request) for request in given]
    tokens: dict[int, list[int]] = {number: [] for number in numbers}
    most = 0
    while new := decoder.step():
        for number, ids in new.items():
            tokens[number] += ids
            most = max(most, len(ids))
    for number, (ids, length) in zip(numbers, given, strict=True):
        result = decoder.result(number)
        assert torch.equal(result, generate(model, ids[None], length, temperature=0, eos_id=eos)[0])
        assert result[len(ids) :].tolist() == tokens[number]
    assert eos or most > 1


def test_slots_after_an_error(model: Any) -> None:
    """A draft or a step that raises leaves the requests as they were."""
    ids = draw(4)
    expected = generate(model, ids[None], 30, temperature=0)[0]
    oracle = Oracle(expected[None], 0.5)

    def draft(ids: tuple[int, ...], count: int) -> Sequence[int]:
        if random.random() < 0.3:
            raise RuntimeError("no guess")
        return oracle(ids, count)

    decoder = SlotDecoder(model, 2, temperature=0, draft=draft, window=6)
    number = decoder.submit(ids, 30)
    for _ in range(300):
        try:
            if not decoder.step():
                break
        except RuntimeError as error:
            assert str(error) == "no guess"
    assert torch.equal(decoder.result(number), expected)


def test_prompt_lookup() -> None:
    draft = prompt_lookup(2)
    assert list(draft((5, 6, 1, 2, 7, 5, 6), 3)) == [1, 2, 7]
    assert list(draft((5, 6, 1, 5, 6, 3, 5, 6), 2)) == [3, 5], "the last place counts"
    assert list(draft((9, 6, 1, 5, 6), 3)) == [1, 5, 6], "one id, where two are not found"
    assert list(draft((1, 2, 3), 4)) == [] == list(draft((1,), 4))


def test_model_draft(model: Any) -> None:
    """The model itself guesses right every time; another one guesses its own greedy tokens."""
    prompt = draw(2, 5)
    expected = generate(model, prompt, 17, temperature=0)
    same = model_draft(model.train())
    assert list(same(tuple(prompt[0].tolist()), 6)) == expected[0, 5:11].tolist()
    assert list(same(tuple(expected[0, :8].tolist()), 6)) == expected[0, 8:14].tolist()
    steps, step = [], model.step
    other = model_draft(build("plain"))
    assert torch.equal(generate(model, prompt, 17, temperature=0, draft=other, window=4), expected)
    model.step = lambda ids, state: steps.append(ids.shape) or step(ids, state)
    generate(model, prompt, 17, temperature=0, draft=Oracle(expected, 0.0), window=4)
    assert steps == [(2, 4)] * 4 and model.training


def test_no_rows(model: Any) -> None:
    assert generate(model, draw(0, 4), 5, temperature=0, draft=prompt_lookup()).shape[0] == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"draft": 3}, TypeError, "draft must be None or callable, got int"),
        ({"draft": prompt_lookup(), "window": 1}, ValueError, "window must be >= 2, got 1"),
        ({"draft": prompt_lookup(), "window": 17}, ValueError, "window must be at most 16, got 17"),
        (
            {"draft": prompt_lookup(), "num_beams": 2, "temperature": 0},
            ValueError,
            "draft excludes num_beams, callback",
        ),
        ({"draft": prompt_lookup(), "callback": print}, ValueError, "draft excludes num_beams, callback"),
        ({"draft": prompt_lookup(), "return_state": True}, ValueError, "draft excludes num_beams, callback"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^generate: {message}"):
        generate(build("plain"), draw(1, 3), 4, **options)
    if "window" in options:
        with pytest.raises(error, match=f"^SlotDecoder: {message}"):
            SlotDecoder(build("plain"), 2, **options)
    with pytest.raises(ValueError, match="^prompt_lookup: ngram must be >= 1, got 0"):
        prompt_lookup(0)
