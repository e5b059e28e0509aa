"""A checkpoint as its parts, whatever its layout: which rows of which tensor each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import fields as configs
from . import parts as layouts
from . import sources
from .parts import EMBEDDING, HEAD


@dataclass
class _Rows:
    """Rows of a source's tensor; of none (zeros) where there is no name."""

    name: str | None
    start: int
    stop: int


@dataclass
class Checkpoint:
    """hf: whether it is Hugging Face's. weights: "single" or "fused". fields: NX-AI's config. config: as in the file.
    shapes: of all parts."""

    hf: bool
    weights: str
    fields: dict[str, Any]
    config: dict[str, Any]
    shapes: dict[str, layouts.Shape]
    _tensors: sources.Source
    _rows: dict[str, _Rows]

    def read(self, part: str, dtype: torch.dtype) -> Tensor:
        """Raises ValueError where a finite value would become infinite."""
        rows = self._rows[part]
        if rows.name is None:
            return torch.zeros(self.shapes[part], dtype=dtype)
        stored = self._tensors.read(rows.name, rows.start, rows.stop)
        result = stored.to(dtype)
        if torch.finfo(dtype).max < torch.finfo(stored.dtype).max and not result.isinf().equal(stored.isinf()):
            raise ValueError(f"convert: {part} has values that are too large for {str(dtype).removeprefix('torch.')}")
        return result

    def dtype(self, parts: list[str]) -> torch.dtype:
        """The one that holds all of these parts."""
        dtypes = [self._tensors.dtypes[name] for part in parts if (name := self._rows[part].name)]
        result = (dtypes or [self._tensors.dtypes[str(self._rows[EMBEDDING].name)]])[0]
        for dtype in dtypes:
            result = torch.promote_types(result, dtype)
        return result


@contextmanager
def opened(source: Path) -> Iterator[Checkpoint]:
    """Raises what `convert` raises for a source."""
    with sources.opened(source) as tensors:
        hf, weights = layouts.recognise(tensors.shapes)
        fields, config = configs.read(source.parent if source.is_file() else source, hf)
        if fields["num_blocks"] > len(tensors.shapes):  # a typing error in the config must not fill the memory
            raise ValueError(
                f"convert: the config has {fields['num_blocks']} blocks, the checkpoint {len(tensors.shapes)} tensors"
            )
        shapes = layouts.parts(fields)
        names = layouts.stored(shapes, "hf" if hf else "nxai", weights)
        tied = hf and config.get("tie_word_embeddings") and HEAD not in tensors.shapes
        if tied:
            del names[HEAD]
        layouts.check(
            {name: (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:]) for name, parts in names.items()},
            tensors.shapes,
        )
        rows = _find(names, shapes)
        if tied:
            rows[HEAD] = rows[EMBEDDING]
        for part in shapes.keys() - rows.keys():  # the bias that Hugging Face's model does not have
            rows[part] = _Rows(None, 0, shapes[part][0])
        yield Checkpoint(hf, weights, fields, config, shapes, tensors, rows)


def _find(names: dict[str, list[str]], shapes: dict[str, layouts.Shape]) -> dict[str, _Rows]:
    """The parts of each tensor are below each other."""
    rows: dict[str, _Rows] = {}
    for name, parts in names.items():
        start = 0
        for part in parts:
            rows[part] = _Rows(name, start, start + shapes[part][0])
            start = rows[part].stop
    return rows
