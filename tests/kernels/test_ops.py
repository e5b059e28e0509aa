"""The schemas of the ops: no strings, numbers and names that are written elsewhere too, and refusals of raw calls."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.paths import ROOT
from xlstm_cuda import _checks, _ops
from xlstm_cuda.functional._mlstm import MlstmOptions
from xlstm_cuda.functional._recurrent import RecurrentOptions

NAMESPACES = [
    _ops.NAMESPACE,
    *(name for name in (_ops.SIMT_NAMESPACE, _ops.SIMT_RACE_NAMESPACE) if _ops.available(name)),
]


def schemas(namespace: str) -> list[torch.FunctionSchema]:
    """Of every op that is registered in a namespace."""
    _ops.library(namespace)
    return [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith(f"{namespace}::")]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_ops_on_tensors_take_no_strings(namespace: str) -> None:
    """torch's stable ABI never frees the copy that it makes of a string that an op is given."""
    on_tensors = [s for s in schemas(namespace) if any("Tensor" in str(argument.type) for argument in s.arguments)]
    assert {s.name.partition("::")[2] for s in on_tensors} >= set(_ops._FAKES)
    for schema in on_tensors:
        assert "str" not in [str(argument.type) for argument in schema.arguments], schema


@pytest.mark.parametrize(
    ("enum", "file", "numbers"),
    [
        ("Cell", "core/recurrent.h", _ops.CELLS),
        ("Product", "cuda/mlstm_chunkwise/product.h", _ops.PRODUCTS),
        ("OutputKind", "cuda/mlstm_chunkwise/outputs.h", _ops.OUTPUTS),
    ],
)
def test_numbers_are_those_of_the_kernels(enum: str, file: str, numbers: dict[str, int]) -> None:
    source = re.sub("//.*", "", (ROOT / "csrc" / file).read_text())
    (body,) = re.findall(rf"enum class {enum} {{([^}}]*)}}", source)
    given = [re.match(r"\s*(\w+)(?: = (\d+))?", item).groups() for item in body.split(",")]  # type: ignore[union-attr]
    assert {name: n if value is None else int(value) for n, (name, value) in enumerate(given)} == numbers


@pytest.mark.parametrize(
    ("name", "file", "limit"),
    [
        ("kMaxStepTokens", "core/mlstm_step.h", _checks.MAX_STEP),
        ("kMaxElements", "ops/checks.h", _checks.MAX_ELEMENTS),
    ],
)
def test_limits_are_those_of_the_ops(name: str, file: str, limit: int) -> None:
    source = (ROOT / "csrc" / file).read_text()
    ((value, power),) = re.findall(rf"constexpr int64_t {name} = (?:int64_t{{)?(\d+)}}?(?: << (\d+))?;", source)
    assert int(value) << int(power or 0) == limit


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("op", ["mlstm_fwd", "mlstm_bwd", "mlstm_step", "mlstm_step_", "mlstm_step_out_"])
def test_options_of_the_mlstm_have_one_order(namespace: str, op: str) -> None:
    """In the schema, in Python and in C++: they travel by their places."""
    (schema,) = [schema for schema in schemas(namespace) if schema.name == f"{namespace}::{op}"]
    arguments = [argument for argument in schema.arguments if argument.name != "keep"]
    options = [argument.name for argument in arguments][-len(MlstmOptions._fields) :]
    assert options == list(MlstmOptions._fields)
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    assert defaults == MlstmOptions._field_defaults
    source = re.sub("//.*", "", (ROOT / "csrc" / "core" / "mlstm_chunkwise.h").read_text())
    (body,) = re.findall(r"struct MlstmOptions {([^}]*)}", source)
    assert re.findall(r"(\w+) = ", body) == options


@pytest.mark.parametrize("op", ["recurrent_fwd", "recurrent_bwd"])
def test_options_of_the_recurrent_ops_have_one_order(op: str) -> None:
    schema = getattr(torch.ops.xlstm_cuda, op).default._schema
    names = [argument.name for argument in schema.arguments if argument.name != "save"]
    assert names[-len(RecurrentOptions._fields) :] == list(RecurrentOptions._fields)


INITIAL, RECURRENT_INITIAL = "C0 n0 m0", "h0 c0 n0 m0"
GATES, ROWS, CELL = "sigmoid_gate normalize scale eps", "lengths reset", "cell reversed_heads allow_tf32"
CONV = "x weight bias initial_state cu_seqlens reset"
NORM = "h weight bias gate skip skip_weight rms sigmoid eps weight_offset"
SAVED_NAMES = {
    "mlstm_fwd": f"q k v i f {INITIAL} cu_seqlens reset {GATES}",
    "mlstm_bwd": f"dh dC dn dm q k v i f {INITIAL} cu_seqlens reset h r CT nT kept {GATES}",
    "mlstm_step": f"q k v i f C n m {GATES}",
    "mlstm_step_": f"q k v i f C n m slots {GATES}",
    "mlstm_step_out_": f"q k v i f C n m next_C next_n next_m {GATES}",
    "recurrent_fwd": f"x R b {RECURRENT_INITIAL} {ROWS} {CELL} save",
    "recurrent_bwd": f"dh dhT dcT dnT dmT R h {RECURRENT_INITIAL} cT nT saved {ROWS} {CELL}",
    "recurrent_step": "x R b h c n m cell",
    "causal_conv1d_fwd": f"{CONV} silu",
    "causal_conv1d_bwd": f"dy dnext_state {CONV} silu",
    "causal_conv1d_step_": "x weight bias state silu",
    "multihead_norm_gate_fwd": NORM,
    "multihead_norm_gate_bwd": f"dy {NORM}",
    "headwise_linear_fwd": "x weight0 weight1 bias0 bias1",
    "headwise_linear_bwd": "dy0 dy1 x weight0 weight1",
    "gated_activation_fwd": "x gate activation",
    "gated_activation_bwd": "dy x gate activation",
    "soft_cap_fwd": "x cap",
    "soft_cap_bwd": "dy x cap",
}


def test_every_op_has_saved_names() -> None:
    assert SAVED_NAMES.keys() == _ops._FAKES.keys()


@pytest.mark.parametrize("op", SAVED_NAMES)
def test_programs_that_were_saved_find_their_arguments(op: str) -> None:
    """torch.export.save writes an op's arguments under their names, and load wants all that have no default."""
    arguments = getattr(torch.ops.xlstm_cuda, op).default._schema.arguments
    assert " ".join(argument.name for argument in arguments if not argument.has_default_value()) == SAVED_NAMES[op]


@pytest.mark.parametrize("cell", [-1, len(_ops.CELLS), 2**40])
def test_an_unknown_cell_is_refused(cell: int) -> None:
    ops, x, R = torch.ops.xlstm_cuda, torch.zeros(1, 2, 4, 1, 3), torch.zeros(4, 1, 3, 3)
    h, saved = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 5, 1, 3)
    state = h[:, 0]
    calls = [
        lambda: ops.recurrent_fwd(x, R, *[None] * 7, cell, 0, False, False),
        lambda: ops.recurrent_bwd(h, *[None] * 4, R, h, *[None] * 4, state, state, saved, None, None, cell, 0, False),
        lambda: ops.recurrent_step(x[:, 0], R, None, *[state] * 4, cell),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=f"cell must be from 0 to {len(_ops.CELLS) - 1}, got {cell}"):
            call()
