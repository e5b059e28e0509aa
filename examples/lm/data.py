"""Bytes of real text: which files, how they are split, and which windows make up batch number `step`."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 0.1  # the last tenth of the bytes is never trained on
NOT_LIBRARY_CODE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class DataError(ValueError):
    """The data cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Corpus:
    train: Tensor  # (N,) uint8
    held_out: Tensor  # (M,) uint8, the bytes right after train
    files: int
    capped: bool
    sha256: str


def standard_library() -> list[Path]:
    """The .py files of Python's standard library, without tests and installed packages."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        subfolders[:] = set(subfolders) - NOT_LIBRARY_CODE
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named by `paths`, folders searched recursively, hidden entries skipped; each file once."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.is_file() and not _hidden(f.relative_to(path)))
            if not inside:
                raise DataError(f"there are no files in the folder {path}")
            found.update(dict.fromkeys(f.resolve() for f in inside))
        elif path.is_file():
            found[path.resolve()] = None
        else:
            raise DataError(f"{path} is not a file or folder" if path.exists() else f"{path} does not exist")
    return list(found)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def load_corpus(paths: Sequence[Path], seq_len: int, max_bytes: int) -> Corpus:
    """Concatenate the files (the standard library if `paths` is empty), stop at `max_bytes`, and split."""
    files = find_files(paths) if paths else standard_library()
    data = bytearray()
    used = 0
    for file in files:
        if len(data) >= max_bytes:
            break
        try:
            data += file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from None
        used += 1
    capped = used < len(files) or len(data) > max_bytes
    del data[max_bytes:]
    cut = len(data) - int(len(data) * HELD_OUT)
    if len(data) - cut <= seq_len:
        needed = int((seq_len + 1) / HELD_OUT)
        raise DataError(
            f"the data has {len(data)} bytes; windows of {seq_len} bytes need at least {needed} (or --seq-len)"
        )
    text = torch.frombuffer(data, dtype=torch.uint8)
    return Corpus(text[:cut], text[cut:], used, capped, hashlib.sha256(data).hexdigest())


def _windows(text: Tensor, starts: np.ndarray, seq_len: int) -> tuple[Tensor, Tensor]:
    """Input and target bytes, each (len(starts), seq_len) int64; a target is the byte after its input."""
    window = text[torch.from_numpy(starts)[:, None] + torch.arange(seq_len + 1)].long()
    return window[:, :-1], window[:, 1:]


def train_batch(corpus: Corpus, step: int, batch_size: int, seq_len: int, seed: int) -> tuple[Tensor, Tensor]:
    """Batch number `step`, a function of its arguments alone: a resumed run and the baseline see the same bytes."""
    starts = np.random.default_rng((seed, step)).integers(0, len(corpus.train) - seq_len, batch_size)
    return _windows(corpus.train, starts, seq_len)


def held_out_batches(
    corpus: Corpus, max_windows: int, batch_size: int, seq_len: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `max_windows` windows that do not overlap, spread evenly over the held-out bytes."""
    available = (len(corpus.held_out) - 1) // seq_len
    count = min(max_windows, available)
    starts = np.arange(count) * available // count * seq_len
    for first in range(0, count, batch_size):
        yield _windows(corpus.held_out, starts[first : first + batch_size], seq_len)
