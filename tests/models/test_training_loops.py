"""Habits of training loops, with both block kinds and with LSTM, sLSTM and mLSTM modules, in one process."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tests.support import tiny_models
from tests.support.rounding import assert_near_float64
from tests.support.tiny_models import assert_all_close, build, gradients, loss_of, tokens, units
from xlstm_cuda.models import xLSTMLMModel
from xlstm_cuda.testing import assert_close_relative, relative_error

models = pytest.mark.parametrize("name", tiny_models.MODELS)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copied(parameters: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters}


def detached(state: Any) -> Any:
    """As in PyTorch's examples: plain tuples."""
    return state.detach() if isinstance(state, Tensor) else tuple(detached(s) for s in state)


@models
def test_gradient_accumulation(name: str) -> None:
    """Micro-batches of one row add up to the large batch, clipped by the same norm."""
    model, ids = build(name, torch.float64), tokens()
    expected = gradients(model, loss_of(model, ids))
    for row in ids.split(1):
        (loss_of(model, row) / len(ids)).backward()
    assert_all_close({n: p.grad for n, p in model.named_parameters()}, expected, 1e-6)  # the loss is float32
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert_close_relative(nn.utils.clip_grad_norm_(model.parameters(), 0.1 * norm.item()), norm, 1e-6)
    assert_all_close({n: p.grad for n, p in model.named_parameters()}, {n: 0.1 * g for n, g in expected.items()}, 1e-5)


def by_hand(model: Any) -> None:
    for unit in units(model):
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)


def wrapped(model: Any) -> None:
    apply_activation_checkpointing(model, check_fn=lambda module: any(module is unit for unit in units(model)))


def selective(model: Any) -> None:
    """What the kernels return is kept, everything else computed again."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        ours = str(op).startswith("xlstm_cuda.")
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    context_fn = partial(create_selective_checkpoint_contexts, policy)
    for unit in units(model):
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False, context_fn=context_fn)


class Forwards(TorchDispatchMode):
    """Counts the scans that run forward, one of a block."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mlstm_fwd" in str(func) or "recurrent_fwd" in str(func)
        return func(*args, **(kwargs or {}))


@models
@pytest.mark.parametrize(("apply", "runs"), [(by_hand, 2), (wrapped, 2), (selective, 1)])
def test_activation_checkpointing(name: str, apply: Any, runs: int) -> None:
    """The same gradients, bit by bit, with dropout."""
    results, counts = [], []
    for change in (lambda model: None, apply):
        model, ids = build(name, dropout=0.2), tokens()
        state_dict = copied(model.state_dict().items())
        change(model)
        assert equal(model.state_dict(), state_dict)
        torch.manual_seed(5)
        with Forwards() as forwards:
            grads = gradients(model, loss_of(model, ids))
        results.append({n.replace("_checkpoint_wrapped_module.", ""): g for n, g in grads.items()})
        counts.append(forwards.count)
    assert equal(*results)
    assert counts == [len(units(model)), runs * len(units(model))]


@models
def test_compiled_units(name: str) -> None:
    """Every block as one graph, forward and backward, from a state to a state."""
    model, ids = build(name), tokens()
    start = detached(model(ids[:, :4], return_state=True)[1])

    def results() -> tuple[Tensor, dict[str, Tensor]]:
        logits, state = model(ids, start, return_state=True)
        loss = logits.square().mean() + sum(s.square().mean() for s in tree_leaves(state))
        return logits, gradients(model, loss)

    expected, expected_grads = results()
    torch._dynamo.reset()
    for unit in units(model):
        unit.compile(fullgraph=True, backend="aot_eager")
    actual, grads = results()
    assert_close_relative(actual, expected, 1e-6)
    assert_all_close(grads, expected_grads, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_compiled_by_inductor(index: int) -> None:
    block, x = units(build("blocks"))[index], torch.randn(2, 9, tiny_models.DIM)
    expected = block(x)
    expected_grads = gradients(block, expected.square().sum())
    torch._dynamo.reset()
    actual = torch.compile(block, fullgraph=True)(x)
    assert_close_relative(actual, expected, 1e-5)
    assert_all_close(gradients(block, actual.square().sum()), expected_grads, 1e-5)


@models
def test_bfloat16_autocast(name: str) -> None:
    model, ids = build(name), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        low = loss_of(model, ids)
    actual = gradients(model, low)
    assert all(g.dtype == torch.float32 for g in actual.values())
    assert not torch.equal(low, loss_of(model, ids)), "nothing was rounded"
    assert_near_float64({"loss": low, **actual}, model, partial(loss_and_gradients, ids=ids), torch.bfloat16)


def loss_and_gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    loss = loss_of(model, ids)
    return {"loss": loss, **gradients(model, loss)}


@models
def test_float16_and_gradient_scaler(name: str) -> None:
    """Unscaled gradients are those of the loss; a step that overflows is skipped and halves the scale."""
    model, ids = build(name), tokens()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def backward() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, ids)
        scaler.scale(loss).backward()
        return loss

    loss = backward()
    scaler.unscale_(optimizer)
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert_near_float64({"loss": loss, **grads}, model, partial(loss_and_gradients, ids=ids), torch.float16)
    before = copied(model.named_parameters())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**8
    stepped = {n: p - 0.1 * grads[n] for n, p in before.items()}
    assert_all_close(copied(model.named_parameters()), stepped, 1e-6)  # rounded once or twice

    before = copied(model.named_parameters())
    scaler.update(2.0**40)
    backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    assert equal(copied(model.named_parameters()), before)


@models
def test_truncated_backpropagation(name: str) -> None:
    """Windows with carried states: the losses of the whole, its gradient without detaching, each window's own with."""
    model, ids = build(name, torch.float64), tokens(length=17)

    def windows(carry: Any) -> list[Tensor]:
        state, losses = None, []
        for start in range(0, 16, 4):
            logits, state = model(ids[:, start : start + 4], state, return_state=True)
            target = ids[:, start + 1 : start + 5]
            losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()) / 4)
            state = carry(state)
        return losses

    logits = model(ids[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    whole = gradients(model, loss)
    attached, truncated = sum(windows(lambda state: state)), sum(windows(detached))
    assert_close_relative(attached, loss, 1e-12)
    assert_close_relative(truncated, loss, 1e-12)
    assert_all_close(gradients(model, attached), whole, 1e-10)

    expected = dict.fromkeys(whole, torch.zeros(()))
    for start in range(0, 16, 4):  # the state by a pass of its own
        with torch.no_grad():
            state = model(ids[:, :start], return_state=True)[1]
        logits = model(ids[:, start : start + 4], state)
        part = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start + 1 : start + 5].flatten()) / 4
        expected = {n: expected[n] + g for n, g in gradients(model, part).items()}
    actual = gradients(model, truncated)
    assert_all_close(actual, expected, 1e-10)
    assert relative_error(actual[next(iter(actual))], whole[next(iter(whole))]) > 1e-3, "nothing was cut off"


@models
def test_moving_average(name: str) -> None:
    model, ids = build(name), tokens()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    expected = copied(model.named_parameters())
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, ids).backward()
        optimizer.step()
        average.update_parameters(model)
        expected = {n: 0.9 * expected[n] + 0.1 * p for n, p in copied(model.named_parameters()).items()}
    assert_all_close(copied(average.module.named_parameters()), expected, 1e-6)
    other = build(name, seed=1)
    other.load_state_dict(expected)
    assert_close_relative(average(ids), other(ids), 1e-5)
    assert relative_error(average(ids), model(ids)) > 1e-3
    assert torch.equal(copy.deepcopy(model)(ids), model(ids))


def step(model: Any, optimizer: Any, schedule: Any, seed: int) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, tokens(seed=seed))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def trainer(name: str, seed: int = 0) -> tuple[Any, Any, Any]:
    model = build(name, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    return model, optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [2])


def reloaded(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@models
def test_resume(name: str) -> None:
    """Model, AdamW and schedule saved after three steps: the next three are those of the uninterrupted run."""
    run = trainer(name)
    losses = [step(*run, seed=j) for j in range(6)]
    first = trainer(name)
    again = [step(*first, seed=j) for j in range(3)]
    saved = reloaded([part.state_dict() for part in first])
    whole = reloaded(first[0], weights_only=False)
    assert equal(whole.state_dict(), first[0].state_dict())
    second = trainer(name, seed=1)
    for part, state_dict in zip(second, saved, strict=True):
        part.load_state_dict(state_dict)
    again += [step(*second, seed=j) for j in range(3, 6)]
    assert again == losses
    assert equal(second[0].state_dict(), run[0].state_dict())
    assert losses[3] != loss_of(first[0], tokens(seed=0)).item()


@models
def test_saved_states(name: str) -> None:
    """A state in the midst of a sequence: the types come back with weights_only, and it goes on."""
    model, ids = build(name), tokens()
    logits, _ = model(ids, return_state=True)
    state = model(ids[:, :5], return_state=True)[1]
    loaded = reloaded(state)
    assert [type(s) for s in loaded] == [type(s) for s in state]
    assert_close_relative(model(ids[:, 5:], loaded), logits[:, 5:], 1e-5)


@models
def test_frozen_layers(name: str) -> None:
    """The others' gradients stay what they were; below the lowest trained layer nothing is recorded."""
    model, ids = build(name), tokens()
    expected = gradients(model, loss_of(model, ids))
    frozen = units(model)[1].requires_grad_(False)
    loss_of(model, ids).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in frozen.parameters()) and len(trained) < len(expected)
    assert_all_close({n: p.grad for n, p in trained.items()}, {n: expected[n] for n in trained}, 1e-6)

    model.requires_grad_(False)
    units(model)[1].requires_grad_(True)
    seen = []
    units(model)[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    loss_of(model, ids).backward()
    assert seen == [False]
    name_of = {id(p): n for n, p in model.named_parameters()}
    own = {name_of[id(p)]: p.grad for p in frozen.parameters()}
    assert_all_close(own, {n: expected[n] for n in own}, 1e-6)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_parameter_groups(options: dict[str, bool]) -> None:
    """AdamW by groups: its first step by hand, with and without decay."""
    model = build("blocks")
    assert isinstance(model, xLSTMLMModel)
    decay, no_decay = model.get_weight_decay_optim_groups()
    groups = [{"params": decay, "weight_decay": 0.5}, {"params": no_decay, "weight_decay": 0.0}]
    before = copied(model.named_parameters())
    optimizer = torch.optim.AdamW(groups, lr=0.1, eps=1e-3, **options)
    loss_of(model, tokens()).backward()
    optimizer.step()
    shrunk = {id(p) for p in decay}
    expected = {
        n: before[n] * (0.95 if id(p) in shrunk else 1) - 0.1 * p.grad / (p.grad.abs() + 1e-3)
        for n, p in model.named_parameters()
    }
    assert_all_close(copied(model.named_parameters()), expected, 1e-5)
