"""Writing a checkpoint: safetensors files, tensor after tensor."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .layouts import Layout
from .sources import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Entry:
    """A tensor to be written, whose rows come in pieces of its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Sequence[Callable[[], Tensor]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write(
    folder: Path, entries: Sequence[Entry], layout: Layout, shard_size: int, written: Callable[[int], object]
) -> int:
    """All entries in files of at most shard_size bytes, or of one tensor; returns the number of files.

    layout: which names the files. written: called with the number of bytes after each piece.
    """
    shards = _shards(entries, shard_size)
    names = layout.file_names(len(shards))
    if len(shards) > 1 and layout.has_index:
        _write_index(folder, dict(zip(names, shards, strict=True)))
    for name, shard in zip(names, shards, strict=True):
        try:
            _write_file(folder / name, shard, written)
        except OSError as error:
            error.filename = error.filename or str(folder / name)  # "No space left on device": which one
            raise
    return len(shards)


def _shards(entries: Sequence[Entry], size: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    used = 0
    for entry in entries:
        if shards[-1] and used + entry.nbytes > size:
            shards.append([])
            used = 0
        shards[-1].append(entry)
        used += entry.nbytes
    return shards


def _write_index(folder: Path, shards: Mapping[str, Sequence[Entry]]) -> None:
    index = {
        "metadata": {"total_size": sum(entry.nbytes for shard in shards.values() for entry in shard)},
        "weight_map": {entry.name: file for file, shard in shards.items() for entry in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, entries: Sequence[Entry], written: Callable[[int], object]) -> None:
    """The format of safetensors: length of the header, the header in JSON, data.

    The writer of the package wants all tensors at once.
    """
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)  # every tensor aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            for piece in entry.pieces:
                written(_write_data(file, piece().contiguous()))
        file.flush()
        os.fsync(file.fileno())


def _write_data(file: BinaryIO, x: Tensor) -> int:
    """The memory of x as it is, without a copy (and without NumPy, which has no bfloat16)."""
    if x.numel():
        file.write((ctypes.c_char * x.nbytes).from_address(x.data_ptr()))
    return x.nbytes


def copy_side_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copy2(file, folder / file.name)
