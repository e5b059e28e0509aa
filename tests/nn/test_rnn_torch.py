"""nn.LSTM, sLSTM and mLSTM inside torch: compile, export, autocast, copies, data parallel, functional calls."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from tests.support.ranks import run_ranks
from tests.support.rounding import assert_near_float64
from xlstm_cuda import backend as use_backend
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

modules = pytest.mark.parametrize(
    "module", [xnn.LSTM, xnn.sLSTM, xnn.mLSTM], ids=lambda module: module.__name__
)  # fmt: skip


def make(module: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return module(5, 6, 2, **{"bidirectional": True, "proj_size": 4, "num_heads": 2, **options})


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@modules
def test_compile(module: Any) -> None:
    ours, x = make(module, dropout=0.0), draw(7, 3, 5).requires_grad_()
    _, hx = ours(draw(2, 3, 5, seed=1))
    torch._dynamo.reset()
    call = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for arguments in ((x,), (x, type(hx)(*(s.detach() for s in hx)))):
        (actual, state), (expected, expected_state) = call(*arguments), ours(*arguments)
        assert type(state) is ours.state_type
        assert equal((actual, *state), (expected, *expected_state))
        grads = [torch.autograd.grad(y.square().sum(), [x, *ours.parameters()]) for y in (actual, expected)]
        assert equal(*grads)


@modules
def test_export(module: Any) -> None:
    ours = make(module).eval()
    dynamic = {
        "input": {0: torch.export.Dim("S", min=2, max=100)},
        "hx": ours.state_type(*[None] * len(ours.state_type._fields)),
    }
    with torch.no_grad():
        x, hx = draw(7, 3, 5), ours(draw(2, 3, 5, seed=1))[1]
        program = torch.export.export(ours, (x, hx), dynamic_shapes=dynamic)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for S in (7, 12):
            x = draw(S, 3, 5, seed=S)
            (actual, state), (expected, expected_state) = loaded(x, hx), ours(x, hx)
            assert type(state) is ours.state_type
            assert equal((actual, *state), (expected, *expected_state))


@modules
def test_copies(module: Any) -> None:
    ours, x = make(module), draw(7, 3, 5)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = make(module, seed=1)
    assert not torch.equal(loaded(x)[0], ours(x)[0])
    loaded.load_state_dict(ours.state_dict())
    others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False), loaded]
    for other in others:
        assert torch.equal(other(x)[0], ours(x)[0])
    parameters = {name: 2 * p for name, p in ours.named_parameters()}
    loaded.load_state_dict(parameters)
    assert torch.equal(torch.func.functional_call(ours, parameters, (x,))[0], loaded(x)[0])


@modules
def test_devices_and_backends(module: Any) -> None:
    ours, x = make(module), draw(7, 3, 5)
    with use_backend("reference"):
        assert_close_relative(ours(x)[0], make(module)(x)[0], 0.0)
        slow = ours(x)[0]
    assert_close_relative(ours(x)[0], slow, 1e-5)
    meta = make(module, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {("meta", torch.bfloat16)}
    filled = meta.to_empty(device="cpu")
    filled.reset_parameters()
    assert all(p.isfinite().all() for p in filled.parameters())


@modules
@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_low_precision(module: Any, packed: bool, proj_size: int) -> None:
    """bfloat16 weights, and autocast: output and h in bfloat16, the other parts of the state in float32."""
    ours = make(module, batch_first=True, proj_size=proj_size)
    x: Any = draw(3, 40, 5)
    x = pack_sequence(list(x), enforce_sorted=False) if packed else x
    expected_state = ours(x)[1]

    def results(module: Any) -> dict[str, Tensor]:
        output = module(x.to(torch.float64))[0]
        return {"output": output.data if packed else output}

    with torch.autocast("cpu", torch.bfloat16):
        automatic = ours(x)
    for output, state in (automatic, copy.deepcopy(ours).bfloat16()(x.to(torch.bfloat16))):
        assert (output.data if packed else output).dtype == torch.bfloat16
        assert all(s.dtype == (torch.bfloat16 if name == "h" else torch.float32) for name, s in state._asdict().items())
        assert_near_float64({"output": output.data if packed else output}, ours, results, torch.bfloat16)
    loss = (automatic[0].data if packed else automatic[0]).float().square().sum()
    grads = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x, expected_state)[1][0].isfinite().all()


def test_autocast_does_not_round_gate_biases() -> None:
    ours = xnn.mLSTM(5, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours.weight_if_l0.zero_()
        ours.bias_if_l0.fill_(5.01)
        m = ours(draw(1, 3, 5))[1].m  # of the first token: i
    assert torch.equal(m, torch.full((1, 3, 1), 5.01))


def rank_gradients(rank: int, folder: str) -> None:
    """One of two processes: its rows of the batch, gradients as DistributedDataParallel averages them."""
    for name in ("LSTM", "sLSTM", "mLSTM"):
        ours = make(getattr(xnn, name), seed=rank)  # rank 0's weights are sent to rank 1
        x = draw(7, 4, 5)[:, 2 * rank : 2 * rank + 2]
        parallel = nn.parallel.DistributedDataParallel(ours)
        parallel(x)[0].square().mean().backward()
        torch.save([p.grad for p in ours.parameters()], f"{folder}/{name}{rank}")


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    run_ranks(rank_gradients, str(tmp_path))
    for module in (xnn.LSTM, xnn.sLSTM, xnn.mLSTM):
        ours = make(module)
        expected = torch.autograd.grad(ours(draw(7, 4, 5))[0].square().mean(), list(ours.parameters()))
        first, second = (torch.load(tmp_path / f"{module.__name__}{rank}") for rank in range(2))
        assert equal(first, second)
        for actual, e in zip(first, expected, strict=True):
            assert_close_relative(actual, e, 1e-5)
