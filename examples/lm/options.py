"""The command line of `train_lm.py`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", int, float)


def parser(doc: str) -> argparse.ArgumentParser:
    """`doc`: the program's docstring, shown by --help."""
    summary, _, details = doc.partition("\n")
    result = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    run = result.add_argument_group("the run")
    run.add_argument(
        "--data", nargs="+", type=Path, default=[], help="files or folders (default: Python's own library)"
    )
    run.add_argument("--max-bytes", type=positive, default=16 * 2**20, help="use at most this much of the data")
    run.add_argument("--out", type=Path, default=Path("runs/train_lm"), help="folder for checkpoints and loss.png")
    run.add_argument("--resume", action="store_true", help="continue the run in --out; give the same options as before")
    run.add_argument("--overwrite", action="store_true", help="start again even if --out holds an unfinished run")
    run.add_argument("--minutes", type=positive_float, help="stop the xLSTM after this long, the LSTM at the same step")
    run.add_argument("--save-every", type=positive, default=50, help="steps between checkpoints")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--backend", choices=("cpu", "cuda", "reference"), help="default: by device; reference: PyTorch")

    model = result.add_argument_group("the xLSTM")
    model.add_argument("--dim", type=positive, default=192, help="embedding dimension")
    model.add_argument("--blocks", type=positive, default=4)
    model.add_argument("--slstm-at", type=natural, nargs="*", default=[1], help="which are sLSTM blocks, from 0")
    model.add_argument("--heads", type=positive, default=4)
    model.add_argument("--dropout", type=fraction, default=0.0)

    training = result.add_argument_group("training, of both models")
    training.add_argument("--steps", type=positive, default=240)
    training.add_argument("--batch-size", type=positive, default=8)
    training.add_argument("--seq-len", type=positive, default=256)
    training.add_argument("--lr", type=positive_float, default=5e-3, help="peak learning rate of the xLSTM")
    training.add_argument("--lstm-lr", type=positive_float, default=2e-2, help="peak learning rate of the LSTM")
    training.add_argument("--seed", type=natural, default=0)
    training.add_argument("--bf16", action="store_true", help="bfloat16 autocast")

    report = result.add_argument_group("the report")
    report.add_argument("--eval-windows", type=positive, default=256, help="held-out windows of --seq-len bytes")
    report.add_argument("--prompt", type=text, help="start of the sample")
    report.add_argument("--sample-bytes", type=positive, default=400)
    report.add_argument("--no-speed", dest="speed", action="store_false", help="leave out the table of speeds")
    return result


def positive(value: str) -> int:
    return _checked(int(value), lambda v: v > 0)


def natural(value: str) -> int:
    return _checked(int(value), lambda v: v >= 0)


def positive_float(value: str) -> float:
    return _checked(float(value), lambda v: 0 < v < math.inf)


def fraction(value: str) -> float:
    return _checked(float(value), lambda v: 0 <= v < 1)


def text(value: str) -> str:
    if not value:
        raise ValueError
    return value


def _checked(value: T, valid: Callable[[T], bool]) -> T:
    if not valid(value):
        raise ValueError  # argparse adds the option and the value
    return value
