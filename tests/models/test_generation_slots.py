"""Continuous batching: every request gets what it would get alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import MODELS, VOCAB, build
from xlstm_cuda.models import SlotDecoder, generate


@pytest.fixture(autouse=True)
def seed(fresh_seed: int) -> None:
    random.seed(fresh_seed)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def draw(seqlen: int) -> Tensor:
    return torch.randint(VOCAB, (seqlen,))


def requests(count: int) -> list[tuple[Tensor, int]]:
    return [(draw(random.randint(1, 9)), random.randint(0, 12)) for _ in range(count)]


def alone(model: Any, prompt: Tensor, tokens: int, eos: int | list[int] | None) -> Tensor:
    return generate(model, prompt[None], tokens, temperature=0, eos_id=eos)[0]


@pytest.mark.parametrize("capacity", [1, 3, 20])
@pytest.mark.parametrize("eos", [None, 4, [4, 7, 2]], ids=str)
def test_requests_equal_generation_alone(model: Any, capacity: int, eos: int | list[int] | None) -> None:
    """Some come while others run."""
    decoder = SlotDecoder(model, capacity, eos_id=eos, temperature=0, prefill_chunk_size=3)
    given = requests(12)
    numbers, tokens = [], {}
    for prompt, length in given:
        numbers.append(decoder.submit(prompt, length))
        for _ in range(random.randint(0, 3)):
            new = decoder.step()
            assert len(new) <= capacity
            for number, ids in new.items():
                tokens.setdefault(number, []).extend(ids)
    while new := decoder.step():
        for number, ids in new.items():
            tokens.setdefault(number, []).extend(ids)
    assert numbers == list(range(12))
    for number, (prompt, length) in zip(numbers, given, strict=True):
        result = decoder.result(number)
        assert torch.equal(result, alone(model, prompt, length, eos))
        assert result[len(prompt) :].tolist() == tokens.get(number, [])


def test_slots_are_used_at_once(model: Any) -> None:
    """With two slots and lengths 4, 1, 2, 1 there is no step in which a slot is empty while a request waits."""
    decoder = SlotDecoder(model, 2, temperature=0)
    for length in (4, 1, 2, 1):
        decoder.submit(draw(3), length)
    rows = []
    step = model.step
    model.step = lambda ids, state: rows.append(len(ids)) or step(ids, state)
    assert [sorted(decoder.step()) for _ in range(5)] == [[0, 1], [0, 2], [0, 2], [0, 3], []]
    assert rows == [1, 2, 1], "of the active rows, those with a token after the prompt"


def test_run_and_results(model: Any) -> None:
    decoder = SlotDecoder(model.train(), 2, temperature=0)
    prompt = draw(4)
    number = decoder.submit(prompt.int(), 3)
    for wrong in (number, number + 1):
        with pytest.raises(ValueError, match=f"request {wrong} is unknown, not ended, or was handed over before"):
            decoder.result(wrong)
    decoder.run()
    assert model.training
    assert torch.equal(decoder.result(number), alone(model, prompt, 3, None).int())
    with pytest.raises(ValueError, match="was handed over before"):
        decoder.result(number)
    decoder.run()
    assert decoder.step() == {}
    later = decoder.submit(prompt, 2)
    decoder.run()
    assert torch.equal(decoder.result(later), alone(model, prompt, 2, None)), "a slot that was used keeps nothing"


def test_a_prompt_that_fails_harms_no_other(model: Any) -> None:
    decoder = SlotDecoder(model, 3, temperature=0)
    good = [(draw(3), 4), (draw(5), 3)]
    numbers = [decoder.submit(*good[0])]
    decoder.step()
    numbers.append(decoder.submit(*good[1]))
    decoder.submit(torch.tensor([VOCAB]), 2)
    with pytest.raises(IndexError):
        decoder.step()
    decoder.run()
    for number, request in zip(numbers, good, strict=True):
        assert torch.equal(decoder.result(number), alone(model, *request, None))


def test_seeds(model: Any) -> None:
    def samples(seed: int) -> list[list[int]]:
        decoder = SlotDecoder(model, 2, seed=seed, temperature=3.0, top_k=8)
        numbers = [decoder.submit(prompt, 10) for prompt in prompts]
        decoder.run()
        return [decoder.result(number).tolist() for number in numbers]

    prompts = [draw(3) for _ in range(4)]
    untouched = torch.get_rng_state()
    assert samples(1) == samples(1) != samples(2)
    assert torch.equal(torch.get_rng_state(), untouched)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity must be >= 1, got 0"),
        ({"prefill_chunk_size": 0}, "SlotDecoder: prefill_chunk_size must be None or >= 1, got 0"),
        ({"temperature": -1.0}, "SlotDecoder: temperature must be >= 0"),
        ({"top_p": 2.0}, "SlotDecoder: top_p must be None or in"),
    ],
)
def test_option_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotDecoder(build("plain"), **{"capacity": 1, **options})


def test_submit_errors() -> None:
    decoder = SlotDecoder(build("plain"), 1)
    with pytest.raises(ValueError, match=r"prompt_ids must have shape \(S,\), S >= 1, got \(1, 3\)"):
        decoder.submit(draw(3)[None], 1)
    with pytest.raises(ValueError, match="prompt_ids must have shape"):
        decoder.submit(draw(0), 1)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 0, got -1"):
        decoder.submit(draw(1), -1)


def test_submit_type_errors() -> None:
    """At once: in the step they would fail in, other requests take part."""
    decoder = SlotDecoder(build("plain"), 1)
    wrong: list[tuple[Any, Any, str]] = [
        ([1, 2], 1, "prompt_ids must be a Tensor, got list"),
        (torch.rand(3), 1, "prompt_ids must hold integers, got torch.float32"),
        (draw(3), 1.5, "max_new_tokens must be an integer, got 1.5"),
    ]
    for prompt, tokens, message in wrong:
        with pytest.raises(TypeError, match=message):
            decoder.submit(prompt, tokens)


def test_a_choice_that_fails_is_repeated(model: Any) -> None:
    """The states are those before the step: no token goes through the model twice."""
    prompts = [draw(4), draw(2)]

    def samples(fails: bool) -> list[list[int]]:
        decoder = SlotDecoder(model, 2, seed=3, temperature=2.0)
        numbers = [decoder.submit(prompt, 5) for prompt in prompts[:1]]
        decoder.step()
        numbers.append(decoder.submit(prompts[1], 5))
        if fails:
            step = model.step
            model.step = lambda *args: (step(*args)[0] * torch.nan, step(*args)[1])
            with pytest.raises(RuntimeError):
                decoder.step()
            del model.step
        decoder.run()
        return [decoder.result(number).tolist() for number in numbers]

    assert samples(True) == samples(False)


def test_a_prompt_is_copied(model: Any) -> None:
    prompt = draw(4)
    decoder, memory = SlotDecoder(model, 1, temperature=0), prompt.clone()
    number = decoder.submit(memory, 3)
    memory.fill_(0)
    decoder.run()
    assert torch.equal(decoder.result(number), alone(model, prompt, 3, None))


def test_steps_in_and_out_of_inference_mode(model: Any) -> None:
    decoder, prompt = SlotDecoder(model, 2, temperature=0), draw(4)
    number = decoder.submit(prompt, 5)
    with torch.inference_mode():
        decoder.step()
        decoder.step()
    decoder.run()
    assert torch.equal(decoder.result(number), alone(model, prompt, 5, None))
