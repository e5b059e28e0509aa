"""bench/: the mLSTM's peers on a GPU, here with stand-ins for their packages; and what they are checked against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

import xlstm_cuda
from bench.calls import Builder, Call, Claim, Implementation
from bench.cases import SUITES, Case
from bench.check import Checker, WrongResult, affordable, copies
from bench.claims import WITHOUT_NORM_GRAD
from bench.implementations import IMPLEMENTATIONS
from bench.ops import OPS, Tensors
from bench.peers import sdpa
from bench.peers.fla import DECAYED
from bench.peers.sdpa import ATTENTION
from tests.support.bench_runs import run, stand_in

pytestmark = pytest.mark.usefixtures("quick")

SHAPE = {"B": 2, "H": 2, "S": 192, "Dqk": 16, "Dv": 16}
NARROW_V = {**SHAPE, "Dv": 8}


def checked(name: str, mode: str = "fwdbwd", shape: dict[str, int] = SHAPE, builder: Builder | None = None) -> set[str]:
    """What was compared. Raises WrongResult where an implementation differs from what it claims to compute."""
    impl = IMPLEMENTATIONS[name]
    return set(Checker(Case("mlstm", shape, mode)).errors(builder or impl.builders["mlstm"], impl.claim("mlstm", mode)))


# Stand-ins that compute the function of the real package, with its signature


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """mlstm_kernels; what was called, and with which chunk size."""
    called: list[tuple[str, int]] = []

    def get_mlstm_kernel(name: str) -> Any:
        def kernel(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *, chunk_size: int) -> Any:
            assert q.shape[2] % chunk_size == 0
            called.append((name, chunk_size))
            return xlstm_cuda.mlstm(q, k, v, i, f, norm_grad=False)

        return kernel

    stand_in(monkeypatch, "mlstm_kernels.torch", get_mlstm_kernel=get_mlstm_kernel)
    return called


def chunk_simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **unknown: Any) -> tuple[Tensor, None]:
    """Token by token, all tensors (B, S, H, ...)."""
    assert not unknown and all(x.is_contiguous() for x in (q, k, v))
    C, outputs = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        C = g[:, t].exp()[..., None, None] * C + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(q.shape[-1] ** -0.5 * (q[:, t, :, None] @ C).squeeze(2))
    return torch.stack(outputs, dim=1).to(q.dtype), None


# Each against what it claims to compute


@pytest.mark.parametrize("name, chunk", [("xl_chunk", 64), ("limit_chunk", 64)])
def test_triton_kernels_lack_the_normaliser_gradient(
    name: str, chunk: int, triton_kernels: list[tuple[str, int]]
) -> None:
    assert checked(f"mlstm_kernels-{name}", shape=NARROW_V) == {"h", "dq", "dk", "dv", "di", "df"}
    assert set(triton_kernels) == {(f"chunkwise--triton_{name}", chunk)}  # the largest that divides 192 of 128 or 64
    checker = Checker(Case("mlstm", NARROW_V, "fwdbwd"))
    with pytest.raises(WrongResult, match="relative error of dq"):
        checker.errors(IMPLEMENTATIONS[f"mlstm_kernels-{name}"].builders["mlstm"])
    assert checker.errors(IMPLEMENTATIONS["cpu"].builders["mlstm"])["dq"] < 1e-5  # after a claim, the op again


def test_ours_without_the_normaliser_gradient() -> None:
    impl = IMPLEMENTATIONS["cuda-norm-grad-off"]
    assert checked(impl.name, shape=NARROW_V) == {"h", "dq", "dk", "dv", "di", "df"}
    with pytest.raises(WrongResult, match="relative error of dq"):
        checked(impl.name, shape=NARROW_V, builder=IMPLEMENTATIONS["cpu"].builders["mlstm"])
    assert impl.claim("mlstm", "fwdbwd") is WITHOUT_NORM_GRAD
    assert impl.claim("mlstm", "fwd") is None and not impl.peer


def test_simple_gla_has_its_layout_and_its_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts: list[bool] = []

    def watched(*args: Tensor, **named: Any) -> tuple[Tensor, None]:
        h, state = chunk_simple_gla(*args, **named)
        if h.requires_grad:
            h.register_hook(lambda g: layouts.append(g.is_contiguous()))
        return h, state

    stand_in(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=watched)
    assert checked("fla-simple_gla", shape=NARROW_V) == {"h", "dq", "dk", "dv", "df"}
    assert layouts == [True]  # the gradient of h needs no copy
    assert checked("fla-simple_gla", "fwd", NARROW_V) == {"h"}

    def undecayed(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, None]:
        return chunk_simple_gla(q, k, v, 0 * g)

    stand_in(monkeypatch, "fla.ops.simple_gla", chunk_simple_gla=undecayed)
    with pytest.raises(WrongResult, match="relative error of h"):
        checked("fla-simple_gla", "fwd", NARROW_V)


def test_attention_is_causal_and_fused() -> None:
    assert checked("sdpa") == {"h", "dq", "dk", "dv"}

    def acausal(t: Tensors) -> Call:
        leaves = {name: t[name] for name in ("q", "k", "v")}
        return Call(lambda: (torch.nn.functional.scaled_dot_product_attention(*leaves.values()),), leaves)

    with pytest.raises(WrongResult, match="relative error of h"):
        checked("sdpa", builder=acausal)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="No available kernel"):
        checked("sdpa", shape=NARROW_V)  # the CPU's fused kernel has equal head dimensions only


@pytest.mark.parametrize("claim", [WITHOUT_NORM_GRAD, DECAYED, ATTENTION], ids=lambda claim: claim.note)
def test_claims_depend_on_their_leaves_alone(claim: Claim) -> None:
    t = copies(OPS["mlstm"].draw(SHAPE, torch.float64, "cpu"), "fwdbwd")
    gradients = torch.autograd.grad(claim.oracle(t)[0].sum(), list(t.values()), allow_unused=True)
    assert {name for name, g in zip(t, gradients, strict=True) if g is not None} == set(claim.leaves)


# Ways, and what cannot run


@pytest.mark.parametrize(
    "name, S, fwd, fwdbwd",
    [
        ("xl_chunk", 8192, [64, 128, 256], [64, 128]),
        ("xl_chunk", 384, [64, 128], [64, 128]),
        ("xl_chunk", 192, [64], [64]),
        ("limit_chunk", 8192, [64], [64]),
    ],
)
def test_chunk_sizes_of_the_triton_kernels(
    name: str, S: int, fwd: list[int], fwdbwd: list[int], triton_kernels: list[tuple[str, int]]
) -> None:
    impl, shape = IMPLEMENTATIONS[f"mlstm_kernels-{name}"], {**SHAPE, "S": S}
    for mode, sizes in (("fwd", fwd), ("fwdbwd", fwdbwd)):
        ways = impl.ways("mlstm", shape, mode)
        assert list(ways) == [f"chunk {size}" for size in sizes]
        for builder in ways.values():
            builder(OPS["mlstm"].draw({**shape, "B": 1, "S": min(S, 1024)}, torch.float32, "cpu")).run()
        assert [size for _, size in triton_kernels] == sizes
        triton_kernels.clear()
    assert impl.refuses("mlstm", shape) is None
    assert impl.refuses("mlstm", {**shape, "S": 96}) == "needs S divisible by 64"


@pytest.mark.parametrize(
    "Dqk, Dv, backends",
    [
        (128, 128, ["flash", "cudnn", "efficient"]),
        (256, 256, ["flash", "efficient"]),
        (64, 128, ["cudnn", "efficient"]),
        (128, 256, ["efficient"]),
        (512, 512, ["efficient"]),
    ],
)
def test_backends_of_attention(Dqk: int, Dv: int, backends: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ways = IMPLEMENTATIONS["sdpa"].ways("mlstm", {**SHAPE, "Dqk": Dqk, "Dv": Dv}, "fwd")
    assert list(ways) == backends
    asked: list[SDPBackend] = []
    plain = sdpa.sdpa_kernel

    def kernel(backend: SDPBackend) -> Any:
        asked.append(backend)
        return plain(SDPBackend.MATH)

    monkeypatch.setattr(sdpa, "sdpa_kernel", kernel)
    for builder in ways.values():
        builder(OPS["mlstm"].draw({**SHAPE, "S": 8}, torch.float32, "cpu")).run()
    assert [backend.name.partition("_")[0].lower() for backend in asked] == backends


def test_peers_run_on_a_gpu_with_their_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = [IMPLEMENTATIONS[name] for name in SUITES["paper-tfla"][0].impls or () if IMPLEMENTATIONS[name].peer]
    assert len(peers) == 4
    present = {"mlstm_kernels", "fla"}
    monkeypatch.setattr("bench.calls.find_spec", lambda name: name in present or None)
    for impl in peers:
        assert impl.why_not(OPS["mlstm"], SHAPE, "cpu") == "does not run on cpu"
        triton = impl.why_not(OPS["mlstm"], SHAPE, "cuda")
        expected = None if impl.name == "sdpa" else "needs the package triton, which is not installed"
        assert triton == expected


# A peer's wrong result


def without_normaliser_gradient(t: Tensors) -> Call:
    return Call(lambda: (xlstm_cuda.mlstm(**t, norm_grad=False),), t)


def endless(t: Tensors) -> Call:
    return Call(lambda: (xlstm_cuda.mlstm(**t) * torch.inf,), t)


def failing(t: Tensors) -> Call:
    raise RuntimeError("out of luck")


ONE = "run --op mlstm --impl cpu,other --shape B=1,H=1,S=20,Dqk=8,Dv=8"


def measured(
    impl: Implementation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> tuple[int, str, dict[str, Any]]:
    """Exit status, what was printed, and the entry of an implementation beside ours."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    monkeypatch.setitem(IMPLEMENTATIONS, "other", impl)
    status, printed = run(f"{ONE} --json {folder}/a.json", capsys)
    (record,) = json.loads((folder / "a.json").read_text(), parse_constant=refuse)["cases"]
    assert "median" in record["results"][0] and [file.name for file in folder.iterdir()] == ["a.json"]
    return status, printed, record["results"][1]


@pytest.mark.parametrize("builder, found", [(without_normaliser_gradient, "dq"), (endless, "h")])
def test_a_wrong_peer_is_timed_and_marked(
    builder: Builder, found: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    peer = Implementation("other", {"mlstm": builder}, peer=True)
    status, printed, entry = measured(peer, monkeypatch, capsys, tmp_path)
    assert status == 0 and entry["median"] > 0 and "error" not in entry
    assert f"| other (wrong: relative error of {found} " in printed and "not timed" not in printed
    assert f"wrong, of a peer: mlstm B=1,H=1,S=20,Dqk=8,Dv=8 float32 fwdbwd: other: {entry['wrong']}" in printed
    status, printed, entry = measured(replace(peer, peer=False), monkeypatch, capsys, tmp_path)
    assert status == 1 and "median" not in entry and "| other | wrong result, not timed |" in printed


def test_a_failing_peer_is_no_mistake_of_ours(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    peer = Implementation("other", {"mlstm": failing}, peer=True)
    status, printed, entry = measured(peer, monkeypatch, capsys, tmp_path)
    assert status == 0 and "median" not in entry and "| other | failed, not timed |" in printed
    assert "wrong, of a peer: " in printed and "RuntimeError: out of luck" in printed


def test_the_table_says_what_is_computed(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    claims = {"mlstm": WITHOUT_NORM_GRAD}
    other = Implementation("other", {"mlstm": without_normaliser_gradient}, claims=claims)
    status, printed, entry = measured(other, monkeypatch, capsys, tmp_path)
    assert status == 0 and "| other (without the normaliser's gradient) | " in printed
    assert entry["computes"] == WITHOUT_NORM_GRAD.note and entry["check"]["dq"] < 1e-5
    assert "| other | " in run(f"{ONE} --mode fwd", capsys)[1]  # outputs are the op's


# The suites


def test_paper_tfla_covers_dimensions_lengths_and_modes() -> None:
    cases = SUITES["paper-tfla"]
    assert {(case.op, case.dtype, case.device) for case in cases} == {("mlstm", "bfloat16", "cuda")}
    assert all(case.shape["B"] * case.shape["S"] == 65536 for case in cases)
    heads = [(64, 64, 64), (32, 128, 128), (16, 128, 256), (8, 256, 512), (8, 512, 512)]
    lengths, modes = (512, 2048, 8192, 32768, 65536), ("fwd", "fwdbwd")
    found = [(tuple(case.shape[key] for key in ("H", "Dqk", "Dv")), case.shape["S"], case.mode) for case in cases]
    assert sorted(found) == sorted((h, S, mode) for h in heads for S in lengths for mode in modes)
    names = {"cuda", "cuda-best-chunk", "cuda-norm-grad-off", "mlstm_kernels-xl_chunk", "mlstm_kernels-limit_chunk"}
    assert all(set(case.impls or ()) == {*names, "fla-simple_gla", "sdpa"} for case in cases)


def test_gpu_check_runs_a_part_of_paper_tfla() -> None:
    whole = {case.label: set(case.impls or ()) for case in SUITES["paper-tfla"]}
    assert 0 < len(SUITES["cuda-mlstm"]) <= 4
    for case in SUITES["cuda-mlstm"]:
        assert {"cuda", "cuda-norm-grad-off"} < set(case.impls or ()) <= whole[case.label]


def test_checks_of_long_sequences_cross_chunks() -> None:
    for case in SUITES["paper-tfla"]:
        shape = affordable(OPS["mlstm"], case.shape, case.mode)
        assert shape["S"] >= min(case.shape["S"], 1024)
