"""Beam search against all continuations of a small vocabulary, and against a plain search row by row."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.generation_models import MODELS, build
from xlstm_cuda.models import generate, reorder_state
from xlstm_cuda.models.generation import decoding

VOCAB = 3
EOS = 1


pytestmark = pytest.mark.usefixtures("fresh_seed")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param, VOCAB)


def draw(batch: int, seqlen: int) -> Tensor:
    return torch.randint(VOCAB, (batch, seqlen))


def continuations(max_new: int, eos: list[int]) -> list[tuple[int, ...]]:
    """All sequences that end: with one of eos, or with max_new tokens."""
    found = []
    for length in range(1, max_new + 1):
        for new in itertools.product(range(VOCAB), repeat=length):
            if not set(eos) & set(new[:-1]) and (length == max_new or new[-1] in eos):
                found.append(new)
    return found


@torch.no_grad()
def score(model: Any, prompt: Tensor, new: tuple[int, ...], penalty: float) -> float:
    ids = torch.cat([prompt, torch.tensor(new)])[None]
    log_probs = model(ids)[0].log_softmax(-1)
    return float(log_probs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).sum()) / len(new) ** penalty


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.5, -1.0])
@pytest.mark.parametrize("eos", [[], [EOS], [2, 0]], ids=str)
@pytest.mark.parametrize("max_new", [1, 2, 4])
def test_with_all_beams_it_finds_the_best_continuation(
    model: Any, max_new: int, eos: list[int], penalty: float
) -> None:
    prompt = draw(3, 4)
    model.eval()
    options: dict[str, Any] = {"num_beams": VOCAB**max_new, "length_penalty": penalty, "eos_id": eos or None}
    found = generate(model, prompt, max_new, temperature=0, **options)[:, 4:]
    best = [
        max(continuations(max_new, eos), key=lambda new, row=row: score(model, row, new, penalty)) for row in prompt
    ]
    length = max(map(len, best))
    assert found.tolist() == [[*new, *eos[:1] * (length - len(new))] for new in best]


@torch.no_grad()
def plain_search(model: Any, prompt: Tensor, max_new: int, beams: int, penalty: float, eos: list[int]) -> list[int]:
    """One row, lists, no states: as the docstring of beam_search says."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, max_new + 1):
        candidates = []
        for total, new in running:
            log_probs = model(torch.cat([prompt, torch.tensor(new, dtype=torch.int64)])[None])[0, -1].log_softmax(-1)
            candidates += [(total + float(p), [*new, token]) for token, p in enumerate(log_probs)]
        candidates.sort(reverse=True)
        ends = [c for c in candidates[:beams] if c[1][-1] in eos or length == max_new]
        ended += [(total / length**penalty, new) for total, new in ends]
        running = [c for c in candidates if c[1][-1] not in eos][:beams]
    return max(ended)[1]


@pytest.mark.parametrize("beams", [2, 3, 4])
@pytest.mark.parametrize("penalty", [1.0, -0.5])
@pytest.mark.parametrize("eos", [[EOS], [2, 0]], ids=str)
def test_few_beams(model: Any, beams: int, penalty: float, eos: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Left-padded rows of different lengths; looking seldom for the end changes nothing."""
    model.eval()
    rows = [draw(1, length)[0] for length in (2, 5, 3, 1)]
    ids = torch.stack([F.pad(row, (5 - len(row), 0)) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (5 - len(row), 0)) for row in rows])
    options: dict[str, Any] = {"num_beams": beams, "length_penalty": penalty, "eos_id": eos, "attention_mask": mask}
    found = generate(model, ids, 7, temperature=0, **options)
    expected = [plain_search(model, row, 7, beams, penalty, eos) for row in rows]
    length = max(map(len, expected))
    assert found[:, 5:].tolist() == [new + eos[:1] * (length - len(new)) for new in expected]
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", 4)
    assert torch.equal(generate(model, ids, 7, temperature=0, **options), found)


def test_it_ends_early() -> None:
    """Once no beam can end better; a model that nearly always says eos."""
    model = build("plain", VOCAB)
    with torch.no_grad():
        model.head.bias[EOS] = 60.0
    steps = []
    step = model.step
    model.step = lambda *args: steps.append(1) or step(*args)
    found = generate(model, draw(2, 3), 50, temperature=0, num_beams=2, eos_id=EOS)
    assert found[:, 3:].tolist() == [[EOS], [EOS]] and not steps


class Table(nn.Module):
    """Probabilities of the first token; from then on token 0 is nearly certain. The state is empty."""

    def prefill(self, ids: Tensor, state: Any = None, *, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.35, 0.4, 0.25]).log().expand(len(ids), 1, 3), torch.empty(len(ids), 0)

    def step(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([20.0, 0.0, 0.0]).expand(len(ids), 1, 3), state


@pytest.mark.parametrize(("penalty", "best"), [(1.0, [0] * 5), (0.0, [EOS]), (-1.0, [EOS])])
def test_it_does_not_end_too_early(penalty: float, best: list[int]) -> None:
    """eos is the most likely first token, but a positive penalty favours what gets long."""
    options: dict[str, Any] = {"num_beams": 2, "length_penalty": penalty, "eos_id": EOS}
    assert generate(Table(), draw(1, 2), 5, temperature=0, **options)[0, 2:].tolist() == best


def test_one_beam_is_greedy(model: Any) -> None:
    prompt = draw(2, 3)
    greedy = generate(model, prompt, 6, temperature=0)
    assert torch.equal(generate(model, prompt, 6, temperature=0, num_beams=1, length_penalty=3.0), greedy)
    empty = generate(model, draw(0, 3), 6, temperature=0, num_beams=2)
    assert empty.shape[0] == 0


def test_continues_a_state(model: Any) -> None:
    ids = draw(2, 9)
    state = model.eval().prefill(ids[:, :4])[1]
    expected = generate(model, ids, 5, temperature=0, num_beams=3)
    found = generate(model, ids[:, 4:].int(), 5, temperature=0, num_beams=3, state=state)
    assert torch.equal(found[:, 5:], expected[:, 9:].int())


def test_reorder_state(model: Any) -> None:
    ids, index = draw(3, 5), torch.tensor([2, 0, 0, 1, 2])
    state = model.eval().prefill(ids)[1]
    after = model.step(ids[index, :1], reorder_state(state, index))[0]
    torch.testing.assert_close(after, model.step(ids[:, :1], state)[0][index])
    assert type(reorder_state(state, index)[0]) is type(state[0])


def test_logits_that_are_nan(model: Any) -> None:
    prefill = model.prefill

    def one_row(*args: Any, **options: Any) -> Any:
        logits, state = prefill(*args, **options)
        return torch.cat([logits[:1], logits[1:] * torch.nan]), state

    model.prefill = one_row
    for eos in (None, EOS):
        with pytest.raises(RuntimeError, match="the model's logits are NaN"):
            generate(model, draw(2, 3), 4, temperature=0, num_beams=2, eos_id=eos)
