"""The layouts of xLSTMLarge's checkpoints, one in each file. A new one is a file here and an entry in LAYOUTS."""

from __future__ import annotations

from collections.abc import Sequence

from ....nn.loading import likely_layout
from ..parts import BLOCKS, EMBEDDING
from .base import Layout
from .hf import HuggingFace
from .nxai import NXAI
from .xlstm_cuda import XlstmCuda

__all__ = ["LAYOUTS", "OURS", "Layout", "recognise"]

OURS = XlstmCuda()
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (HuggingFace(), NXAI(), OURS)}


def recognise(names: Sequence[str]) -> list[Layout]:
    """The layouts that tensors of these names may have; of several, the file of the config tells which.

    Raises ValueError where they are of another kind of model.
    """
    embedding = next((layout.tensor_name(EMBEDDING) for layout in LAYOUTS.values() if layout.recognises(names)), None)
    if embedding is None and not any(name.startswith(BLOCKS) for name in names):
        likely = likely_layout(names)
        hint = f", it looks like {likely}" if likely else ""
        raise ValueError(f"convert: the checkpoint is no xLSTMLarge{hint}")
    return [layout for layout in LAYOUTS.values() if layout.tensor_name(EMBEDDING) == (embedding or EMBEDDING)]
