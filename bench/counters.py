"""What the CUDA kernels execute, counted without a device: `python -m bench counters`.

The kernels run as their PTX on the host executor (backend="ptx", `make ptx`; docs/simt.md), which counts instructions
of warps and transactions of memory. There are no times in it. bench/counters.json holds the counts of the committed
kernels; `--check` fails where a kernel has become worse by more than 2 %, `--write` replaces the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xlstm_cuda import _ops
from xlstm_cuda.functional import lstm, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda.testing import gradients, lstm_inputs, mlstm_inputs, slstm_inputs

FILE = Path(__file__).with_name("counters.json")
BAND = 0.02  # worse by more than this needs a new table
BACKEND = "ptx"

Counts = dict[str, dict[str, int]]  # kernel: what is counted, and how often


def mlstm_of(
    dim_qk: int, dim_v: int, seqlen: int, chunk_size: int | None = None, backward: bool = True
) -> Callable[[], None]:
    """Forward and backward of one head, in chunks as long sequences have them."""

    def run() -> None:
        inputs = mlstm_inputs(1, 1, seqlen, dim_qk, dim_v, dtype=torch.bfloat16, requires_grad=backward)
        h = mlstm(**inputs, chunk_size=chunk_size, backend=BACKEND)
        if backward:
            gradients([h], inputs)

    return run


def _mlstm_step(dim_qk: int, dim_v: int) -> Callable[[], None]:
    def run() -> None:
        inputs = mlstm_inputs(4, 1, 1, dim_qk, dim_v, dtype=torch.bfloat16, state=True)
        state = inputs.pop("initial_state")
        tokens = {name: x[:, :, 0] for name, x in inputs.items()}
        mlstm_step(**tokens, state=state, backend=BACKEND)

    return run


def _recurrent(function: Any, draw: Any, variant: str, dim: int, batch: int = 16) -> Callable[[], None]:
    """Forward and backward of one head in whole batch tiles, by the kernel of this name."""

    def run() -> None:
        ops = _ops.library(_ops.PTX_NAMESPACE)
        ops.recurrent_variant(f"{variant} teams={batch // 8}")
        try:
            inputs = draw(batch, 8, 1, dim, dtype=torch.bfloat16, requires_grad=True)
            h = function(**inputs, backend=BACKEND)
            gradients([h], inputs)
        finally:
            ops.recurrent_variant("")

    return run


def _slstm_step(dim: int) -> Callable[[], None]:
    def run() -> None:
        inputs = slstm_inputs(4, 1, 4, dim, dtype=torch.bfloat16, state=True)
        slstm_step(inputs["x"][:, 0], inputs["R"], inputs["b"], inputs["initial_state"], backend=BACKEND)

    return run


# Head dimensions as in the published models; sequences as short as show the loop of a kernel several times.
CASES: dict[str, Callable[[], None]] = {
    "mlstm (64, 64), S = 256": mlstm_of(64, 64, 256),
    "mlstm (128, 256), S = 256": mlstm_of(128, 256, 256),
    "mlstm (256, 512), S = 128": mlstm_of(256, 512, 128),
    "mlstm_step (256, 512)": _mlstm_step(256, 512),
    "slstm 64, block": _recurrent(slstm, slstm_inputs, "block", 64),
    "slstm 128, block": _recurrent(slstm, slstm_inputs, "block", 128),
    "slstm 128, cluster": _recurrent(slstm, slstm_inputs, "cluster", 128),
    "slstm 256, cluster": _recurrent(slstm, slstm_inputs, "cluster", 256),
    "slstm 512, cluster": _recurrent(slstm, slstm_inputs, "cluster", 512),
    "slstm 256, grid": _recurrent(slstm, slstm_inputs, "grid units=64", 256),
    "slstm 512, grid": _recurrent(slstm, slstm_inputs, "grid", 512),
    "slstm 592, grid": _recurrent(slstm, slstm_inputs, "grid", 592, batch=8),  # 16 units; of 768 too many blocks to run
    "lstm 64, block": _recurrent(lstm, lstm_inputs, "block", 64),
    "slstm_step 64": _slstm_step(64),
}


def counted(run: Callable[[], None], **device: int) -> dict[str, Any]:
    """What the kernels of a call execute, as the executor gives it: csrc/simt/ptx/count.h. device: its options."""
    ops = _ops.library(_ops.PTX_NAMESPACE)
    for name, value in {**device, "counting": 1}.items():
        ops.simt_set(name, str(value))
    try:
        run()
        return dict(json.loads(ops.ptx_counters()))
    finally:
        ops.simt_set("defaults", "")


def summary(kernels: dict[str, Any]) -> Counts:
    """Of each kernel the numbers that are compared: all of them better when smaller."""
    result: Counts = {}
    for name, counts in sorted(kernels.items()):
        row = {"instructions": sum(counts["instructions"].values())}
        row |= {kind: n for kind, n in sorted(counts["instructions"].items())}
        for kind, cost in sorted(counts["traffic"].items()):
            row[f"{kind} requests"] = cost["requests"]
            row[f"{kind} wavefronts"] = cost["wavefronts"]
            row[f"{kind} least wavefronts"] = cost["least_wavefronts"]
            row[f"{kind} sectors"] = cost["sectors"]
            row[f"{kind} bytes"] = cost["bytes"]
        result[name] = {kind: n for kind, n in row.items() if n}
    return result


COMPARED = ("instructions", "wavefronts", "sectors")  # the last word of what may not grow


def worse(old: Counts, new: Counts, case: str) -> list[str]:
    """A line for each number of a case that grew by more than BAND, or that the old table does not have."""
    lines = [f"{case}: {name} is not in the table" for name in new.keys() - old.keys()]
    for name in new.keys() & old.keys():
        for kind in sorted(new[name]):
            if not kind.endswith(COMPARED) or "least" in kind:
                continue
            before, now = old[name].get(kind, 0), new[name][kind]
            if now > before * (1 + BAND):
                lines.append(f"{case}: {name}: {kind} {before} -> {now}")
    return lines


def table(case: str, counts: Counts) -> str:
    """The instructions and the traffic of the kernels of a case, in Markdown."""
    kinds = list(dict.fromkeys(kind for row in counts.values() for kind in row))
    lines = [
        f"### {case}",
        "",
        f"| warps execute | {' | '.join(counts)} |",
        f"| --- | {'---: | ' * len(counts)}".rstrip(),
    ]
    for kind in kinds:
        lines.append(f"| {kind} | {' | '.join(f'{row.get(kind, 0):,}' for row in counts.values())} |")
    tensor = {name: row["tensor"] for name, row in counts.items() if row.get("tensor")}
    if tensor:
        per = (f"{row['instructions'] / tensor[name]:.1f}" if name in tensor else "" for name, row in counts.items())
        lines.append(f"| instructions per mma | {' | '.join(per)} |")
    return "\n".join(lines) + "\n"


def read() -> dict[str, Counts]:
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {}


def write(cases: dict[str, Counts]) -> None:
    """A line for each kernel."""
    blocks = []
    for case, counts in cases.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in counts.items())
        blocks.append(f" {json.dumps(case)}: {{\n{rows}\n }}")
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
