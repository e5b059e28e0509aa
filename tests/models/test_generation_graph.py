"""The step recorded as a CUDA graph: its logic with a recorder that records nothing, and on a GPU the graph itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.support.generation_models import MODELS, VOCAB, build
from tests.support.machine import has_cuda
from xlstm_cuda.models import GraphedStep, generate, stream
from xlstm_cuda.models.generation import cuda_graph

pytestmark = pytest.mark.usefixtures("fresh_seed")


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
            patch.setattr(cuda_graph, "require_gpu", lambda device: None)
            patch.setattr(cuda_graph, "record_cuda_graph", record := Recorder())
            assert torch.equal(generate(model, prompt, 9, cuda_graph=True, **option), expected)
            assert record.replayed
    expected, state = generate(model, prompt, 9, temperature=0, return_state=True)
    monkeypatch.setattr(cuda_graph, "require_gpu", lambda device: None)
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


@torch.no_grad()
def test_states_unlike_the_buffers(model: Any) -> None:
    """A state of one row is refused by the model, not broadcast; one of another kind goes on as with the model."""
    step, ids = GraphedStep(model, record=Recorder()), draw(3, 1)
    state = model.prefill(draw(3, 4))[1]
    step(ids, state)
    with pytest.raises(ValueError):
        step(ids, model.prefill(draw(1, 4))[1])
    close(step(ids, list(state)), model.step(ids, state))
    close(step(ids, state), model.step(ids, state))


@torch.no_grad()
def test_a_state_of_16_bits_becomes_the_steps_own() -> None:
    """Begun from a prompt of mode "inference", C is not rounded in every step if model.step would not."""
    model = build("large").float().eval()
    model.config.mode, model.config.inference_state_dtype = "inference", "bfloat16"
    state = model.prefill(draw(2, 9))[1]
    model.config.mode = "train"
    step, expected = GraphedStep(model, record=Recorder()), state
    for _ in range(5):
        ids = draw(2, 1)
        logits, expected = model.step(ids, expected)
        ours, state = step(ids, state)
        torch.testing.assert_close(ours, logits)
        assert state[0].C.dtype == torch.float32


@torch.no_grad()
def test_in_and_out_of_inference_mode(model: Any) -> None:
    ids, state = draw(2, 1), model.prefill(draw(2, 3))[1]
    step, expected = GraphedStep(model, record=Recorder()), model.step(ids, state)
    with torch.inference_mode():
        step(ids, state)
    close(step(ids, state), expected)


def test_a_gpu_is_asked_for_at_once(model: Any) -> None:
    """Not by the first step: before the prompt is computed, and also where there is only one new token."""
    message = "a CUDA graph needs a model on a GPU, got cpu"
    with pytest.raises(ValueError, match=message):
        generate(model, draw(1, 2), 1, cuda_graph=True)
    with pytest.raises(ValueError, match=message):
        stream(model, draw(1, 2), 5, cuda_graph=True)


def test_the_stream_after_a_recording_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.graph, of which this copies the order, does not go back to the stream before where it fails."""
    current = ["main"]

    @contextmanager
    def on(stream: str) -> Iterator[None]:
        before, current[0] = current[0], stream
        try:
            yield
        finally:
            current[0] = before

    class Graph:
        def __init__(self, graph: object) -> None: ...

        def __enter__(self) -> None:
            current[0] = "capture"

        def __exit__(self, *error: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    class Stream(str):
        def wait_stream(self, other: str) -> None: ...

    fakes = {"device": lambda device: nullcontext(), "stream": on, "graph": Graph, "CUDAGraph": object}
    fakes |= {"Stream": lambda: Stream("side"), "current_stream": lambda: Stream(current[0])}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with pytest.raises(RuntimeError, match="operation failed"):
        cuda_graph.record_cuda_graph(lambda: None, torch.device("cuda"))
    assert current == ["main"]


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
