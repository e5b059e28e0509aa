"""examples/tasks/control.py: which step belongs to which episode, what policies carry, PPO, and the command line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

gymnasium = pytest.importorskip("gymnasium")

from examples.tasks import control, environments  # noqa: E402
from examples.tasks.__main__ import main  # noqa: E402
from examples.tasks.models import xlstm  # noqa: E402
from examples.tasks.policies import GRU, LSTM, MLP, Actor, Policy, Uniform, emptied  # noqa: E402

pytestmark = pytest.mark.usefixtures("fresh_seed")
CPU = torch.device("cpu")
ACTIONS, START = 3, 5  # the actions of Counting are 5, 6 and 7


class Counting(gymnasium.Env):
    """Observation: number of the environment's episode and of the step in it. Reward: a code of both and of the action.

    Episodes have one to seven steps; those of odd number are cut off, the others terminate.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(ACTIONS, start=START)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.place, self.length = 0, int(self.np_random.integers(1, 8))
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action) and self.place < self.length
        reward = code(self.episode, self.place, int(action) - START)
        self.place += 1
        over, cut = self.place == self.length, self.episode % 2 == 1
        return self._observation(), reward, over and not cut, over and cut, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.episode, self.place], dtype=np.float32)


def code(episode: Any, place: Any, action: Any) -> Any:
    return 1 + 100 * episode + 10 * place + action


class Words(gymnasium.Env):
    observation_space = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))
    action_space = gymnasium.spaces.Discrete(2)


class Pair(gymnasium.Env):
    observation_space = gymnasium.spaces.Tuple(
        (gymnasium.spaces.Discrete(3), gymnasium.spaces.MultiDiscrete([2, 4]), gymnasium.spaces.Box(0, 1, (2, 2)))
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return (2, np.array([0, 3]), np.full((2, 2), 0.5, np.float32)), {}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for kind in (Counting, Words, Pair):
        gymnasium.register(f"{kind.__name__}-v0", kind)
    yield
    for kind in (Counting, Words, Pair):
        del gymnasium.registry[f"{kind.__name__}-v0"]


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))


def options(**given: Any) -> control.ControlOptions:
    small = {"env": "Counting-v0", "steps": 4, "batch_size": 3, "dim": 8, "length": 6, "epochs": 2, "best": 1e4}
    return control.ControlOptions(**{**small, "test_episodes": 5, **given})


def played(policy: Actor, count: int = 5) -> environments.Play:
    return environments.Play(environments.make_many("Counting-v0", count), 3, CPU)


def test_rollouts_know_which_step_belongs_to_which_episode() -> None:
    play, before = played(Uniform(ACTIONS)), None
    for length in (4, 1, 19, 30):
        rollout = play.rollout(Uniform(ACTIONS), length, rng())
        episode, place = rollout.observations.unbind(-1)
        assert rollout.first.equal(place == 0)
        counted = ~rollout.last[:, :-1]
        expected = code(episode[:, :-1], place[:, :-1], rollout.actions)
        assert rollout.rewards.equal(torch.where(counted, expected, 0))
        # A step that counts goes one place on in its episode, one that does not leads to the first of the next.
        assert episode[:, 1:].equal(episode[:, :-1] + rollout.last[:, :-1])
        assert place[:, 1:].equal(torch.where(counted, place[:, :-1] + 1, 0))
        ended = rollout.last[:, 1:]
        assert rollout.terminated.equal(ended & (episode[:, 1:] % 2 == 0))
        if before is not None:
            for name in ("observations", "first", "last"):
                assert getattr(rollout, name)[:, 0].equal(getattr(before, name)[:, -1])
        before = rollout
    assert len(set(rollout.actions.flatten().tolist())) == ACTIONS
    assert any(len(set(row)) > 1 for row in rollout.last.T.tolist())  # episodes end at different steps of the batch


def test_returns_are_those_of_one_whole_episode_each() -> None:
    class Last:
        """Always the last action."""

        def step(self, observation: Tensor, state: Any, reset: Tensor) -> tuple[Tensor, Any]:
            return torch.arange(ACTIONS).expand(len(observation), -1).float(), None

    returns = environments.returns_of(Last(), "Counting-v0", 12, 7, CPU)
    lengths = [int(np.random.Generator(np.random.PCG64(7 + k)).integers(1, 8)) for k in range(12)]
    assert returns.tolist() == [sum(code(0, place, ACTIONS - 1) for place in range(n)) for n in lengths]
    assert len(set(lengths)) > 1


MEMORIES = {
    "xLSTM[1:1]": lambda: xlstm("1:1", 8, 2, 2),
    "xLSTM[0:1], no convolution": lambda: xlstm("0:1", 8, 2, 2, convolution=0),
    "xLSTM[1:0]": lambda: xlstm("1:0", 8, 2, 2),
    "LSTM": lambda: LSTM(8, 2),
    "GRU": lambda: GRU(8, 2),
    "MLP": lambda: MLP(8, 2),
}


class Recorder:
    """A policy that keeps what it answers."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.logits = policy, []

    def step(self, observation: Tensor, state: Any, reset: Tensor) -> tuple[Tensor, Any]:
        logits, state = self.policy.step(observation, state, reset)
        self.logits.append(logits)
        return logits, state


@pytest.mark.parametrize("name", MEMORIES)
def test_steps_with_resets_equal_the_call_for_the_whole_rollout(name: str) -> None:
    policy = Policy(2, ACTIONS, 8, MEMORIES[name]())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    recorder = Recorder(policy)
    play = played(recorder)
    for _ in range(3):  # the state is carried into the second and the third
        recorder.logits.clear()
        rollout = play.rollout(recorder, 9, rng())
        with torch.no_grad():
            logits, values = policy(rollout.observations, rollout.state, rollout.first)
            forgetful, _ = policy(rollout.observations, None, rollout.first)
            never, _ = policy(rollout.observations, rollout.state, torch.zeros_like(rollout.first))
        assert values.shape == rollout.first.shape
        torch.testing.assert_close(logits[:, :-1], torch.stack(recorder.logits, 1), rtol=1e-4, atol=1e-4)
    if name != "MLP":  # both matter: the state at the start and the resets
        assert (logits - forgetful).abs().max() > 1e-2
        assert (logits - never).abs().max() > 1e-2


def test_emptied_rows_are_those_of_an_empty_state() -> None:
    policy, x = Policy(2, ACTIONS, 8, MEMORIES["xLSTM[1:1]"]()), torch.randn(4, 5, 2)
    rows = torch.tensor([True, False, True, False])
    _, state = policy.memory(policy.embed(x), return_state=True)
    for before, after in zip(pytree.tree_leaves(state), pytree.tree_leaves(emptied(state, rows)), strict=True):
        assert not after[rows].any() and after[~rows].equal(before[~rows])
    assert emptied(None, rows) is None


def random_rollout(batch: int, length: int) -> environments.Rollout:
    last = torch.rand(batch, length + 1) < 0.3
    last[:, 1:] &= ~last[:, :-1]
    last[:, 2:] &= ~last[:, 1:-1]
    terminated = last[:, 1:] & (torch.rand(batch, length) < 0.5)
    first = torch.cat([torch.zeros(batch, 1, dtype=torch.bool), last[:, :-1]], 1)
    actions, rewards = torch.randint(ACTIONS, (batch, length)), torch.randn(batch, length)
    return environments.Rollout(torch.randn(batch, length + 1, 2), first, last, actions, rewards, terminated, None)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_advantages_by_their_definition(gamma: float) -> None:
    rollout, values = random_rollout(4, 20), torch.randn(4, 21)
    logits = torch.randn(4, 20, ACTIONS)
    found = control.targets(rollout, logits, values, gamma)
    expected, counted = torch.zeros(4, 20), ~rollout.last[:, :-1]
    for b, t in counted.nonzero().tolist():
        for k in range(t, 20):
            future = 0.0 if rollout.terminated[b, k] else gamma * values[b, k + 1]
            error = rollout.rewards[b, k] + future - values[b, k]
            expected[b, t] += (gamma * control.LAMBDA) ** (k - t) * error
            if rollout.last[b, k + 1]:
                break
    returns = expected + values[:, :-1]
    torch.testing.assert_close(found.returns[counted], returns[counted], rtol=1e-4, atol=1e-5)
    expected = expected[counted]
    normalised = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(found.advantages[counted], normalised, rtol=1e-4, atol=1e-4)
    probability = torch.distributions.Categorical(logits=logits).log_prob(rollout.actions)
    torch.testing.assert_close(found.log_probabilities, probability)


def test_steps_between_episodes_do_not_count() -> None:
    rollout, logits, values = random_rollout(4, 20), torch.randn(4, 20, ACTIONS), torch.randn(4, 21)
    aims = control.targets(rollout, logits, values, 0.9)
    logits.requires_grad_()
    now = torch.randn(4, 20, requires_grad=True)
    gradients = torch.autograd.grad(control.ppo_loss(rollout, aims, logits, now, 0.01), (logits, now))
    between = rollout.last[:, :-1]
    assert between.any()
    for gradient in gradients:
        assert not gradient[between].any()
    assert gradients[0][~between].any(-1).all()


def test_ppo_is_the_policy_gradient_at_first_and_stops_where_it_is_clipped() -> None:
    rollout, logits, values = random_rollout(4, 20), torch.randn(4, 20, ACTIONS), torch.zeros(4, 21)
    counted = ~rollout.last[:, :-1]
    aims = control.targets(rollout, logits, values, 0.0)
    logits.requires_grad_()
    now = aims.returns.clone()
    (gradient,) = torch.autograd.grad(control.ppo_loss(rollout, aims, logits, now, 0.0), logits)
    gain = (control.log_probability(logits, rollout.actions) * aims.advantages)[counted].mean()
    torch.testing.assert_close(gradient, -torch.autograd.grad(gain, logits)[0])
    far = (logits + 3 * aims.advantages.sign()[..., None] * nn.functional.one_hot(rollout.actions, ACTIONS)).detach()
    far.requires_grad_()
    (gradient,) = torch.autograd.grad(control.ppo_loss(rollout, aims, far, now, 0.0), far)
    ratio = (control.log_probability(far, rollout.actions) - aims.log_probabilities).exp()
    clipped = ((ratio - 1).abs() > control.CLIP) & counted
    assert clipped.any() and not gradient[clipped].any()


def task(**given: Any) -> control.Control:
    return control.Control(options(**given), 0, CPU)


def losses(found: control.Control, steps: range) -> list[float]:
    torch.manual_seed(0)
    model = found.models()["xLSTM[1:1]"]()
    found.begin()
    return [float(found.loss(model, step).detach()) for step in steps]


def test_losses_are_deterministic_and_a_resumed_run_begins_new_episodes() -> None:
    one, other = task(), task()
    assert losses(one, range(5)) == losses(other, range(5)) == losses(one, range(5))
    assert losses(control.Control(options(), 1, CPU), range(5)) != losses(one, range(5))
    assert all(math.isfinite(value) for value in losses(one, range(3, 6)))  # from within a rollout's steps


def test_a_rollout_serves_for_several_steps() -> None:
    found = task(epochs=3)
    model = found.models()["LSTM"]()
    used = []
    for step in range(7):
        found.loss(model, step)
        used.append(found.rollout)
    assert used[0] is used[1] is used[2] is not used[3]
    assert used[3] is used[4] is used[5] is not used[6]


def test_models_are_of_equal_size() -> None:
    found = control.Control(options(dim=32), 0, CPU)
    sizes = {name: sum(p.numel() for p in build().parameters()) for name, build in found.models().items()}
    assert max(sizes.values()) < 1.15 * min(sizes.values()), sizes


def test_observations_are_flattened() -> None:
    env = environments.make("Pair-v0")
    assert env.reset()[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5]
    assert environments.sizes("Pair-v0") == (13, 2)


@pytest.mark.parametrize("name, length", [("popgym-RepeatFirstEasy", 51), ("popgym-CountRecallEasy", 51)])
def test_popgym(name: str, length: int) -> None:
    """Of RepeatFirst the best return, 1, is reached by naming the first card; episodes have one step per card."""
    pytest.importorskip("popgym")

    class First:
        card: ClassVar[Tensor]

        def step(self, observation: Tensor, state: Any, reset: Tensor) -> tuple[Tensor, Any]:
            state = observation if state is None else torch.where(reset[:, None], observation, state)
            return state, state

    features, actions = environments.sizes(f"popgym:{name}-v0")
    policy = First() if "First" in name else Uniform(actions)
    play = environments.Play(environments.make_many(f"popgym:{name}-v0", 2), 0, CPU)
    rollout = play.rollout(policy, length + 2, rng())
    assert rollout.observations.shape[-1] == features == 4
    assert rollout.last.nonzero()[:, 1].tolist() == [length] * 2
    assert rollout.first.nonzero()[:, 1].tolist() == [0, length + 1] * 2
    if "First" in name:
        torch.testing.assert_close(environments.returns_of(policy, f"popgym:{name}-v0", 3, 5, CPU), torch.ones(3))


SMALL = ["--steps=2", "--batch-size=3", "--dim=8", "--length=5", "--epochs=2", "--test-episodes=4"]


def finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def test_the_command(tmp_path: Path) -> None:
    given = ["control", *SMALL, "--env", "Counting-v0", "--best", "1e4", "--gamma", "0.9", "--out", str(tmp_path)]
    assert main(given) == 0
    document = json.loads((tmp_path / "control-seed0.json").read_text())
    assert (tmp_path / "control-seed0.png").stat().st_size > 10_000
    assert finite(document) and set(document["results"]) == {*task().models(), "random actions"}
    result = document["results"]["xLSTM[0:1]"]
    assert [step for step, _ in result["scores"]] == [1, 2]
    assert result["mean return"] > 0
    assert main([*given, "--resume"]) == 0  # nothing is left to train: the same results
    again = json.loads((tmp_path / "control-seed0.json").read_text())
    assert again["results"] == document["results"]


BAD = {
    "--env Nothing-v0": "--env Nothing-v0 cannot be made",
    "--env a:b:c": "the id of an environment is expected, or module:id",
    "--env :CartPole-v1": "the id of an environment is expected, or module:id",
    "--env nosuchmodule:Nothing-v0": "needs the module nosuchmodule",
    "--env Pendulum-v1": "has the actions Box",
    "--env Words-v0": "has the observations Sequence",
    "--env Counting-v0 --best 0": "--best 0 must be above",
    "--env Counting-v0 --best nan": "--best nan must be above",
    "--env Counting-v0 --length 1": "--length must be at least 2",
    "--env Counting-v0 --best 1e4 --blocks 3": "num_blocks must be a multiple of 2",
}


@pytest.mark.parametrize("given", BAD)
def test_bad_input_is_one_sentence(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "--test-episodes", "3", "--out", str(tmp_path), *given.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert BAD[given] in error and error.count("\n") == 0, error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["popgym", "gymnasium"])
def test_missing_packages(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["control", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert package in error and "pip install 'xlstm-cuda[tasks]'" in error and error.count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_verdict() -> None:
    found = task()
    shares = {"xLSTM[1:1]": 0.95, "xLSTM[0:1]": 0.9, "xLSTM[1:0]": 1.0, "MLP": 0.1}

    def holds(**other: float) -> bool:
        return found.verdict({name: {"share of the best": share} for name, share in {**shares, **other}.items()}).holds

    assert holds()
    assert not holds(MLP=0.5)
    assert not holds(**{"xLSTM[0:1]": 0.89})
