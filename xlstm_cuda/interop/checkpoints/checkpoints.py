"""A checkpoint as its parts, whatever its layout: which rows of which tensor each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import configs, sources
from .layouts import Layout, recognise
from .parts import EMBEDDING, Shape, check_shapes, fused_shape, part_shapes


@dataclass
class _Rows:
    """Rows of a source's tensor; of none (zeros) where there is no name."""

    name: str | None
    start: int
    stop: int


@dataclass
class Checkpoint:
    """layout_names: of all layouts whose tensors have these names. weights: "single" or "fused". fields: of its config,
    in NX-AI's names. config: as in the file. shapes: of all parts."""

    layout: Layout
    layout_names: list[str]
    weights: str
    fields: dict[str, Any]
    config: dict[str, Any]
    shapes: dict[str, Shape]
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
        found = list(tensors.shapes)
        layouts = recognise(found)
        layout, fields, config = configs.read(source.parent if source.is_file() else source, layouts)
        if fields["num_blocks"] > len(found):  # a typing error in the config must not fill the memory
            raise ValueError(
                f"convert: the config has {fields['num_blocks']} blocks, the checkpoint {len(found)} tensors"
            )
        shapes, weights = part_shapes(fields), layout.weight_mode(found)
        tied = layout.tied(config, found)
        names = layout.tensors((part for part in shapes if part not in tied), weights)
        check_shapes({name: fused_shape(shapes, parts) for name, parts in names.items()}, tensors.shapes)
        rows = _find(names, shapes)
        rows |= {part: rows[other] for part, other in tied.items()}
        for part in shapes.keys() - rows.keys():  # what the layout's model does not have
            rows[part] = _Rows(None, 0, shapes[part][0])
        yield Checkpoint(layout, [each.name for each in layouts], weights, fields, config, shapes, tensors, rows)


def _find(names: dict[str, list[str]], shapes: dict[str, Shape]) -> dict[str, _Rows]:
    """The parts of each tensor are below each other."""
    rows: dict[str, _Rows] = {}
    for name, parts in names.items():
        start = 0
        for part in parts:
            rows[part] = _Rows(name, start, start + shapes[part][0])
            start = rows[part].stop
    return rows
