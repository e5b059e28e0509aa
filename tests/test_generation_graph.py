"""The step recorded as a CUDA graph: its logic with a recorder that records nothing, and on a GPU the graph itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from generation_models import MODELS, VOCAB, build
from machine import has_cuda
from torch import Tensor
from torch.utils import _pytree as pytree

from xlstm_cuda.models import GraphedStep, cuda_graph, generate, stream


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    print("seed", torch.seed())  # another one each time; shown where a test fails
    yield


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param).eval()


def draw(batch: int, seqlen: int) -> Tensor:
    return torch.randint(VOCAB, (batch, seqlen))


class Recorder:
    """In the place of record_cuda_graph: warms up as that does, and replays by calling."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, body: Callable[[], None], device: torch.device) -> Callable[[], object]:
        assert device.type == "cpu"
        self.recorded += 1
        for _ in range(3):
            body()

        def replay() -> None:
            self.replayed += 1
            body()

        return replay


def close(actual: Any, expected: Any) -> None:
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_steps_equal_the_models(model: Any) -> None:
    """Two batch sizes in turn, each from where it was; states given from outside; nothing is allocated twice."""
    record = Recorder()
    step = GraphedStep(model, record=record)
    prompts = {batch: draw(batch, 4) for batch in (2, 3)}
    expected = {batch: model.prefill(prompt)[1] for batch, prompt in prompts.items()}
    given = {batch: pytree.tree_map(torch.clone, state) for batch, state in expected.items()}
    states, buffers = dict(given), {}
    for _ in range(4):
        for batch in (2, 3):
            ids = draw(batch, 1)
            logits, expected[batch] = model.step(ids, expected[batch])
            ours, states[batch] = step(ids, states[batch])
            close((ours, states[batch]), (logits, expected[batch]))
            addresses = [leaf.data_ptr() for leaf in pytree.tree_leaves(states[batch])]
            assert buffers.setdefault(batch, addresses) == addresses
    assert (record.recorded, record.replayed) == (2, 8)
    for batch, prompt in prompts.items():
        close(given[batch], model.prefill(prompt)[1])  # the first state was copied, not written to
        ids = draw(batch, 1)
        close(step(ids, given[batch]), model.step(ids, given[batch]))


def test_generate_and_stream_with_a_recorded_step(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = draw(3, 5)
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"seed": 1, "eos_id": 3},
        {"temperature": 0, "num_beams": 3, "eos_id": 3},
        {"temperature": 0, "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1] * 5, [0, 0, 0, 0, 1]])},
    ]
    for option in options:
        expected = generate(model, prompt, 9, **option)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graph, "record_cuda_graph", record := Recorder())
            assert torch.equal(generate(model, prompt, 9, cuda_graph=True, **option), expected)
            assert record.replayed
    expected, state = generate(model, prompt, 9, temperature=0, return_state=True)
    monkeypatch.setattr(cuda_graph, "record_cuda_graph", Recorder())
    ids, recorded_state = generate(model, prompt, 9, temperature=0, return_state=True, cuda_graph=True)
    assert torch.equal(ids, expected)
    close(recorded_state, state)
    new = list(stream(model, prompt, 9, temperature=0, cuda_graph=True))
    assert torch.equal(torch.stack(new, 1), expected[:, 5:])


def test_when_a_step_is_recorded(model: Any) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    make = cuda_graph.make_step
    assert make(model, cpu, "auto", 1000) == make(model, cuda, False, 1000) == make(model, cuda, "auto", 31)
    for mode, tokens in (("auto", 32), (True, 1)):
        assert isinstance(make(model, cuda, mode, tokens), GraphedStep)


def test_a_recording_that_fails(model: Any) -> None:
    def fail(body: Callable[[], None], device: torch.device) -> Callable[[], object]:
        body()
        raise RuntimeError("operation not permitted\nand much more")

    state, ids = model.prefill(draw(2, 3))[1], draw(2, 1)
    with pytest.raises(RuntimeError, match="operation not permitted"):
        GraphedStep(model, record=fail)(ids, state)
    step = GraphedStep(model, record=fail, optional=True)
    message = "^no CUDA graph of the step, which runs without: operation not permitted$"
    with pytest.warns(RuntimeWarning, match=message) as warned:
        first = step(ids, state)
        close(step(ids, state), first)
    assert len(warned) == 1, "once, not in every step"
    close(first, model.step(ids, state))


def test_autocast(model: Any) -> None:
    """What autocast keeps of cast weights ends with it: a recording must not use it."""
    seen = []

    def record(body: Callable[[], None], device: torch.device) -> Callable[[], object]:
        seen.append(torch.is_autocast_cache_enabled())
        body()
        return body

    ids, more = draw(2, 3), draw(2, 1)
    model = model.float()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        state = model.prefill(ids)[1]
        expected = model.step(more, state)
        actual = GraphedStep(model, record=record)(more, state)
        assert seen == [False] and torch.is_autocast_cache_enabled()
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b.to(a.dtype))


def test_errors(model: Any) -> None:
    with pytest.raises(ValueError, match="needs a state, as model.prefill returns it"):
        GraphedStep(model, record=Recorder())(draw(1, 1), None)
    with pytest.raises(ValueError, match="a CUDA graph needs a model on a GPU, got cpu"):
        GraphedStep(model)(draw(1, 1), model.prefill(draw(1, 1))[1])


@pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device and a build with CUDA kernels")
@pytest.mark.filterwarnings("error:no CUDA graph")
def test_on_a_gpu(model: Any) -> None:
    """Recorded and plain steps generate the same tokens, also where "auto" records and it is looked seldom for eos."""
    model, prompt = model.cuda(), draw(3, 5).cuda()
    for options in ({"temperature": 0}, {"seed": 1}, {"temperature": 0, "num_beams": 3}):
        for eos in (None, 3):
            expected = generate(model, prompt, 40, eos_id=eos, cuda_graph=False, **options)
            for mode in (True, "auto"):
                assert torch.equal(generate(model, prompt, 40, eos_id=eos, cuda_graph=mode, **options), expected)
