"""What a forward pass of mlstm keeps on CUDA kernels: how much, when, and that gradients do not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import _autograd, _ops
from xlstm_cuda._backend import resolve
from xlstm_cuda._kept import kept_bytes, worth_keeping
from xlstm_cuda.functional import mlstm, mlstm_step
from xlstm_cuda.testing import leaves, mlstm_inputs

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture
def ops(backend: str, device: str) -> Any:
    return _ops.library(resolve("mlstm", backend, torch.device(device), "mlstm_fwd"))


@pytest.fixture
def keeps(backend: str) -> bool:
    """The CPU's kernels keep nothing."""
    return backend != "cpu"


def random_like(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)


def every_argument(
    device: str, dtype: torch.dtype, packed: bool, dims: tuple[int, int] = (5, 11)
) -> tuple[list[Any], tuple[Any, ...]]:
    """The tensors of mlstm_fwd, and its options. Chunks of 64: two rows of three, or three sequences."""
    batch, sequences = (1, 3) if packed else (2, 2)
    inputs = mlstm_inputs(batch, 2, 150, *dims, dtype=dtype, state=True, state_rows=sequences, device=device)
    state = [s.contiguous() for s in inputs.pop("initial_state")]
    cu_seqlens = torch.tensor([0, 70, 70, 150], dtype=torch.int32, device=device) if packed else None
    reset = (random_like(torch.empty(batch, 150), seed=1) > 2).to(device)
    return [*inputs.values(), *state, cu_seqlens, reset], (False, True, 0.4, 1e-3, 64, False, True)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_do_not_depend_on_it(ops: Any, device: str, keeps: bool, dtype: torch.dtype, packed: bool) -> None:
    tensors, options = every_argument(device, dtype, packed)
    h, C, n, m, r, kept = ops.mlstm_fwd(*tensors, *options, True)
    again = ops.mlstm_fwd(*tensors, *options)
    assert again[5].numel() == 0 and (kept.numel() > 0) == keeps
    dh, dC, dn, dm = (random_like(x, seed=2 + index) for index, x in enumerate((h, C, n, m)))
    saved = [(C, n, kept), (None, None, None), (C, n, again[5])]
    with_it, without, empty = (ops.mlstm_bwd(dh, dC, dn, dm, *tensors, h, r, *each, *options) for each in saved)
    if keeps:  # what is kept is what is read
        spoiled = ops.mlstm_bwd(dh, dC, dn, dm, *tensors, h, r, C, n, torch.zeros_like(kept), *options)
        assert not any(torch.equal(*results) for results in zip(spoiled[:5], with_it[:5], strict=True))
    for results in zip((h, C, n, m, r), again, strict=False):
        assert torch.equal(*results)
    for one, two, three in zip(with_it, without, empty, strict=True):
        assert torch.equal(one, two) and torch.equal(two, three)


def test_states_of_the_walk(ops: Any, device: str) -> None:
    """On compute capability 9.0 a walk keeps them. It rounds other factors than the kernel that computes them again."""
    tensors, options = every_argument(device, torch.bfloat16, False, (8, 16))
    h, C, n, m, r, kept = ops.mlstm_fwd(*tensors, *options, True)
    grads = [random_like(x, seed=2 + index) for index, x in enumerate((h, C, n, m))]
    with_it, without = (
        ops.mlstm_bwd(*grads, *tensors, h, r, *saved, *options) for saved in ((C, n, kept), (None, None, None))
    )
    for one, two in zip(with_it, without, strict=True):
        assert (one - two).norm() <= 1e-2 * two.norm()


SIZES = [(1, 64), (1, 65), (2, 128), (2, 129), (1, 256), (1, 257), (3, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "seqlen"), SIZES)
def test_its_size_is_known_to_python(
    ops: Any, device: str, keeps: bool, batch: int, seqlen: int, dtype: torch.dtype
) -> None:
    for dims in ((3, 5), (64, 72)):
        inputs = mlstm_inputs(batch, 1, seqlen, *dims, dtype=dtype, device=device)
        cu_seqlens = torch.tensor([0, seqlen // 3, seqlen], dtype=torch.int32, device=device)
        for asked in (0, 64, 200, 256):
            for lengths, rows in ((None, batch), *([(cu_seqlens, 2)] if batch == 1 else [])):
                rest = (None, None, None, lengths, None, False, True, 1.0, 0.0, asked, False, True, True)
                *_, kept = ops.mlstm_fwd(*inputs.values(), *rest)
                expected = kept_bytes(inputs["q"], inputs["v"], rows, lengths is not None, asked)
                assert kept.numel() == (expected if keeps else 0)


def test_another_size_is_refused(ops: Any, device: str, keeps: bool) -> None:
    if not keeps:
        pytest.skip("there is nothing to refuse")
    tensors, options = every_argument(device, torch.float32, packed=False)
    h, C, n, _, r, kept = ops.mlstm_fwd(*tensors, *options, True)
    with pytest.raises(RuntimeError, match="mlstm: kept must have shape"):
        ops.mlstm_bwd(h, None, None, None, *tensors, h, r, C, n, kept[:-1].clone(), *options)
    with pytest.raises(RuntimeError, match="needs the final state's C and n"):
        ops.mlstm_bwd(h, None, None, None, *tensors, h, r, None, n, kept, *options)


@pytest.mark.parametrize(
    ("dims", "seqlen", "dtype", "expected"),
    [
        ((64, 64), 256, torch.bfloat16, True),
        ((64, 64), 255, torch.bfloat16, False),  # one chunk and a part: nothing to win
        ((128, 256), 256, torch.bfloat16, True),
        ((256, 512), 256, torch.bfloat16, True),
        ((512, 512), 256, torch.bfloat16, False),  # as many bytes as q, k, v and h
        ((256, 512), 256, torch.float16, False),  # whose states are float32
        ((256, 512), 256, torch.float32, True),
    ],
)
def test_where_it_is_worth_it(dims: tuple[int, int], seqlen: int, dtype: torch.dtype, expected: bool) -> None:
    q, v = (torch.empty(1, 1, seqlen, dim, dtype=dtype, device="meta") for dim in dims)
    assert worth_keeping(q, v, 0) is expected


def test_only_calls_with_gradients_keep(
    backend: str, device: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    keep = _autograd._keeps
    monkeypatch.setattr(_autograd, "_keeps", lambda *args: asked.append(keep(*args)) or asked[-1])
    inputs = mlstm_inputs(1, 1, 260, 8, 8, requires_grad=True, device=device)
    mlstm(**inputs, backend=backend)
    token = {name: x[:, :, :1] for name, x in inputs.items()}
    mlstm_step(**token, state=None, backend=backend)
    with torch.no_grad():
        mlstm(**inputs, backend=backend)
    assert asked == [keeps, False]


def test_memory_between_the_passes(backend: str, device: str, keeps: bool) -> None:
    """Inputs, h and r; where something is kept, that and the final state."""
    inputs = mlstm_inputs(1, 1, 260, 8, 8, requires_grad=True, device=device)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
        h = mlstm(**inputs, backend=backend)
    kept = 4 * (8 * 8 + 8) + kept_bytes(inputs["q"], inputs["v"], 1, False, 0) if keeps else 0
    assert sum(sizes) == sum(x.nbytes for x in leaves(inputs).values()) + h.nbytes + 4 * 260 + kept
