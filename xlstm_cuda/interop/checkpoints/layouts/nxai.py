"""xLSTMLarge of NX-AI's package xlstm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fields import MODEL, RUN, SIZES
from .base import Layout


class NXAI(Layout):
    name = "nxai"
    model = "NX-AI's xLSTMLarge"
    config_file = "config.yaml"
    has_index = False

    def config(self, fields: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {name: fields[name] for name in (*SIZES, *MODEL, *RUN, "weight_mode") if name in fields}

    def file_names(self, count: int) -> list[str]:
        return [f"model_{n}.safetensors" for n in range(count)] if count > 1 else super().file_names(count)
