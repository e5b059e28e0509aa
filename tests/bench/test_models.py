"""bench/models.py, bench/shares.py: whole models, ours and those of others, and where their time goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import models, shares
from bench.calls import Call
from bench.cases import Case, UsageError, parse_shape
from bench.check import Checker, WrongResult, affordable, copies, runner
from bench.implementations import IMPLEMENTATIONS
from bench.models import MODEL_OPS, lm_shape, slstm_positions
from bench.op import Shape, Tensors
from bench.ops import OPS
from bench.peers import transformer
from tests.support.bench_runs import run

pytestmark = pytest.mark.usefixtures("quick")

SHAPES: dict[str, Shape] = {
    "lm": {"B": 2, "S": 9, "D": 32, "M": 1, "N": 1},
    "large_prefill": {"B": 2, "S": 9, "D": 64, "L": 1},
    "large_step": {"B": 2, "D": 64, "L": 1},
    "large_generate": {"B": 2, "S": 3, "T": 3, "D": 64, "L": 1},
}


def runnable() -> Iterator[Any]:
    for op, shape in SHAPES.items():
        for name, impl in IMPLEMENTATIONS.items():
            if op in impl.builders and "cpu" in impl.devices and name != "reference-compiled":
                yield pytest.param(op, name, shape, id=f"{op}-{name}")


@pytest.mark.parametrize("op, name, shape", list(runnable()))
def test_models_agree_with_float64(op: str, name: str, shape: Shape) -> None:
    impl = IMPLEMENTATIONS[name]
    if (reason := impl.why_not(OPS[op], shape, "cpu")) is not None:
        assert "which is not installed" in reason
        pytest.skip(reason)
    if name.startswith("transformers"):
        shape = {**shape, "D": 256}  # its cache has head dimensions in multiples of 64
    for mode in OPS[op].modes:
        checker, claim = Checker(Case(op, shape, mode)), impl.claim(op, mode)
        errors = checker.errors(impl.builders[op], claim)
        assert OPS[op].outputs[0] in errors
        weights = {f"d{name}" for name, x in checker.inputs.items() if x.is_floating_point()}
        assert set(errors) - {OPS[op].outputs[0]} == (weights if mode == "fwdbwd" and claim is None else set())


def test_there_are_ours_and_others_of_every_model() -> None:
    assert {op.name for op in MODEL_OPS} == set(SHAPES)
    for op in SHAPES:
        having = {name for name, impl in IMPLEMENTATIONS.items() if op in impl.builders}
        assert {"cpu", "cuda"} < having and having & {"xlstm", "xlstm-large"}


def test_another_model_is_no_right_result() -> None:
    def changed(t: Tensors) -> Call:
        return IMPLEMENTATIONS["cpu"].builders["lm"]({**t, "lm_head.weight": 1.001 * t["lm_head.weight"].detach()})

    with pytest.raises(WrongResult, match="relative error of logits"):
        Checker(Case("lm", SHAPES["lm"], "fwd")).errors(changed)


@pytest.mark.parametrize(
    "M, N, expected", [(7, 1, [1]), (3, 3, [1, 3, 5]), (6, 0, []), (0, 2, [0, 1]), (1, 1, [1]), (6, 2, [1, 5])]
)
def test_where_slstm_blocks_are(M: int, N: int, expected: list[int]) -> None:
    assert slstm_positions(M, N) == expected
    config = models.lm_config({"S": 3, "D": 32, "M": M, "N": N})
    assert config.slstm_at == expected and config.num_blocks == M + N


@pytest.mark.parametrize("M, N", [(2, 0), (0, 1), (1, 2)])
def test_tensors_say_their_shape(M: int, N: int) -> None:
    shape = {"B": 2, "S": 5, "D": 32, "M": M, "N": N}
    assert lm_shape(OPS["lm"].draw(shape, torch.float32, "cpu")) == shape


def test_checks_are_of_few_tokens() -> None:
    large = {"B": 8, "S": 256, "D": 32, "M": 1, "N": 1}
    assert affordable(OPS["lm"], large, "fwd") == {**large, "B": 2, "S": 80}
    assert affordable(OPS["lm"], SHAPES["lm"], "fwd") == SHAPES["lm"]


def test_no_parameter_is_zero() -> None:
    for op, shape in SHAPES.items():
        assert all(x.count_nonzero() > 0 for name, x in OPS[op].draw(shape, torch.float32, "cpu").items()), op


def test_blocks_of_a_kind_may_be_left_out() -> None:
    assert parse_shape("lm", "B=1,S=2,D=32,M=1,N=0")["N"] == 0
    with pytest.raises(UsageError, match="shape key N must be an integer >= 0, got '-1'"):
        parse_shape("lm", "B=1,S=2,D=32,M=1,N=-1")
    with pytest.raises(UsageError, match="shape key D must be a positive integer, got '0'"):
        parse_shape("lm", "B=1,S=2,D=0,M=1,N=0")


def test_work_and_traffic_of_a_decode_step() -> None:
    shape = SHAPES["large_step"]
    inputs = OPS["large_step"].draw(shape, torch.float32, "cpu")
    matrices = [x for name, x in inputs.items() if x.ndim == 2 and name.endswith("weight") and "embedding" not in name]
    states = [x for name, x in inputs.items() if name.startswith("state.")]
    logits = shape["B"] * (models.LARGE_VOCABULARY + shape["D"])
    nbytes = 4 * (sum(x.numel() for x in matrices) + 2 * sum(x.numel() for x in states) + logits)
    assert OPS["large_step"].bytes(shape, "step", torch.float32) == nbytes
    cell = 4 * models.HEADS * 8 * (16 + 1)  # head dimensions 8 and 16
    assert OPS["large_step"].work(shape, "step") == 2 * (2 * sum(x.numel() for x in matrices) + cell)


def test_a_transformer_of_equal_size() -> None:
    for width, blocks, vocabulary in ((256, 6, 512), (512, 4, 8192)):
        wanted = width * vocabulary + blocks * 9 * width**2 + 12345
        model = transformer.of_equal_size(wanted, vocabulary, width, blocks)
        found = sum(x.numel() for name, x in model.named_parameters() if x.ndim > 1 and "embedding" not in name)
        assert abs(found - wanted) <= blocks * 64 * width


def test_kinds_of_work() -> None:
    assert shares.kind_of("aten::addmm") == "matrix products"
    assert shares.kind_of("xlstm_cuda::mlstm_bwd") == "mLSTM"
    assert shares.kind_of("xlstm_cuda::recurrent_fwd") == "sLSTM and LSTM"
    assert shares.kind_of("xlstm_cuda::multihead_norm_gate_fwd").startswith("glue")
    assert shares.kind_of("aten::copy_") == "copies"
    assert shares.kind_of("aten::mul") == shares.ELEMENTWISE


def test_shares_of_a_call() -> None:
    inputs = copies(OPS["lm"].draw(SHAPES["lm"], torch.float32, "cpu"), "fwdbwd")
    found = shares.shares(runner(IMPLEMENTATIONS["cpu"].builders["lm"](inputs), "fwdbwd"), "cpu", calls=2)
    assert sum(share for share, _ in found.values()) == pytest.approx(1)
    assert {"matrix products", "mLSTM", "sLSTM and LSTM"} < set(found)
    assert found["mLSTM"][1] >= 2  # forward and backward, in each call
    assert [share for share, _ in found.values()] == sorted((share for share, _ in found.values()), reverse=True)


def test_the_command_shows_shares(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run("shares --op large_step --shape B=1,D=64,L=1 --impl cpu,transformer --threads 1", capsys)
    assert status == 0 and "| matrix products |" in printed and "transformer: ops" in printed
    status, printed = run("shares --op large_step", capsys)
    assert status == 2 and "shares needs --op and --shape" in printed


def test_a_file_has_tokens_per_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, file = "B=2,D=64,L=1", tmp_path / "a.json"
    status, printed = run(f"run --op large_step --shape {shape} --impl cpu --threads 1 --json {file}", capsys)
    assert status == 0 and "tokens/s" in printed
    (entry,) = json.loads(file.read_text())["cases"][0]["results"]
    assert entry["tokens_per_second"] == pytest.approx(2 / entry["median"])
