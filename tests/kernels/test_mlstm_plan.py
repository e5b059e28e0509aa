"""Which CUDA kernels compute a call of the chunkwise mLSTM (csrc/cuda/mlstm_chunkwise/plan.h)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import variants
from tests.support.executor import EXECUTOR, PLAIN, needs_executor
from tests.support.mutants import simt_options
from xlstm_cuda import _ops, mlstm
from xlstm_cuda.testing import mlstm_inputs

pytestmark = [pytest.mark.simt, needs_executor]

READABLE = "q k v h dh dq dk dv"
KERNELS = ("states", "state_grads", "h", "dq", "dk", "dv")


class Device(NamedTuple):
    wgmma: bool
    multiprocessors: int
    shared_bytes: int


H200, A100, RTX = Device(True, 132, 227 << 10), Device(False, 108, 163 << 10), Device(False, 82, 99 << 10)


class Shape(NamedTuple):
    B: int
    H: int
    S: int
    Dqk: int
    Dv: int
    packed: int = 0


class Plan(NamedTuple):
    chunks: int
    walk: int | None  # segments
    grad_walks: tuple[int, int] | None  # segments of those with C and with dC
    by: dict[str, str]  # of each kernel
    segments: dict[str, int]


def planned(
    shape: Shape,
    product: str = "bf16",
    *,
    chunk_size: int = 0,
    tma: str = READABLE,
    device: Device = H200,
    request: str = "",
) -> Plan | None:
    lines = _ops.library(PLAIN).mlstm_plan(*shape, product, chunk_size, tma, *device, request).splitlines()
    words = {name: rest for name, *rest in map(str.split, lines)}
    if not words:
        return None
    return Plan(
        int(words["chunks"][0]),
        int(words["walk"][0]) if "walk" in words else None,
        (int(words["walk_C"][0]), int(words["walk_dC"][0])) if "walk_C" in words else None,
        {name: words[name][0] for name in KERNELS},
        {name: int(words[name][1]) for name in KERNELS[:2]},
    )


def plan(*args: object, **options: object) -> Plan:
    of_call = planned(*args, **options)  # type: ignore[arg-type]
    assert of_call is not None
    return of_call


LONG = Shape(8, 16, 8192, 128, 256)


def test_hopper_in_bfloat16() -> None:
    assert plan(LONG) == Plan(128, 1, (1, 1), dict.fromkeys(KERNELS, "wgmma"), {"states": 1, "state_grads": 1})


@pytest.mark.parametrize("product", ["tf32", "tf32x3", "f64"])
def test_other_products(product: str) -> None:
    assert plan(LONG, product) == Plan(128, None, None, dict.fromkeys(KERNELS, "mma"), {"states": 1, "state_grads": 1})


@pytest.mark.parametrize("device", [A100, RTX])
def test_other_devices(device: Device) -> None:
    of_call = plan(LONG, device=device)
    assert of_call.walk is of_call.grad_walks is None and set(of_call.by.values()) == {"mma"}


@pytest.mark.parametrize(
    ("missing", "walks", "by_mma"),
    [
        ("q", "", {"state_grads", "h", "dq", "dk", "dv"}),
        ("k", "", {"states", "h", "dq", "dk", "dv"}),
        ("v", "", {"states", "h", "dq", "dk"}),
        ("h", "backward", set()),
        ("dh", "forward", {"state_grads", "dq", "dk", "dv"}),
        ("dq", "forward", set()),
        ("dk", "forward", set()),
        ("dv", "forward", set()),
    ],
)
def test_tensors_that_tma_cannot_read(missing: str, walks: str, by_mma: set[str]) -> None:
    of_call = plan(LONG, tma=" ".join(name for name in READABLE.split() if name != missing))
    assert (of_call.walk is not None) == (walks == "forward")
    assert (of_call.grad_walks is not None) == (walks == "backward")
    assert {name for name, by in of_call.by.items() if by == "mma"} == by_mma


@pytest.mark.parametrize(
    ("Dqk", "Dv", "walk", "grad_walks", "by_mma"),
    [
        (64, 64, True, True, {"states", "state_grads"}),  # one of two warpgroups would have no rows
        (65, 8, True, False, set()),  # dq and dk have rows of whole pieces of 16 bytes
        (256, 256, True, True, set()),
        (256, 512, True, False, set()),  # a row of C does not fit the registers
        (264, 512, False, False, set()),
        (264, 256, False, False, set()),  # dv: nor a column
        (512, 512, False, False, set()),
        (520, 512, False, False, {"h", "dv"}),  # whose contracted dimension is Dqk
        (128, 520, True, False, {"dq", "dk"}),
        (128, 12, False, False, {"h", "dq", "dk", "dv"}),  # rows of states begin at no multiples of 16 bytes
    ],
)
def test_head_dims(Dqk: int, Dv: int, walk: bool, grad_walks: bool, by_mma: set[str]) -> None:
    of_call = plan(LONG._replace(Dqk=Dqk, Dv=Dv))
    assert (of_call.walk is not None) == walk and (of_call.grad_walks is not None) == grad_walks
    assert {name for name, by in of_call.by.items() if by == "mma"} == by_mma


@pytest.mark.parametrize(
    ("asked", "S", "chunks"),
    [
        (0, 8192, 128), (0, 65, 128), (0, 64, 64), (0, 1, 64), (0, 0, 64), (64, 8192, 64), (100, 8192, 64),
        (200, 8192, 128), (256, 8192, 256), (256, 129, 256), (256, 128, 128), (1000, 8192, 256), (1, 8192, 64),
    ],
)  # fmt: skip
def test_chunks(asked: int, S: int, chunks: int) -> None:
    assert plan(LONG._replace(S=S), chunk_size=asked).chunks == chunks


def test_outputs_of_short_chunks() -> None:
    """With 64 tokens one of two warpgroups would have no rows."""
    of_call = plan(LONG, chunk_size=64)
    assert of_call.walk == 1 and of_call.by["dq"] == "mma" and of_call.by["states"] == "wgmma"


@pytest.mark.parametrize(
    ("device", "shape", "segments"),
    [
        (H200, (1, 1, 320, 8, 8), 1),  # five chunks
        (H200, (1, 1, 384, 8, 8), 3),  # six: two in each segment
        (H200, (1, 1, 1100, 8, 8), 9),
        (H200, (1, 1, 2200, 8, 8), 12),  # 35: three in each, as with 16 segments
        (H200, (1, 1, 3072, 8, 8), 16),  # never more
        (H200._replace(multiprocessors=110), (1, 22, 640, 65, 8), 5),  # 44 blocks of 220, ten chunks
        (H200._replace(multiprocessors=65), (1, 22, 640, 65, 8), 1),  # of 130: two segments would win nothing
        (H200._replace(multiprocessors=10), (1, 2, 1100, 8, 130), 5),  # 4 of 20
        (Device(True, 20, 99 << 10), (1, 2, 1100, 8, 130), 5),  # one on each multiprocessor
        (H200._replace(multiprocessors=0), (1, 1, 1100, 8, 8), 1),  # a device that does not say it
    ],
)
def test_segments_of_states(device: Device, shape: tuple[int, ...], segments: int) -> None:
    of_call = plan(Shape(*shape), "tf32", chunk_size=64, device=device)
    assert set(of_call.segments.values()) == {segments}


def test_segments_of_packed_sequences() -> None:
    """By their mean length."""
    for S, packed, segments in ((640, 10, 1), (2000, 2, 8)):
        of_call = plan(Shape(1, 1, S, 8, 8, packed), "tf32", chunk_size=64)
        assert set(of_call.segments.values()) == {segments}


@pytest.mark.parametrize(
    ("shape", "segments"),
    [
        (Shape(1, 16, 65536, 128, 256), 4),  # two blocks a head, one on each multiprocessor
        (Shape(1, 8, 65536, 256, 512), 4),  # four blocks a head
        (Shape(1, 8, 65536, 64, 64), 16),  # two on a multiprocessor
        (Shape(2, 64, 32768, 64, 64), 1),
    ],
)
def test_segments_of_the_walk(shape: Shape, segments: int) -> None:
    assert plan(shape).walk == segments


def test_segments_of_the_walks_of_gradients() -> None:
    """dq and dk share out rows of C, dv its columns: (128, 256) has one block a head and two. dk and dv share what
    their segments make of an empty state."""
    assert plan(Shape(1, 16, 65536, 128, 256)).grad_walks == (8, 8)
    assert plan(Shape(1, 16, 65536, 256, 128)).grad_walks == (4, 8)
    assert plan(Shape(1, 8, 65536, 64, 64)).grad_walks == (16, 16)
    assert plan(Shape(2, 64, 32768, 64, 64)).grad_walks == (1, 1)


def test_requests() -> None:
    of_call = plan(LONG, request="passes")
    assert of_call.walk is of_call.grad_walks is None
    of_call = plan(LONG, request="walk segments=5")
    assert of_call.walk == 5 and of_call.grad_walks == (5, 5)
    assert plan(LONG, request="segments=99").segments == {"states": 16, "state_grads": 16}
    of_call = plan(LONG, request="mma")
    assert of_call.walk is of_call.grad_walks is None and set(of_call.by.values()) == {"mma"}
    of_call = plan(LONG._replace(Dqk=64, Dv=64), chunk_size=64, request="passes wgmma")
    assert of_call.walk is None and set(of_call.by.values()) == {"wgmma"}


@pytest.mark.parametrize("request_", ["walk", "wgmma"])
def test_requests_that_cannot_be_met(request_: str) -> None:
    assert planned(LONG, device=A100, request=request_) is None
    assert planned(LONG, "tf32", request=request_) is None


def test_unknown_words() -> None:
    for words in ("fast", "segments=", "segments=x", "segments=12345678", "walk walks"):
        with pytest.raises(RuntimeError, match="words are walk, passes"):
            _ops.library(PLAIN).mlstm_variant(words)


small = st.integers(0, 3)
dims = st.integers(1, 600)


@given(
    shape=st.builds(Shape, small, small, st.integers(0, 5000), dims, dims, small),
    product=st.sampled_from(["bf16", "tf32", "tf32x3", "f64"]),
    chunk_size=st.integers(0, 300),
    tma=st.sets(st.sampled_from(READABLE.split())),
    device=st.builds(Device, st.booleans(), st.integers(0, 200), st.sampled_from([99 << 10, 163 << 10, 227 << 10])),
    walk=st.sampled_from(["", "walk ", "passes "]),
    by=st.sampled_from(["", "mma", "wgmma"]),
)
def test_every_plan_is_one_that_kernels_can_run(
    shape: Shape, product: str, chunk_size: int, tma: set[str], device: Device, walk: str, by: str
) -> None:
    if shape.packed:
        shape = shape._replace(B=1)
    of_call = planned(shape, product, chunk_size=chunk_size, tma=" ".join(tma), device=device, request=walk + by)
    if of_call is None:
        assert walk == "walk " or by == "wgmma"
        return
    assert of_call.chunks in (64, 128, 256)
    assert all(1 <= n <= 16 for n in of_call.segments.values())
    hopper = device.wgmma and product == "bf16" and shape.B * shape.H * shape.S > 0 and device.shared_bytes > 200 << 10
    if of_call.walk is not None:
        assert hopper and {"q", "k", "v", "h"} <= tma and shape.Dqk <= 256 and shape.Dv % 8 == 0
    if of_call.grad_walks is not None:
        assert hopper and {"q", "k", "v", "dh", "dq", "dk", "dv"} <= tma
        assert max(shape.Dqk, shape.Dv) <= 256 and shape.Dqk % 8 == shape.Dv % 8 == 0
        assert all(1 <= n <= 16 for n in of_call.grad_walks)
    used = {"states": "k v", "state_grads": "q dh", "h": "q k v", "dq": "q k v dh", "dk": "q k v dh", "dv": "q k dh"}
    for name, read in used.items():
        if of_call.by[name] == "wgmma":
            assert device.wgmma and product == "bf16" and shape.S > 0 and set(read.split()) <= tma
    if by and of_call.walk is of_call.grad_walks is None:
        assert set(of_call.by.values()) == {by}


# ---- what calls do ----


def requested(words: str) -> AbstractContextManager[None]:
    return variants.requested(_ops.library(PLAIN).mlstm_variant, words)


def launched() -> set[str]:
    """The kernels with products that ran since the last "forget"."""
    lines = _ops.library(PLAIN).simt_shared_memory().splitlines()
    return {line.split("\t")[0] for line in lines} - {"mlstm gates", "mlstm normaliser", "mlstm gate_grads"}


@pytest.mark.parametrize(
    ("words", "kernels"),
    [
        ("", {"mlstm walk"}),
        ("walk segments=2", {"mlstm walk", "mlstm states wgmma"}),
        ("passes", {"mlstm states wgmma", "mlstm outputs wgmma"}),
        ("passes mma", {"mlstm states", "mlstm outputs"}),
    ],
)
def test_calls_run_what_is_asked_for(words: str, kernels: set[str]) -> None:
    inputs = mlstm_inputs(1, 1, 300, 72, 72, dtype=torch.bfloat16)
    ops = _ops.library(PLAIN)
    expected = mlstm(**inputs, backend=EXECUTOR)
    with requested(words):
        ops.simt_set("forget", "launches")
        h = mlstm(**inputs, backend=EXECUTOR)
    assert launched() == kernels
    assert isinstance(h, torch.Tensor) and isinstance(expected, torch.Tensor)
    assert (h - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("words", "kernels"),
    [
        ("", {"mlstm walk", "mlstm walk grads"}),
        ("walk segments=2", {"mlstm walk", "mlstm states wgmma", "mlstm walk grads"}),
        ("passes wgmma", {"mlstm states wgmma", "mlstm outputs wgmma"}),
        ("passes mma", {"mlstm states", "mlstm outputs"}),
    ],
)
def test_both_passes_run_what_is_asked_for(words: str, kernels: set[str]) -> None:
    inputs = mlstm_inputs(1, 1, 300, 72, 72, dtype=torch.bfloat16, requires_grad=True)
    with requested(words):
        _ops.library(PLAIN).simt_set("forget", "launches")
        h = mlstm(**inputs, backend=EXECUTOR)
        assert isinstance(h, torch.Tensor)
        h.sum().backward()
    assert launched() == kernels


@pytest.mark.parametrize(("dtype", "capability"), [(torch.float32, 90), (torch.bfloat16, 80)], ids=str)
def test_a_call_that_cannot_run_it_fails(dtype: torch.dtype, capability: int) -> None:
    inputs = mlstm_inputs(1, 1, 9, 16, 16, dtype=dtype)
    refused = pytest.raises(RuntimeError, match="CUDA error 1")
    with simt_options(PLAIN, compute_capability=capability), requested("walk"), refused:
        mlstm(**inputs, backend=EXECUTOR)
