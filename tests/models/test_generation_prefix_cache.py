"""States of prefixes: the same tokens, less computed, within their memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.support.generation_models import MODELS, VOCAB, build
from xlstm_cuda.models import GraphedStep, PrefixCache, SlotDecoder, generate
from xlstm_cuda.testing import assert_close_relative

PLENTY = 1 << 30
bound = 1e-10  # in float64


@pytest.fixture(autouse=True)
def seed(fresh_seed: int) -> None:
    random.seed(fresh_seed)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param).eval()


def draw(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape)


def computed(model: Any) -> list[int]:
    """Filled with the tokens of each call of model.prefill from now on."""
    counts, prefill = [], model.prefill
    model.prefill = lambda ids, state=None, **options: counts.append(ids.shape[1]) or prefill(ids, state, **options)
    return counts


def close(found: tuple[Tensor, Any], expected: tuple[Tensor, Any]) -> None:
    for a, e in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert_close_relative(a, e, bound)


@torch.no_grad()
def test_only_what_is_new_is_computed(model: Any) -> None:
    cache, common = PrefixCache(PLENTY, interval=4), draw(1, 10)
    first, second = (torch.cat([common, draw(1, n)], 1) for n in (3, 5))
    second[0, 10] = (first[0, 10] + 1) % VOCAB  # there they part
    expected = [model.prefill(ids) for ids in (first, second, first)]
    counts = computed(model)
    close(cache.prefill(model, first), expected[0])
    assert counts == [4, 4, 4, 1], "up to each multiple of the interval"
    counts.clear()
    close(cache.prefill(model, second), expected[1])
    assert counts == [4, 3], "from the last state before they part"
    counts.clear()
    close(cache.prefill(model, first), expected[2])
    assert counts == [], "a prompt that is known: nothing"
    assert (cache.hits, cache.misses) == (8 + 13, 13 + 7)
    longer = torch.cat([first, draw(1, 2)], 1)
    expected_longer = build_free(model, longer)
    close(cache.prefill(model, longer, 1), expected_longer)
    assert counts == [1, 1], "behind a whole prompt, in chunks of one token"
    cache.clear()
    assert len(cache) == cache.bytes == 0


def build_free(model: Any, ids: Tensor) -> tuple[Tensor, Any]:
    """Without the cache, by the model's class: the instance counts its calls."""
    return type(model).prefill(model, ids)


@torch.no_grad()
def test_memory_is_bounded(model: Any) -> None:
    """The least recently used states leave."""
    cache = PrefixCache(PLENTY, interval=None)
    prompts = [torch.cat([torch.full((1, 1), i), draw(1, 4)], 1) for i in range(5)]
    cache.prefill(model, prompts[0])
    one = cache.bytes
    cache = PrefixCache(3 * one, interval=None)
    for ids in (*prompts[:3], prompts[0], prompts[3]):
        cache.prefill(model, ids)
    assert len(cache) == 3 and cache.bytes == 3 * one
    counts = computed(model)
    for ids in (prompts[0], prompts[2], prompts[3]):
        cache.prefill(model, ids)
    assert counts == []
    cache.prefill(model, prompts[1])
    assert counts == [5]
    small = PrefixCache(one - 1, interval=None)
    close(small.prefill(model, prompts[1]), build_free(model, prompts[1]))
    assert len(small) == 0, "larger than all of its memory"


@pytest.mark.parametrize("draft", [None, lambda ids, count: [ids[-1]] * count], ids=["plain", "draft"])
@pytest.mark.parametrize("eos", [None, [4, 7]], ids=str)
def test_slots(model: Any, draft: Any, eos: Any) -> None:
    """Conversations: each turn begins with all of the ones before."""
    cache = PrefixCache(PLENTY, interval=3)
    decoder = SlotDecoder(model, 2, eos_id=eos, temperature=0, prefix_cache=cache, prefill_chunk_size=2, draft=draft)
    begin = draw(7)
    turns = [torch.cat([begin, draw(random.randint(0, 3))]) for _ in range(4)]
    for _ in range(3):
        numbers = [decoder.submit(ids, random.randint(1, 9)) for ids in turns]
        decoder.run()
        answers = [decoder.result(number) for number in numbers]
        for ids, answer in zip(turns, answers, strict=True):
            length = len(answer) - len(ids)
            assert torch.equal(answer, generate(model, ids[None], length, temperature=0, eos_id=eos)[0])
        turns = [torch.cat([answer, draw(random.randint(0, 2))]) for answer in answers]
    assert cache.hits >= 2 * 4 * 7, "two more turns of four conversations, each behind its former prompt at least"


def test_the_next_turn_begins_behind_the_answer(model: Any) -> None:
    cache = PrefixCache(PLENTY, interval=None)
    decoder = SlotDecoder(model, 1, temperature=0, prefix_cache=cache)
    number = decoder.submit(draw(6), 5)
    decoder.run()
    answer = decoder.result(number)
    counts = computed(model)
    decoder.submit(torch.cat([answer, draw(2)]), 1)
    decoder.run()
    assert counts == [3], "the last id of the answer, which no step has seen, and the new ones"


@torch.no_grad()
def test_a_step_that_is_recorded_goes_on(model: Any) -> None:
    """It copies the state that the cache keeps: what follows does not change that."""
    cache, prompt = PrefixCache(PLENTY), draw(1, 9)
    expected = generate(model, prompt, 6, temperature=0)[0, 9:].tolist()
    graphed = GraphedStep(model, record=lambda body, device: body)
    for _ in range(2):
        logits, state = cache.prefill(model, prompt)
        found = []
        for _ in range(6):
            found.append(int(logits[0, -1].argmax()))
            logits, state = graphed(torch.tensor([found[-1:]]), state)
        assert found == expected
    assert cache.hits == 9


def test_refusals() -> None:
    for options, error, message in (
        ({"max_bytes": 0}, ValueError, "max_bytes must be >= 1, got 0"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be an integer, got 1.5"),
        ({"max_bytes": 1, "interval": 0}, ValueError, "interval must be None or >= 1, got 0"),
    ):
        with pytest.raises(error, match=f"^PrefixCache: {message}"):
            PrefixCache(**options)
    with pytest.raises(TypeError, match="^SlotDecoder: prefix_cache must be None or a PrefixCache, got dict"):
        SlotDecoder(build("plain"), 1, prefix_cache={})
