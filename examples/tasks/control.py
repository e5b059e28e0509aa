"""Control from memory: a policy with a recurrent state, trained by PPO (Schulman et al. 2017, arXiv 1707.06347).

Episodes end and begin anywhere inside a rollout. The policy acts step by step with `step`, its state carried from one
rollout to the next; it is trained on the whole rollout in one call, from the state at its start, with `reset` at the
first step of every episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ..lm.options import fraction
from .environments import Play, Rollout, make_many, returns_of, sizes
from .models import equally_large, xlstm
from .policies import GRU, LSTM, MLP, Policy, Uniform
from .task import Models, Options, Results, Task, Verdict, option

RATIOS = ("1:1", "0:1", "1:0")  # of mLSTM to sLSTM blocks
REACHED, MISSED = 0.9, 0.5  # shares of the way from random actions to the best possible return
CLIP, LAMBDA, VALUE_WEIGHT = 0.2, 0.95, 0.5  # of PPO, of the advantages, of the value's error in the loss
_ROLLOUT, _START, _TEST, _SCORE, _RANDOM = range(5)  # streams of random numbers


@dataclass(frozen=True)
class ControlOptions(Options):
    steps: int = option(400, "training steps of each model, fewer where a model has solved the task")
    batch_size: int = option(64, "environments beside each other")
    heads: int = option(2, "heads of each block")
    env: str = option("popgym:popgym-RepeatFirstEasy-v0", 'id of an environment of gymnasium, or "module:id"')
    best: float = option(1.0, "mean return of a perfect policy, to compare with", float)
    length: int = option(32, "steps of a rollout")
    cells_lr: float = option(1e-2, "peak learning rate of the LSTM and the GRU")
    epochs: int = option(4, "training steps on each rollout")
    gamma: float = option(0.0, "discount; 0 where an action changes nothing but its own reward", fraction)
    entropy: float = option(0.01, "weight of the entropy bonus", fraction)
    test_episodes: int = option(256, "number of test episodes")


class Targets(NamedTuple):
    """What stays the same in all training steps on a rollout: (B, T) each."""

    log_probabilities: Tensor
    advantages: Tensor
    returns: Tensor


def targets(rollout: Rollout, logits: Tensor, values: Tensor, gamma: float) -> Targets:
    """Generalised advantages (Schulman et al. 2015, arXiv 1506.02438) from values (B, T + 1), normalised."""
    following = values[:, 1:] * ~rollout.terminated
    errors = rollout.rewards + gamma * following - values[:, :-1]
    kept = gamma * LAMBDA * ~rollout.last[:, 1:]
    advantages = torch.zeros_like(errors)
    ahead = torch.zeros_like(errors[:, 0])
    for t in reversed(range(errors.shape[1])):
        ahead = advantages[:, t] = errors[:, t] + kept[:, t] * ahead
    counted = advantages[~rollout.last[:, :-1]]
    normalised = (advantages - counted.mean()) / (counted.std(correction=0) + 1e-8)
    return Targets(log_probability(logits, rollout.actions), normalised, advantages + values[:, :-1])


def ppo_loss(rollout: Rollout, aims: Targets, logits: Tensor, values: Tensor, entropy_weight: float) -> Tensor:
    """Of logits (B, T, actions) and values (B, T) of the policy as it is now."""
    ratio = (log_probability(logits, rollout.actions) - aims.log_probabilities).exp()
    gain = torch.minimum(ratio * aims.advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * aims.advantages)
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    loss = VALUE_WEIGHT * (values - aims.returns).square() - gain - entropy_weight * entropy
    return loss[~rollout.last[:, :-1]].mean()


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """(B, T), of the actions (B, T) at logits (B, T, actions)."""
    return logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)


class Control(Task):
    """`begin` makes anew what is carried between the steps: environments, states and a rollout.

    A run that is resumed therefore goes on with new episodes, and is not bit for bit the run that was not interrupted.
    """

    name = "control"
    title = "Control from memory: a recurrent policy, trained by PPO"
    claim = (
        "The state of an xLSTM is a policy's memory. Carried from step to step and emptied where an episode begins, it "
        "lets the policy do what one without memory cannot. This is the library's own test: the xLSTM paper has no "
        "control task. xLSTM policies for robots: LRAM (arXiv 2410.22391). The environment: POPGym (arXiv 2303.01859)."
    )
    setting = (
        "RepeatFirst of popgym by default: the policy has to name the suit of the first card of a deck at every card. "
        "PPO has rollouts shorter than an episode, so that the state has to be carried between them. Every action is "
        "rewarded at once and changes nothing else, hence no discounted future. Small models without convolutions: "
        "what is remembered must be in the state. The LSTM and the GRU are one layer of torch's cells: two layers of "
        "LSTM, which have no residual, learned less in the same time. The MLP sees the present observation only. Share "
        "of the best: 0 for random actions, 1 for the best possible return, with the most likely actions."
    )
    defaults: ClassVar[Options] = ControlOptions()
    full: ClassVar[Options] = replace(
        ControlOptions(), env="popgym:popgym-RepeatFirstMedium-v0", steps=8000, batch_size=256, dim=128, length=128
    )
    options: ControlOptions

    def __init__(self, options: ControlOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        if options.length < 2:
            raise ValueError("--length must be at least 2: a single step may be one that only begins an episode")
        self.features, self.actions = sizes(options.env)
        uniform = Uniform(self.actions)
        returns = returns_of(uniform, options.env, options.test_episodes, self._seed(_TEST), device, self.rng(_RANDOM))
        self.chance = returns.mean().item()
        if not self.chance < options.best < math.inf:
            raise ValueError(
                f"--best {options.best:g} must be above the mean return of random actions, {self.chance:.3g}"
            )
        self.play: Play | None = None
        self.begin()

    def models(self) -> Models:
        dim, blocks, heads = self.options.dim, self.options.blocks, self.options.heads

        def policy(memory: Callable[[int], nn.Module], width: int) -> nn.Module:
            return Policy(self.features, self.actions, width, memory(width))

        def xlstm_of(ratio: str, width: int) -> nn.Module:
            return xlstm(ratio, width, blocks, heads, convolution=0)

        memories: dict[str, Callable[[int], nn.Module]] = {
            **{f"xLSTM[{ratio}]": partial(xlstm_of, ratio) for ratio in RATIOS},
            "LSTM": lambda width: LSTM(width, 1),
            "GRU": lambda width: GRU(width, 1),
            "MLP": lambda width: MLP(width, blocks),
        }
        builders = {name: partial(policy, memory) for name, memory in memories.items()}
        return equally_large(builders, f"xLSTM[{RATIOS[0]}]", dim, heads)

    def lr(self, name: str) -> float:
        return self.options.cells_lr if name in ("LSTM", "GRU") else self.options.lr

    def _seed(self, stream: int, index: int = 0) -> int:
        """Of the first of a row of environments."""
        return int(torch.randint(2**31, (1,), generator=self.rng(stream, index)))

    def begin(self) -> None:
        if self.play is not None:
            self.play.envs.close()
        self.play = None
        self.rollout: Rollout | None = None
        self.targets: Targets | None = None

    def loss(self, model: nn.Module, step: int) -> Tensor:
        assert isinstance(model, Policy)
        if self.play is None:
            envs = make_many(self.options.env, self.options.batch_size, self.options.gamma)
            self.play = Play(envs, self._seed(_START, step), self.device)
        if self.rollout is None or step % self.options.epochs == 0:
            self.rollout = self.play.rollout(model, self.options.length, self.rng(_ROLLOUT, step))
            self.targets = None
        rollout = self.rollout
        logits, values = model(rollout.observations, rollout.state, rollout.first)
        logits = logits[:, :-1]
        if self.targets is None:  # the policy is still the one that acted
            self.targets = targets(rollout, logits.detach(), values.detach(), self.options.gamma)
        return ppo_loss(rollout, self.targets, logits, values[:, :-1], self.options.entropy)

    def _return(self, model: nn.Module, stream: int, episodes: int) -> float:
        assert isinstance(model, Policy)
        return returns_of(model, self.options.env, episodes, self._seed(stream), self.device).mean().item()

    def _share(self, mean: float) -> float:
        """0 for random actions, 1 for the best possible mean return; rounded, as a return is a sum of many rewards."""
        return round((mean - self.chance) / (self.options.best - self.chance), 4)

    def score(self, model: nn.Module) -> float:
        return self._share(self._return(model, _SCORE, 64))

    def results(self, model: nn.Module) -> Results:
        mean = self._return(model, _TEST, self.options.test_episodes)
        return {"mean return": round(mean, 4), "share of the best": self._share(mean)}

    def baselines(self) -> dict[str, Results]:
        return {"random actions": {"mean return": round(self.chance, 4), "share of the best": 0.0}}

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        shares = {name: result["share of the best"] for name, result in results.items()}
        learned = all(shares[f"xLSTM[{ratio}]"] >= REACHED for ratio in RATIOS)
        numbers = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        return Verdict(learned and shares["MLP"] < MISSED, f"share of the best return: {numbers}")

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        options = self.options
        for name, result in results.items():
            if "scores" in result:
                steps, shares = zip(*result["scores"], strict=True)
                rollouts = [math.ceil(step / options.epochs) for step in steps]
                axes.plot([count * options.length * options.batch_size for count in rollouts], shares, label=name)
        axes.axhline(1, color="grey", linestyle="--", linewidth=0.8, label="best possible")
        axes.axhline(0, color="grey", linestyle=":", linewidth=0.8, label="random actions")
        axes.set_xlabel("steps of the environments")
        axes.set_ylabel("return, between random and best")
        axes.legend()
