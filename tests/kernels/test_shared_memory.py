"""Shared memory of every kernel launch, as the executor saw it, against the checked-in table.

After a change of a kernel: python -m tests.kernels.test_shared_memory writes csrc/cuda/shared_memory.json anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.test_recurrent_variants import only
from tests.support.executor import EXECUTOR, PLAIN, needs_executor
from tests.support.paths import ROOT
from xlstm_cuda import _ops, lstm_step, mlstm_step, multihead_norm_gate, slstm
from xlstm_cuda.testing import lstm_inputs, mlstm_inputs, slstm_inputs

pytestmark = pytest.mark.simt

TABLE = ROOT / "csrc" / "cuda" / "shared_memory.json"
EVERYWHERE = 99 << 10  # bytes that a block may have on every GPU from compute capability 8.0 on
HOPPER = 227 << 10  # on compute capability 9.0, for kernels that run nowhere else
ON_HOPPER = {"mlstm outputs wgmma", "mlstm states wgmma", "mlstm walk", "mlstm walk grads"}
WGMMA = 1
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}


def step(dtype: torch.dtype, tokens: int, C_dtype: torch.dtype | None = None) -> None:
    inputs = mlstm_inputs(1, 1, tokens, 8, 8, dtype=dtype, state=True)
    state = inputs.pop("initial_state")
    state = state._replace(C=state.C.to(C_dtype or state.C.dtype))
    mlstm_step(**inputs, state=state, inplace=True, backend=EXECUTOR)


def cell(dtype: torch.dtype, batch: int, columns: bool) -> None:
    inputs = lstm_inputs(batch, 1, 1, 16, dtype=dtype, state=True)
    R = inputs["R"].mT.contiguous().mT if columns else inputs["R"]
    lstm_step(inputs["x"][:, 0], R, inputs["b"], inputs["initial_state"], backend=EXECUTOR)


def weight_grad(dtype: torch.dtype, D: int, allow_tf32: bool) -> None:
    dx, h = torch.zeros(1, 3, 4, 1, D, dtype=dtype), torch.zeros(1, 3, 1, D, dtype=dtype)
    getattr(torch.ops, PLAIN).recurrent_weight_grad(dx, h, None, None, None, 0, allow_tf32, 0)


# Variant: head dimension by element bytes, for every number of units that a block may have.
SCANS = {
    "block": [(2, 64), (2, 128), (4, 64), (8, 64)],
    "cluster": [(2, 130), (2, 260), (4, 70), (4, 130)],
    "grid": [(2, 130), (2, 260), (2, 520), (4, 70), (4, 130), (4, 260)],
    "launch": [(2, 16), (4, 16), (8, 16)],
}


def scan(variant: str, dtype: torch.dtype, D: int) -> None:
    inputs = slstm_inputs(1, 1, 1, D, dtype=dtype, requires_grad=True)
    with only(EXECUTOR, variant):
        slstm(**inputs, backend=EXECUTOR).sum().backward()


def gates(double: bool) -> None:
    i = torch.zeros(1, 1, 9)
    getattr(torch.ops, PLAIN).mlstm_gates(i, i, None, None, None, False, 64, double)


def states(product: str, Dv: int) -> None:
    dtype = {"bf16": torch.bfloat16, "f64": torch.float64}.get(product, torch.float32)
    k, v, i = torch.zeros(1, 1, 9, 8, dtype=dtype), torch.zeros(1, 1, 9, Dv, dtype=dtype), torch.zeros(1, 1, 9)
    getattr(torch.ops, PLAIN).mlstm_states(k, v, i, i, *[None] * 13, False, 1.0, 64, _ops.PRODUCTS[product])


def wgmma_states(Dv: int) -> None:
    k, v, i = (torch.zeros(1, 1, 9, D, dtype=torch.bfloat16) for D in (72, Dv, 1))
    options = (False, 1.0, 64, _ops.PRODUCTS["bf16"], 1, WGMMA)
    getattr(torch.ops, PLAIN).mlstm_states(k, v, i[..., 0], i[..., 0], *[None] * 13, *options)


def walk(Dqk: int, Dv: int) -> None:
    k, v, i = (torch.zeros(1, 1, 9, D, dtype=torch.bfloat16) for D in (Dqk, Dv, 1))
    options = (False, True, 1.0, 0.0, 64, 1, True)
    getattr(torch.ops, PLAIN).mlstm_walk(k, k, v, i[..., 0], i[..., 0], *[None] * 5, *options)


def walk_grads(output: str, Dqk: int, Dv: int) -> None:
    k, v, i = (torch.zeros(1, 1, 9, D, dtype=torch.bfloat16) for D in (Dqk, Dv, 1))
    C, n, i = torch.zeros(1, 1, Dqk, Dv), torch.zeros(1, 1, Dqk), torch.zeros(1, 1, 9)
    states = (None, None, C[None].bfloat16(), n[None], C, n, None, None)
    getattr(torch.ops, PLAIN).mlstm_walk_grads(
        _ops.OUTPUTS[output], k, k, v, v, i, i, None, None, None, i, i, *states, False, 1.0, 64, 1
    )


def gate_grads(dtype: torch.dtype) -> None:
    i, row, dot = torch.zeros(1, 1, 9), torch.zeros(1, 1, 1, 9, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    getattr(torch.ops, PLAIN).mlstm_gate_grads(
        i, i, None, None, None, row, row, row[0], dot, None, None, i.clone(), i.clone(), False, 64
    )


def outputs(product: str, output: str) -> None:
    dtype = {"bf16": torch.bfloat16, "f64": torch.float64}.get(product, torch.float32)
    x, i = torch.zeros(1, 1, 9, 64, dtype=dtype), torch.zeros(1, 1, 9)
    per_token, n = torch.zeros(1, 1, 9), torch.zeros(1, 1, 1, 64)
    ops = getattr(torch.ops, PLAIN)
    options = (None, False, True, 1.0, 0.0, 64, True)
    state = torch.zeros(1, 1, 1, 64, 64, dtype=dtype)
    kind = _ops.OUTPUTS[output], _ops.PRODUCTS[product]
    ops.mlstm_outputs(*kind, x, x, x, i, i, None, None, None, state, n, per_token, per_token, *options)


def wgmma_outputs(output: str, Dqk: int, Dv: int) -> None:
    rows = {"h": (Dqk, Dqk, Dv), "dq": (Dv, Dv, Dqk), "dk": (Dv, Dv, Dqk), "dv": (Dqk, Dqk, Dv)}[output]
    X, Y, Z = (torch.zeros(1, 1, 128, D, dtype=torch.bfloat16) for D in rows)
    i, state, n = torch.zeros(1, 1, 128), torch.zeros(1, 1, 1, Dqk, Dv, dtype=X.dtype), torch.zeros(1, 1, 1, Dqk)
    options = (None, False, True, 1.0, 0.0, 128, True, WGMMA)
    kind = _ops.OUTPUTS[output], _ops.PRODUCTS["bf16"]
    getattr(torch.ops, PLAIN).mlstm_outputs(*kind, X, Y, Z, i, i, None, None, None, state, n, i, i, *options)


def norm_gate(dtype: torch.dtype, D: int) -> None:
    h = torch.zeros(1, 2, 1, D, dtype=dtype, requires_grad=True)
    multihead_norm_gate(h, backend=EXECUTOR).sum().backward()


CALLS: dict[str, Callable[[], Any]] = {
    **{f"mlstm_step {t} {n}": lambda d=d, n=n: step(d, n) for t, d in DTYPES.items() for n in (1, 16)},  # type: ignore[misc]
    **{f"mlstm_step C in bf16 {n}": lambda n=n: step(torch.float32, n, torch.bfloat16) for n in (1, 16)},  # type: ignore[misc]
    **{
        f"recurrent_step {t} {n} {'columns' if columns else 'rows'}": lambda d=d, n=n, c=columns: cell(d, n, c)  # type: ignore[misc]
        for t, d in DTYPES.items()
        for n in (1, 8)
        for columns in (False, True)
    },
    **{
        f"mlstm_outputs {product} {output}": lambda p=product, o=output: outputs(p, o)  # type: ignore[misc]
        for product in ("bf16", "tf32", "tf32x3", "f64")
        for output in ("h", "dq", "dk", "dv")
    },
    **{
        f"mlstm_outputs wgmma {output} {Dqk} {Dv}": lambda o=output, Dqk=Dqk, Dv=Dv: wgmma_outputs(o, Dqk, Dv)  # type: ignore[misc]
        for output in ("h", "dq", "dk", "dv")
        for Dqk, Dv in ((64, 64), (128, 256), (256, 512), (512, 512))
    },
    **{
        f"recurrent_weight_grad {t} {D}{' tf32' if tf32 else ''}": lambda d=d, D=D, tf32=tf32: weight_grad(d, D, tf32)  # type: ignore[misc]
        for t, d in DTYPES.items()
        for D in (64, 65)
        for tf32 in ((False, True) if t == "f32" else (False,))
    },
    **{
        f"{variant} {t} {D}": lambda v=variant, d=dtype, D=D: scan(v, d, D)  # type: ignore[misc]
        for variant, sizes in SCANS.items()
        for size, D in sizes
        for t, dtype in DTYPES.items()
        if dtype.itemsize == size
    },
    "mlstm_gates float": lambda: gates(False),
    "mlstm_gates double": lambda: gates(True),
    **{
        f"mlstm_states {P} {n}": lambda P=P, n=n: states(P, n)  # type: ignore[misc]
        for P in ("bf16", "tf32", "tf32x3", "f64")
        for n in (64, 128)
    },
    **{f"mlstm_states wgmma {Dv}": lambda Dv=Dv: wgmma_states(Dv) for Dv in (128, 256)},  # type: ignore[misc]
    **{
        f"mlstm_walk {Dqk} {Dv}": lambda Dqk=Dqk, Dv=Dv: walk(Dqk, Dv)  # type: ignore[misc]
        for Dqk, Dv in ((64, 64), (64, 128), (128, 256), (256, 512))
    },
    **{
        f"mlstm_walk_grads {output} {Dqk} {Dv}": lambda o=output, Dqk=Dqk, Dv=Dv: walk_grads(o, Dqk, Dv)  # type: ignore[misc]
        for output in ("dq", "dk", "dv")
        for Dqk, Dv in ((64, 64), (128, 128), (256, 256))
    },
    "mlstm_walk_grads dv 64 128": lambda: walk_grads("dv", 64, 128),
    "mlstm_gate_grads float": lambda: gate_grads(torch.float32),
    "mlstm_gate_grads double": lambda: gate_grads(torch.float64),
    "multihead_norm_gate in registers": lambda: norm_gate(torch.float32, 64),
    "multihead_norm_gate f32": lambda: norm_gate(torch.float32, 2100),
    "multihead_norm_gate f64": lambda: norm_gate(torch.float64, 64),
}


def measure(call: Callable[[], Any]) -> dict[str, int]:
    """Bytes of each kernel that the call launches."""
    ops = _ops.library(PLAIN)
    ops.simt_set("forget", "launches")
    call()
    return {name: int(size) for name, size in (line.split("\t") for line in ops.simt_shared_memory().splitlines())}


@needs_executor
@pytest.mark.parametrize("name", CALLS)
def test_shared_memory(name: str) -> None:
    table = json.loads(TABLE.read_text())
    used = measure(CALLS[name])
    assert used and used == table[name]
    assert all(size <= (HOPPER if kernel in ON_HOPPER else EVERYWHERE) for kernel, size in used.items())


def test_table_has_no_other_calls() -> None:
    assert set(json.loads(TABLE.read_text())) == set(CALLS)


if __name__ == "__main__":
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(measure(call))}" for name, call in CALLS.items())
    TABLE.write_text(f"{{\n{rows}\n}}\n")
