"""One training run: model, optimizer, random state and losses; a step, a loop, and what a checkpoint holds of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import CheckpointError
from .data import Corpus, train_batch

OPTIMIZER_TENSORS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers of a run, apart from the model and the machine."""

    steps: int
    batch_size: int
    seq_len: int
    lr: float
    seed: int
    bf16: bool
    data_sha256: str


@dataclass
class Run:
    name: str
    model: nn.Module  # (B, S) int64 -> (B, S, 256) logits
    description: dict[str, Any]  # what the model was built from, as JSON
    settings: Settings
    device: torch.device
    optimizer: torch.optim.AdamW = field(init=False)
    losses: list[float] = field(default_factory=list)  # nats per byte, one per step
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.model.to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.settings.lr, betas=(0.9, 0.95))

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def bytes_per_step(self) -> int:
        return self.settings.batch_size * self.settings.seq_len


def bits_per_byte(nats: float) -> float:
    """Cross-entropy per byte in nats, as F.cross_entropy gives it, in bits."""
    return nats / math.log(2)


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up over the first 5 % of the steps, then half a cosine down to a tenth of the peak."""
    warmup = max(1, settings.steps // 20)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def loss_of(run: Run, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte; inputs and targets (B, S)."""
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.settings.bf16):
        logits = run.model(inputs.to(run.device))
    return F.cross_entropy(logits.float().flatten(0, 1), targets.to(run.device).flatten())


def train_step(run: Run, corpus: Corpus) -> float:
    settings = run.settings
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, settings)
    loss = loss_of(run, *train_batch(corpus, run.step, settings.batch_size, settings.seq_len, settings.seed))
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(f"the loss of step {run.step} is {value}; a smaller --lr may help")
    run.optimizer.step()
    return value


def fit(
    run: Run,
    corpus: Corpus,
    until: int,
    save: Callable[[], None],
    save_every: int,
    should_stop: Callable[[], bool],
) -> None:
    """Train up to step `until`, or until `should_stop()` after a step; save every few steps and at the end."""
    run.model.train()
    average = bits_per_byte(run.losses[-1]) if run.losses else 8.0
    # A byte is a token; tqdm itself shows the rate, the elapsed and the remaining time.
    done, total = run.step * run.bytes_per_step, until * run.bytes_per_step
    with tqdm(total=total, initial=done, desc=run.name, unit="B", unit_scale=True) as bar:
        while run.step < until:
            start = time.perf_counter()
            loss = train_step(run, corpus)
            run.losses.append(loss)
            run.seconds += time.perf_counter() - start
            average = 0.9 * average + 0.1 * bits_per_byte(loss) if run.step > 1 else bits_per_byte(loss)
            bar.set_postfix(loss=f"{loss:.3f}", bits_per_byte=f"{average:.3f}", refresh=False)
            bar.update(run.bytes_per_step)
            if should_stop():
                break
            if run.step % save_every == 0:
                save()
    save()


@torch.no_grad()
def evaluate(run: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean bits per byte over the batches; every window starts from the empty state."""
    run.model.eval()
    nats, count = 0.0, 0
    for inputs, targets in batches:
        nats += loss_of(run, inputs, targets).item() * targets.numel()
        count += targets.numel()
    return bits_per_byte(nats / count)


def pack(run: Run) -> dict[str, Tensor]:
    """Every tensor that a bit-exact continuation needs."""
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        for key in OPTIMIZER_TENSORS if parameter in run.optimizer.state else ():
            tensors[f"optimizer.{key}.{name}"] = run.optimizer.state[parameter][key]
    tensors["rng.cpu"] = torch.get_rng_state()
    if run.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(run.device)
    tensors["losses"] = torch.tensor(run.losses, dtype=torch.float64)
    return tensors


def unpack(run: Run, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Put a checkpoint into a freshly built run. Raises CheckpointError if it belongs to another model."""
    try:
        run.losses = tensors["losses"].tolist()
        if meta["step"] != run.step:
            raise ValueError(f"step is {meta['step']!r} with {run.step} losses")
        run.seconds = float(meta["seconds"])
        run.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for name, parameter in run.model.named_parameters():
            if run.step and parameter.requires_grad:
                run.optimizer.state[parameter] = _moments(tensors, name, parameter)
        torch.set_rng_state(tensors["rng.cpu"])
        if run.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], run.device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the checkpoint does not fit this model: {reason}") from None


def _moments(tensors: dict[str, Tensor], name: str, parameter: Tensor) -> dict[str, Tensor]:
    step, mean, square = (tensors[f"optimizer.{key}.{name}"] for key in OPTIMIZER_TENSORS)
    if mean.shape != parameter.shape or square.shape != parameter.shape:
        raise ValueError(f"optimizer state of {name} has shape {tuple(mean.shape)}, not {tuple(parameter.shape)}")
    return {"step": step, "exp_avg": mean.to(parameter), "exp_avg_sq": square.to(parameter)}
