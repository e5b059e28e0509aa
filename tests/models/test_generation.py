"""Generation: padding, carried states, chunks of the prompt, streaming, and when it is looked for the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from tests.support.generation_models import MODELS, VOCAB, build
from xlstm_cuda.models import generate, stream
from xlstm_cuda.models.generation import decoding
from xlstm_cuda.models.generation.decoding import Prompt, starts_behind_padding

pytestmark = pytest.mark.usefixtures("fresh_seed")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def draw(batch: int, seqlen: int) -> Tensor:
    return torch.randint(VOCAB, (batch, seqlen))


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """ids, padded with random tokens, and mask."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([draw(1, longest - len(row))[0], row]) for row in rows])
    return ids, torch.stack([F.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])


def close(actual: Any, expected: Any) -> None:
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_padding_leaves_no_trace(model: Any, chunk: int | None) -> None:
    rows = [draw(1, length)[0] for length in (9, 2, 1, 5)]
    ids, mask = left_padded(rows)
    model.eval()
    with torch.no_grad():
        prefilled = Prompt(ids, None, starts_behind_padding(ids, mask, None), chunk).prefill(model)
        alone = [model.prefill(row[None]) for row in rows]
    close(prefilled, pytree.tree_map(lambda *leaves: torch.cat(leaves), *alone))
    options: dict[str, Any] = {"temperature": 0, "prefill_chunk_size": chunk}
    for kind in (mask, mask.bool(), mask.float()):
        generated = generate(model, ids, 7, attention_mask=kind, **options)
        assert torch.equal(generated[:, :9], ids)
        for row, new in zip(rows, generated[:, 9:], strict=True):
            assert torch.equal(new, generate(model, row[None], 7, **options)[0, len(row) :])


def test_padding_in_float32() -> None:
    model = build("language model").float().eval()
    rows = [draw(1, length)[0] for length in (20, 3, 11)]
    ids, mask = left_padded(rows)
    with torch.no_grad():
        logits, _ = Prompt(ids, None, starts_behind_padding(ids, mask, None)).prefill(model)
        for row, ours in zip(rows, logits, strict=True):
            theirs = model.prefill(row[None])[0][0]
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_padding_end_of_sequence_and_sampling(model: Any) -> None:
    """A mask of ones is no mask; eos and seeds work beside a mask."""
    ids, mask = left_padded([draw(1, length)[0] for length in (4, 2, 6)])
    ones = torch.ones_like(ids)
    assert torch.equal(generate(model, ids, 9, seed=3, attention_mask=ones), generate(model, ids, 9, seed=3))
    free = generate(model, ids, 9, temperature=0, attention_mask=mask)
    eos = int(free[1, 8])
    stopped = generate(model, ids, 9, temperature=0, attention_mask=mask, eos_id=eos)
    for row, full in zip(stopped[:, 6:], free[:, 6:], strict=True):
        end = [*(full == eos).nonzero().flatten().tolist(), 9][0]
        assert torch.equal(row[: end + 1], full[: end + 1][: len(row)]) and (row[end:] == eos).all()


@pytest.mark.parametrize("look_every", [1, 4])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5}], ids=str)
def test_several_ids_end_a_row(
    model: Any, options: dict[str, Any], look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is what it is without an end, up to the first of these ids; after it the first id of the list."""
    monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", look_every)
    prompt = draw(4, 3)
    free = generate(model, prompt, 9, **options)[:, 3:]
    for eos in ([int(free[0, 4]), int(free[1, 2])], [VOCAB - 1, *free[:, 3].tolist()], [int(free[2, 0])]):
        ends = [next((t for t, token in enumerate(row) if token in eos), 8) for row in free.tolist()]
        expected = [row[: end + 1] + [eos[0]] * (max(ends) - end) for row, end in zip(free.tolist(), ends, strict=True)]
        found = generate(model, prompt, 9, eos_id=eos, **options)
        assert found[:, 3:].tolist() == expected
        assert torch.equal(torch.stack([*stream(model, prompt, 9, eos_id=tuple(eos), **options)], 1), found[:, 3:])
    assert torch.equal(generate(model, prompt, 9, eos_id=eos[0], **options), found), "a list of one is that one"


def test_generation_goes_on_from_its_state(model: Any) -> None:
    prompt, options = draw(3, 5), {"temperature": 0}
    first, state = generate(model, prompt, 4, return_state=True, **options)
    with torch.no_grad():
        close(state, model.eval().prefill(first[:, :-1])[1])
    kept = pytree.tree_map(torch.clone, state)
    more = generate(model, first[:, -1:], 6, state=state, **options)
    assert torch.equal(torch.cat([first, more[:, 1:]], 1), generate(model, prompt, 10, **options))
    one, state_of_one = generate(model, first[:, -1:], 1, state=state, return_state=True, **options)
    with torch.no_grad():
        close(state_of_one, model.prefill(first)[1])
    assert one.shape == (3, 2)
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(state), pytree.tree_leaves(kept), strict=True))


def test_state_after_the_end_of_all_rows(model: Any) -> None:
    """The state fits the ids that are returned, also where eos ended them early."""
    prompt = draw(1, 3)
    eos = int(generate(model, prompt, 4, temperature=0)[0, 5])
    ids, state = generate(model, prompt, 20, temperature=0, eos_id=eos, return_state=True)
    assert ids.shape[1] <= 6
    with torch.no_grad():
        close(state, model.eval().prefill(ids[:, :-1])[1])


@pytest.mark.parametrize("chunk", [1, 2, 5, 11, 12, 8192])
def test_chunks_of_the_prompt(model: Any, chunk: int) -> None:
    ids = draw(2, 11)
    seen = []
    prefill = model.prefill
    model.prefill = lambda ids, *args, **options: seen.append(ids.shape[1]) or prefill(ids, *args, **options)
    with torch.no_grad():
        close(Prompt(ids, chunk_size=chunk).prefill(model.eval()), prefill(ids))
    assert sum(seen) == 11 and max(seen) == min(chunk, 11)
    at_once = generate(model, ids, 5, temperature=0, prefill_chunk_size=None)
    assert torch.equal(generate(model, ids, 5, temperature=0, prefill_chunk_size=chunk), at_once)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5, "top_p": 0.9}])
def test_stream_yields_what_generate_appends(model: Any, options: dict[str, Any]) -> None:
    ids, mask = left_padded([draw(1, length)[0] for length in (2, 7)])
    eos = int(generate(model, ids, 6, attention_mask=mask, **options)[0, -1])
    for eos_id in (None, eos):
        expected = generate(model, ids, 12, attention_mask=mask, eos_id=eos_id, **options)
        new = list(stream(model, ids, 12, attention_mask=mask, eos_id=eos_id, **options))
        assert torch.equal(torch.stack(new, 1), expected[:, 7:])
    assert list(stream(model, ids, 0)) == []


def test_stream_restores_the_modes(model: Any) -> None:
    model.train()
    frozen = [*model.modules()][-1].eval()
    for new in stream(model, draw(2, 3), 9):
        assert model.training and not frozen.training and not new.requires_grad, "also while it waits"
        assert torch.is_grad_enabled(), "the consumer's own code computes gradients"
        break
    assert model.training and not frozen.training
    tokens = stream(model, draw(2, 3), 2)
    assert model.training, "nothing happens before the first token"
    list(tokens)
    assert model.training
    tokens = stream(model, draw(2, 3), 9)
    next(tokens)
    with pytest.raises(KeyError):
        tokens.throw(KeyError)  # type: ignore[attr-defined]
    assert model.training and not frozen.training


def test_new_ids_may_be_changed(model: Any) -> None:
    prompt = draw(2, 3)
    expected = generate(model, prompt, 6, temperature=0)
    assert torch.equal(generate(model, prompt, 6, temperature=0, callback=lambda new: new.fill_(0)), expected)
    found = [(new.clone(), new.fill_(0))[0] for new in stream(model, prompt, 6, temperature=0)]
    assert torch.equal(torch.stack(found, 1), expected[:, 3:])
    generate(model, kept := prompt.clone(), 0).fill_(0)
    assert torch.equal(kept, prompt)


def test_interleaved_streams() -> None:
    """One that ends, or is never finished, does not switch on the dropout of another."""
    model = build("language model").train()
    prompt = draw(4, 5)
    expected = generate(model, prompt, 8, temperature=0)[:, 5:]
    short, long = stream(model, prompt, 2, temperature=0), stream(model, prompt, 8, temperature=0)
    assert torch.equal(next(short), expected[:, 0])
    new = [next(long)]
    assert torch.equal(torch.stack(list(short), 1), expected[:, 1:2])
    new += list(long)
    assert torch.equal(torch.stack(new, 1), expected)


def test_stream_checks_at_once(model: Any) -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be >= 0"):
        stream(model, draw(1, 2), -1)
    with pytest.raises(ValueError, match="top_k must be None or >= 1"):
        stream(model, draw(1, 2), 1, top_k=0)


@pytest.mark.parametrize("look_every", [2, 5, 100])
def test_looking_seldom_for_the_end(model: Any, look_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: steps in vain leave no trace in the result."""
    prompt = draw(3, 4)
    steps = []
    step = model.step
    model.step = lambda *args: steps.append(1) or step(*args)
    for options in ({"temperature": 0}, {"seed": 1}):
        for eos in range(VOCAB):
            expected = generate(model, prompt, 12, eos_id=eos, **options)
            needed = len(steps)
            monkeypatch.setitem(decoding.LOOK_EVERY, "cpu", look_every)
            assert torch.equal(generate(model, prompt, 12, eos_id=eos, **options), expected)
            assert needed <= len(steps) - needed <= needed + look_every - 1
            seen: list[Tensor] = []
            generate(model, prompt, 12, eos_id=eos, callback=seen.append, **options)
            assert len(seen) == expected.shape[1] - 4, "who watches every step is told no step in vain"
            monkeypatch.undo()
            steps.clear()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 0], [1, 1, 1]], "must be left padding"),
        ([[0, 1, 0], [1, 1, 1]], "must be left padding"),
        ([[1, 0, 1], [1, 1, 1]], "must be left padding"),
        ([[0, 0, 0], [1, 1, 1]], "every row of attention_mask needs at least one 1"),
        ([[0, 2, 1], [1, 1, 1]], "must hold only 0 and 1"),
        ([[0, 1], [1, 1]], r"attention_mask must have shape \(2, 3\) like prompt_ids, got \(2, 2\)"),
    ],
)
def test_mask_errors(mask: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(build("plain"), draw(2, 3), 1, attention_mask=torch.tensor(mask))


def test_a_prompt_of_one_dimension_beside_its_mask() -> None:
    with pytest.raises(ValueError, match=r"prompt_ids must have shape \(B, S\), S >= 1, got \(3,\)"):
        generate(build("plain"), draw(1, 3)[0], 1, attention_mask=torch.ones(3))


def test_padding_and_state_exclude_each_other(model: Any) -> None:
    ids, mask = left_padded([draw(1, 2)[0], draw(1, 3)[0]])
    _, state = model.prefill(draw(2, 4))
    with pytest.raises(ValueError, match="cannot pad a prompt that continues a state: padding must leave no trace"):
        generate(model, ids, 1, attention_mask=mask, state=state)
    ones = torch.ones_like(mask)
    expected = generate(model, ids, 5, temperature=0, state=state)
    assert torch.equal(generate(model, ids, 5, temperature=0, state=state, attention_mask=ones), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk_size": 0}, "prefill_chunk_size must be None or >= 1, got 0"),
        ({"return_state": True, "max_new_tokens": 0}, "return_state needs max_new_tokens >= 1"),
        ({"num_beams": 0}, "num_beams must be >= 1, got 0"),
        ({"eos_id": -1}, "eos_id must be None or >= 0, got -1"),
        ({"eos_id": [1, -1]}, "every eos_id must be >= 0, got -1"),
        ({"eos_id": []}, r"eos_id must be None, an integer or a list of them, got \[\]"),
        ({"num_beams": 2, "temperature": 0, "eos_id": [1, VOCAB]}, "eos_id must be one of the model's 13 ids, got 13"),
        ({"num_beams": 2, "temperature": 0, "eos_id": VOCAB}, "eos_id must be one of the model's 13 ids, got 13"),
        ({"num_beams": 2, "temperature": 0, "length_penalty": 1e3}, "length_penalty must be finite, and"),
        ({"num_beams": 2, "temperature": 0, "length_penalty": float("nan")}, "length_penalty must be finite, and"),
        ({"num_beams": 2}, "num_beams > 1 needs temperature=0"),
        ({"num_beams": 2, "temperature": 0, "return_state": True}, "num_beams > 1 excludes callback and return_state"),
        ({"num_beams": 2, "temperature": 0, "callback": print}, "num_beams > 1 excludes callback and return_state"),
        ({"cuda_graph": "always"}, "cuda_graph must be True, False or 'auto', got 'always'"),
        ({"cuda_graph": True}, "a CUDA graph needs a model on a GPU, got cpu"),
    ],
)
def test_option_errors(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 3, **options}
    with pytest.raises(ValueError, match=message):
        generate(build("plain"), draw(1, 2), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_ids": [[1, 2]]}, "prompt_ids must be a Tensor, got list"),
        ({"attention_mask": [[1, 1]]}, "attention_mask must be a Tensor, got list"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be an integer, got 2.0"),
        ({"prefill_chunk_size": 2.0}, "prefill_chunk_size must be None or an integer, got 2.0"),
        ({"top_k": 2.5}, "top_k must be None or an integer, got 2.5"),
        ({"num_beams": 2.5}, "num_beams must be an integer, got 2.5"),
        ({"eos_id": 1.5}, "eos_id must be None or an integer, got 1.5"),
        ({"eos_id": [1, None]}, "every eos_id must be an integer, got None"),
    ],
)
def test_type_errors(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompt_ids": draw(1, 2), "max_new_tokens": 3, **options}
    with pytest.raises(TypeError, match=message):
        generate(build("plain"), **arguments)


@pytest.mark.parametrize("temperature", [1e-30, 1e-46])
def test_nearly_no_temperature_is_greedy(model: Any, temperature: float) -> None:
    """Also where logits divided by it are infinite."""
    prompt = draw(2, 3)
    greedy = generate(model, prompt, 5, temperature=0)
    for options in ({}, {"top_k": 4}, {"top_p": 0.9}):
        assert torch.equal(generate(model, prompt, 5, temperature=temperature, **options), greedy)
