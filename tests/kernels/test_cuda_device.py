"""What only a device shows: streams, CUDA graphs, device guards, and inputs on several devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.cuda import without_kernel
from tests.kernels.test_recurrent_variants import only
from tests.support.machine import has_cuda
from tests.support.paths import ROOT
from xlstm_cuda import (
    LSTMState,
    MLSTMState,
    SLSTMState,
    lstm,
    lstm_step,
    mlstm,
    mlstm_step,
    slstm,
    slstm_step,
)
from xlstm_cuda.testing import TOLERANCE, assert_close_relative, lstm_inputs, mlstm_inputs, slstm_inputs

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_cuda(), reason="this build of xlstm_cuda has no CUDA kernels"),
    pytest.mark.filterwarnings("error:xlstm_cuda"),  # that the reference computes in the kernel's place
]

SLEEP = 2_000_000_000  # cycles of the GPU's clock: about a second
FLOAT32 = TOLERANCE[torch.float32].h

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    draw: Callable[[int], Tensors]  # seeded inputs and state on the CPU
    state: type[Any]
    function: Callable[..., Any]
    options: dict[str, Any]
    tolerance: float = FLOAT32
    variant: str = ""  # of the recurrent scans

    def run(self, t: Tensors, **options: Any) -> Tensors:
        """h and the next state, by the public function's choice of backend."""
        inputs = {name: x for name, x in t.items() if name not in self.state._fields}
        state = self.state(*(t[name] for name in self.state._fields))
        h, after = self.function(**inputs, state=state, **{**self.options, **options})
        return {"output": h, **after._asdict()}

    def expected(self, t: Tensors) -> Tensors:
        wide = {name: x.detach().cpu().double() for name, x in t.items()}
        return self.run(wide, backend="reference")


class Sequence(Step):
    """Several tokens, forward and backward: the results are h, the final state and every gradient."""

    def run(self, t: Tensors, **options: Any) -> Tensors:
        leaves = {name: x.detach().requires_grad_() for name, x in t.items()}  # the same memory
        inputs = {name: x for name, x in leaves.items() if name not in self.state._fields}
        start = self.state(*(leaves[name] for name in self.state._fields))
        h, after = self.function(**inputs, initial_state=start, return_state=True, **options)
        results = [h, *after]
        grads = torch.autograd.grad(results, list(leaves.values()), [torch.ones_like(x) for x in results])
        values = {"output": h, **after._asdict(), **{f"d{name}": x for name, x in zip(leaves, grads, strict=True)}}
        return {name: x.detach() for name, x in values.items()}


def draw_sequence(make: Callable[..., dict[str, Any]], *sizes: int) -> Callable[[int], Tensors]:
    def draw(seed: int) -> Tensors:
        inputs = make(*sizes, state=True, seed=seed)
        state = inputs.pop("initial_state")
        return {**inputs, **state._asdict()}

    return draw


def draw_mlstm(seed: int) -> Tensors:
    inputs = mlstm_inputs(3, 2, 1, 32, 48, state=True, seed=seed)
    state = inputs.pop("initial_state")
    return {name: x.squeeze(2) for name, x in inputs.items()} | state._asdict()


def draw_cell(make: Callable[..., dict[str, Any]]) -> Callable[[int], Tensors]:
    def draw(seed: int) -> Tensors:
        inputs = make(3, 1, 2, 32, state=True, seed=seed)
        state = inputs.pop("initial_state")
        return {**inputs, "x": inputs["x"].squeeze(1), **state._asdict()}

    return draw


STEPS = {
    "mlstm_step": Step(draw_mlstm, MLSTMState, mlstm_step, {"inplace": True}),
    "slstm_step": Step(draw_cell(slstm_inputs), SLSTMState, slstm_step, {}),
    "lstm_step": Step(draw_cell(lstm_inputs), LSTMState, lstm_step, {}),
}


SCAN = 1e-4  # of float32 gradients through tensor cores in three passes
SEQUENCES = {
    "mlstm": Sequence(draw_sequence(mlstm_inputs, 2, 2, 150, 32, 48), MLSTMState, mlstm, {}, SCAN),
    "lstm block": Sequence(draw_sequence(lstm_inputs, 3, 9, 2, 32), LSTMState, lstm, {}, SCAN, "block"),
    **{
        f"slstm {variant}": Sequence(draw_sequence(slstm_inputs, 3, 9, 2, 136), SLSTMState, slstm, {}, SCAN, variant)
        for variant in ("cluster", "grid", "launch")
    },
}


@pytest.fixture(params=[*STEPS, *SEQUENCES])
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    found = {**STEPS, **SEQUENCES}[request.param]
    reason = without_kernel(found.function.__name__, {})
    if reason is not None:
        pytest.skip(f"{request.param} {reason}")
    with only("cuda", found.variant):
        yield found


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    torch.cuda.synchronize()


def on(device: str | int, tensors: Tensors) -> Tensors:
    return {name: x.to(device, copy=True) for name, x in tensors.items()}


def overwrite(static: Tensors, values: Tensors) -> None:
    for name, x in values.items():
        static[name].copy_(x)


def assert_close(actual: Tensors, expected: Tensors, tolerance: float) -> None:
    for name, x in expected.items():
        assert_close_relative(actual[name], x, tolerance, name)


def warmed_up(step: Step, static: Tensors) -> torch.cuda.Stream:
    """A side stream on which the op has run: its kernels are loaded, which can wait for the whole device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step.run(static)
    torch.cuda.synchronize()
    return stream


def test_waits_for_its_own_stream(step: Step) -> None:
    """On another stream the kernel would read the inputs before the copies, which come after a second's sleep."""
    static, fresh = on("cuda", step.draw(0)), on("cuda", step.draw(1))
    expected = step.expected(fresh)
    stream = warmed_up(step, static)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        overwrite(static, fresh)
        actual = step.run(static)
        asleep = not stream.query()
    stream.synchronize()
    assert asleep, "the host waited for the device"
    assert_close(actual, expected, step.tolerance)


def test_does_not_wait_for_the_default_stream(step: Step) -> None:
    static, fresh = on("cuda", step.draw(0)), on("cuda", step.draw(1))
    expected = step.expected(fresh)
    stream, slept = warmed_up(step, static), torch.cuda.Event()
    torch.cuda._sleep(SLEEP)
    slept.record()
    with torch.cuda.stream(stream):
        overwrite(static, fresh)
        actual = step.run(static)
    stream.synchronize()
    assert not slept.query(), "the op ran on the default stream, or waited for it"
    with torch.cuda.stream(stream):
        actual = {name: x.cpu() for name, x in actual.items()}
    assert_close(actual, expected, step.tolerance)


def test_graph_replays_read_new_values(step: Step) -> None:
    """Three times through one captured call, each from the state that the one before has left."""
    static = on("cuda", step.draw(0))
    warmed_up(step, static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step.run(static)
    overwrite(static, step.draw(1))
    state = {name: static[name].clone() for name in step.state._fields}
    for seed in (1, 2, 3):
        token = {name: x for name, x in step.draw(seed).items() if name not in state}
        expected = step.expected({**token, **state})
        overwrite(static, token)
        graph.replay()
        assert_close(outputs, expected, step.tolerance)
        state = {name: outputs[name].clone() for name in state}
        overwrite(static, state)


@pytest.mark.parametrize("name", [*STEPS, *SEQUENCES])
def test_first_call_of_a_process_is_captured(name: str) -> None:
    """Kernels are loaded when they are first used, which may allocate memory: that must not end the capture."""
    reason = without_kernel({**STEPS, **SEQUENCES}[name].function.__name__, {})
    if reason is not None:
        pytest.skip(f"{name} {reason}")
    program = f"from {__name__} import capture_first; capture_first({name!r})"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def capture_first(name: str) -> None:
    step = {**STEPS, **SEQUENCES}[name]
    static = on("cuda", step.draw(0))
    expected = step.expected(static)  # state may be overwritten
    graph = torch.cuda.CUDAGraph()
    with only("cuda", step.variant), torch.cuda.graph(graph):
        outputs = step.run(static)
    graph.replay()
    assert_close(outputs, expected, step.tolerance)


def test_capture_runs_nothing(step: Step) -> None:
    static = on("cuda", step.draw(0))
    warmed_up(step, static)
    overwrite(static, step.draw(0))
    before = {name: x.clone() for name, x in static.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run(static)
    torch.cuda.synchronize()
    assert all(torch.equal(static[name], x) for name, x in before.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_than_the_current_device(step: Step) -> None:
    inputs = step.draw(0)
    expected = step.expected(inputs)
    with torch.cuda.device(0):
        actual = step.run(on("cuda:1", inputs))
        assert torch.cuda.current_device() == 0
    assert {x.device for x in actual.values()} == {torch.device("cuda", 1)}
    assert_close(actual, expected, step.tolerance)


@pytest.mark.parametrize("op", STEPS)
def test_inputs_on_two_devices_are_refused_in_a_sentence(op: str) -> None:
    step = STEPS[op]
    inputs = step.draw(0)
    here, first = on("cuda", inputs), next(iter(inputs))
    for name in inputs:
        if name == first:
            message = rf"{op}: \S+ must be on cpu like {first}, got cuda:0"
        else:
            label = rf"state\.{name}" if name in step.state._fields else name
            message = rf"{op}: {label} must be on cuda:0 like {first}, got cpu"
        with pytest.raises(ValueError, match=rf"^{message}$"):
            step.run({**here, name: inputs[name]})


@pytest.mark.parametrize("name", ["mlstm", "lstm block", "slstm cluster"])
def test_autocast_computes_in_bfloat16(name: str) -> None:
    call = SEQUENCES[name]
    inputs = on("cuda", call.draw(0))
    cast = ("q", "k", "v") if name == "mlstm" else ("x", "R")
    halved = {key: x.bfloat16() if key in cast else x for key, x in inputs.items()}
    with only("cuda", call.variant):
        expected = call.run(halved)
        with torch.autocast("cuda", torch.bfloat16):
            actual = call.run(inputs)
    assert actual["output"].dtype == torch.bfloat16
    assert all(torch.equal(x, expected[key].to(x.dtype)) for key, x in actual.items())
