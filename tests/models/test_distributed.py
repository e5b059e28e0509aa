"""Data parallel training and FSDP2 with two processes, compared with one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from tests.support import tiny_models
from tests.support.ranks import run_ranks
from tests.support.tiny_models import assert_all_close, build, gradients, loss_of, tokens, units
from xlstm_cuda.testing import assert_close_relative

NAMES = list(tiny_models.MODELS)
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")


def train(model: Any, optimizer: Any, ids: Tensor, first: int = 0, clip: float = 1.0) -> list[Tensor]:
    """Two steps, each with a batch of its own."""
    losses = []
    for j in range(2):
        optimizer.zero_grad()
        loss = loss_of(model, ids.roll(first + j, 1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.detach())
    return losses


def adamw(model: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3, weight_decay=0.1)


def data_parallel(rank: int, name: str) -> dict[str, Any]:
    """Gradients of one batch over both processes, at once and accumulated over its rows."""
    parallel = nn.parallel.DistributedDataParallel(build(name, seed=rank))  # rank 0's weights are sent to rank 1
    own = tokens()[2 * rank : 2 * rank + 2]
    loss_of(parallel, own).backward()
    grads = {n: p.grad.clone() for n, p in parallel.module.named_parameters()}
    parallel.zero_grad()
    with parallel.no_sync():
        (loss_of(parallel, own[:1]) / 2).backward()
    (loss_of(parallel, own[1:]) / 2).backward()
    return {"grads": grads, "accumulated": {n: p.grad for n, p in parallel.module.named_parameters()}}


def sharded(name: str, **options: Any) -> Any:
    model = build(name)
    for unit in units(model):
        fully_shard(unit, **options)
    return fully_shard(model, **options)


def fully_sharded(rank: int, name: str) -> dict[str, Any]:
    """Two steps, the gathered checkpoint, two steps from it by a model of other weights; bfloat16."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    own = tokens()[2 * rank : 2 * rank + 2]
    model = sharded(name)
    optimizer = adamw(model)
    losses = train(model, optimizer, own)
    assert all(p.to_local().numel() < p.numel() for p in model.parameters())
    gather = StateDictOptions(full_state_dict=True)
    state_dict, optimizer_state = get_state_dict(model, optimizer, options=gather)
    found = {"losses": losses, "state_dict": dict(state_dict)}

    again = sharded(name)
    with torch.no_grad():
        for p in again.parameters():
            p.fill_(0.5)
    second = adamw(again)
    set_state_dict(again, second, model_state_dict=state_dict, optim_state_dict=optimizer_state, options=gather)
    found["resumed"] = train(again, second, own, first=2)
    logits, state = again(own, return_state=True)
    found["carried"] = again(own[:, :3], state).detach()

    low = sharded(name, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    found["bfloat16"] = train(low, adamw(low), own)
    if name == "blocks":
        for method in ("prefill", "step"):
            register_fsdp_forward_method(again, method)
        register_fsdp_forward_method(again.xlstm_block_stack, "step")
        for unit in units(again):
            register_fsdp_forward_method(unit, "step")
        found["generated"] = again.generate(tokens()[:, :5], 4, temperature=0)
    return found


def sharded_by_layer(rank: int, name: str) -> dict[str, Any]:
    """Every module that holds weights is a unit: two steps of training; then `step`, of which FSDP was not told."""
    own = tokens()[2 * rank : 2 * rank + 2]
    model = build(name)
    for module in reversed(list(model.modules())):
        if module is not model and any(True for _ in module.parameters(recurse=False)):
            fully_shard(module)
    fully_shard(model)
    found: dict[str, Any] = {"losses": train(model, adamw(model), own)}
    assert all(p.to_local().numel() < p.numel() for p in model.parameters())
    if name == "blocks":
        with torch.no_grad():
            _, state = model.prefill(own[:, :5])
            logits, state = model.step(own[:, 5:6], state)
            found["stepped"] = torch.cat([logits, model.step(own[:, 6:], state)[0]], 1)
    return found


def rank_results(rank: int, folder: str) -> None:
    """All of it in one pair of processes: starting them costs seconds."""
    for name in NAMES:
        for check in (data_parallel, fully_sharded, sharded_by_layer):
            torch.save(check(rank, name), f"{folder}/{check.__name__} {name} {rank}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(rank_results, str(folder))
    return folder


def load(results: Path, check: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (torch.load(results / f"{check.__name__} {name} {rank}") for rank in range(2))
    return first, second


@pytest.mark.parametrize("name", NAMES)
def test_data_parallel(results: Path, name: str) -> None:
    model = build(name)
    expected = gradients(model, loss_of(model, tokens()))
    for found in load(results, data_parallel, name):
        assert_all_close(found["grads"], expected, 1e-5)
        assert_all_close(found["accumulated"], expected, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_fully_sharded(results: Path, name: str) -> None:
    model = build(name)
    optimizer = adamw(model)
    expected = train(model, optimizer, tokens())
    state_dict = {n: p.clone() for n, p in model.state_dict().items()}
    resumed = train(model, optimizer, tokens(), first=2)
    ranks = load(results, fully_sharded, name)
    for part, losses, tol in (("losses", expected, 1e-5), ("resumed", resumed, 1e-5), ("bfloat16", expected, 2e-2)):
        mean = torch.stack([torch.stack(found[part]) for found in ranks]).mean(0)
        assert_close_relative(mean, torch.stack(losses), tol, part)
    assert_all_close(ranks[0]["state_dict"], state_dict, 1e-5)
    with torch.no_grad():
        _, state = model(tokens(), return_state=True)
        logits = model(tokens()[:, :3], state)
    assert_close_relative(torch.cat([found["carried"] for found in ranks]), logits, 1e-5)
    if name == "blocks":
        generated = model.generate(tokens()[:, :5], 4, temperature=0)
        assert all(torch.equal(found["generated"], generated) for found in ranks)


@pytest.mark.parametrize("name", NAMES)
def test_sharded_by_layer(results: Path, name: str) -> None:
    model = build(name)
    expected = train(model, adamw(model), tokens())
    ranks = load(results, sharded_by_layer, name)
    assert_close_relative(torch.stack([torch.stack(r["losses"]) for r in ranks]).mean(0), torch.stack(expected), 1e-5)
    if name == "blocks":
        stepped = torch.cat([r["stepped"] for r in ranks])
        assert_close_relative(stepped, model(tokens())[:, 5:], 1e-5)
