"""bench/glue.py: what lies between the cells, beside the package xlstm; and models on the CUDA kernels of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xlstm_cuda
from bench import glue
from bench.calls import Call
from bench.cases import DTYPES, SUITES, Case
from bench.check import Checker, WrongResult, copies
from bench.implementations import IMPLEMENTATIONS
from bench.ops import OPS
from bench.peers import xlstm as peer
from tests.support.bench_runs import SHAPES, stand_in

pytestmark = pytest.mark.usefixtures("quick")

GLUE = tuple(glue.OPTIONS)


@pytest.mark.parametrize("op", GLUE)
def test_every_op_has_ours_the_reference_and_the_compiled_one(op: str) -> None:
    names = {name for name, impl in IMPLEMENTATIONS.items() if op in impl.builders}
    assert names > {"cpu", "cuda", "reference", "reference-compiled"} or op == "gated_activation"
    assert hasattr(xlstm_cuda, op) and OPS[op].modes == ("fwd", "fwdbwd")


@pytest.mark.parametrize("op", GLUE)
def test_traffic_and_gradients(op: str) -> None:
    for dtype in ("float32", "bfloat16"):
        inputs = OPS[op].draw(SHAPES[op], DTYPES[dtype], "cpu")
        (y,) = IMPLEMENTATIONS["cpu"].builders[op](inputs).run()
        assert y.dtype == DTYPES[dtype]
        expected = sum(x.nbytes for x in (*inputs.values(), y))
        assert OPS[op].bytes(SHAPES[op], "fwd", DTYPES[dtype]) == expected
        errors = Checker(Case(op, SHAPES[op], "fwdbwd", dtype)).errors(IMPLEMENTATIONS["cpu"].builders[op])
        assert set(errors) == {"y", *(f"d{name}" for name in inputs)}


def test_work_by_hand() -> None:
    assert OPS["causal_conv1d"].work({"B": 2, "S": 3, "F": 5, "K": 4}, "fwd") == 2 * 2 * 3 * 5 * 4
    assert OPS["headwise_linear"].work({"B": 2, "S": 3, "N": 5, "I": 4}, "fwdbwd") == 3 * 2 * 2 * 3 * 5 * 4 * 4
    assert OPS["soft_cap"].work(SHAPES["soft_cap"], "fwd") == 0  # elementwise


@pytest.mark.parametrize("op", GLUE)
def test_another_option_is_no_right_result(op: str) -> None:
    changed: dict[str, dict[str, Any]] = {
        "causal_conv1d": {"activation": None},
        "multihead_norm_gate": {"weight_offset": 0.0},
        "gated_activation": {"activation": "gelu"},
        "soft_cap": {"cap": 14.0},
    }
    scale = 1.0 if op in changed else 1.001
    options = glue.OPTIONS[op] | changed.get(op, {})

    def wrong(t: dict[str, torch.Tensor]) -> Call:
        return Call(lambda: (scale * getattr(xlstm_cuda, op)(**t, **options),), t)

    with pytest.raises(WrongResult, match="relative error of y"):
        Checker(Case(op, SHAPES[op], "fwd")).errors(wrong)


def test_the_suite_has_every_op_in_both_modes_and_dtypes() -> None:
    found = {(case.op, case.mode, case.dtype) for case in SUITES["glue"]}
    expected = {(op, mode, dtype) for op in GLUE for mode in ("fwd", "fwdbwd") for dtype in ("float32", "bfloat16")}
    assert found == expected and len(SUITES["glue"]) == len(expected)
    for case in SUITES["glue"]:
        assert all(case.op in IMPLEMENTATIONS[name].builders for name in case.impls or ())


# Models on a GPU


@pytest.mark.parametrize("name", ["xlstm-cuda", "xlstm-large-triton"])
def test_models_on_cuda_kernels_are_for_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    impl = IMPLEMENTATIONS[name]
    suite = [case for case in SUITES["cuda-model"] if name in (case.impls or ())]
    assert impl.peer and suite and {case.op for case in suite} <= set(impl.builders)
    for case in suite:
        assert impl.why_not(OPS[case.op], case.shape, "cpu") == "does not run on cpu"
    stand_in(monkeypatch, "triton")
    if (reason := impl.missing()) is None:
        assert impl.why_not(OPS[suite[0].op], suite[0].shape, "cuda") is None
    else:
        assert "which is not installed" in reason


def test_the_cuda_cells_of_xlstm_have_our_layout_of_the_weights() -> None:
    """A model without sLSTM blocks runs here; of its cell on a GPU the layout of the parameters is known here too."""
    pytest.importorskip("xlstm")
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    shape = {"B": 2, "S": 9, "D": 32, "M": 1, "N": 0}
    assert "logits" in Checker(Case("lm", shape, "fwdbwd")).errors(peer.lm_on_cuda)
    H, D = 4, 8
    theirs = sLSTMCell(sLSTMCellConfig(hidden_size=H * D, num_heads=H, backend="cuda"), skip_backend_init=True)
    ours = copies(OPS["lm"].draw({**shape, "M": 0, "N": 1}, torch.float32, "cpu"), "fwd")
    for name, x in theirs.named_parameters():
        (same,) = (value for key, value in ours.items() if key.endswith(f"slstm_cell.{name}"))
        assert x.numel() == same.numel(), name
    R = torch.randn(H, D, 4, D)
    assert torch.equal(theirs._recurrent_kernel_ext2int(R).flatten(), R.flatten())
    b = torch.randn(H, 4, D)
    assert torch.equal(theirs._bias_ext2int(b), b.flatten())


def test_triton_kernels_are_those_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options exist under these names, and the plain ones differ in the kernels alone."""
    assert {name for name, x in peer.LARGE_TRITON.items() if x != peer.LARGE_OPTIONS[name]} == {
        *("chunkwise_kernel", "sequence_kernel", "step_kernel")
    }
    pytest.importorskip("xlstm")
    pytest.importorskip("mlstm_kernels")
    from xlstm.xlstm_large.model import xLSTMLargeConfig

    config = xLSTMLargeConfig(embedding_dim=64, num_blocks=1, num_heads=4, vocab_size=8, **peer.LARGE_TRITON)
    assert config.chunkwise_kernel == "chunkwise--triton_xl_chunk" and config.step_kernel == "triton"
