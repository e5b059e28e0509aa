"""The files of a run: NAME-seedN.json and NAME-seedN.png, each whole or not at all."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed

import matplotlib.pyplot as plt
import torch

import xlstm_cuda

from ..lm.checkpoint import CheckpointError, make_folder, write_atomically
from .models import parameter_count
from .task import Results, Task, Verdict
from .trainer import Run, check_interval


def stem(task: Task) -> str:
    """Of the files of a run."""
    return f"{task.name}-seed{task.seed}"


def of_model(task: Task, run: Run) -> Results:
    """The results of one model, with what every task records; scores: [training step, score]."""
    steps, every = task.options.steps, check_interval(task.options.steps)
    return {
        **task.results(run.model),
        "parameters": parameter_count(run.model),
        "steps": run.step,
        "train_seconds": round(run.seconds, 1),
        "scores": [[min((k + 1) * every, steps), round(score, 4)] for k, score in enumerate(run.scores)],
    }


def document(
    task: Task, command: str, seconds: int | None, results: Mapping[str, Results], verdict: Verdict
) -> dict[str, Any]:
    """seconds: of the whole run, None where it was resumed."""
    return {
        "task": task.name,
        "title": task.title,
        "claim": task.claim,
        "setting": task.setting,
        "holds": bool(verdict.holds),
        "verdict": verdict.text,
        "command": command,
        "seconds": seconds,
        "seed": task.seed,
        "options": asdict(task.options),
        "data": task.data(),
        "results": dict(results),
        "machine": {
            "processor": _processor(),
            "device": torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "xlstm_cuda": xlstm_cuda.__version__,
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def columns(results: Mapping[str, Results]) -> list[str]:
    """The names of the numbers that the models have, in order."""
    numbers = {key: None for result in results.values() for key, value in result.items() if is_number(value)}
    return list(numbers)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A cell of a table."""
    if not is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"


def table(results: Mapping[str, Results]) -> str:
    """As text: a row for each model, a column for each number."""
    header = ["", *columns(results)]
    rows = [header] + [[name, *(shown(result.get(key)) for key in header[1:])] for name, result in results.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def as_json(found: Mapping[str, Any]) -> str:
    """Indented, but a list of numbers and strings stays on one line."""
    return _indented(json.loads(json.dumps(found, allow_nan=False)), "\n") + "\n"


def _indented(value: Any, newline: str) -> str:
    """newline: with the indentation of the line that the value begins on."""
    deeper = newline + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_indented(item, deeper)}" for key, item in value.items()]
        return "{" + deeper + ("," + deeper).join(items) + newline + "}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[" + deeper + ("," + deeper).join(_indented(item, deeper) for item in value) + newline + "]"
    return json.dumps(value)


def write(folder: Path, task: Task, found: Mapping[str, Any]) -> Path:
    """Returns the path of the JSON file."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    task.plot(axes, found["results"])
    axes.set_title(task.title, fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    plt.close(figure)
    path = folder / f"{stem(task)}.json"
    make_folder(folder)
    try:
        write_atomically(path.with_suffix(".png"), picture.getvalue())
        write_atomically(path, as_json(found).encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    return path
