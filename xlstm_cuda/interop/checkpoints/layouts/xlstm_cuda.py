"""xLSTMLarge of this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fields import MODEL, SIZES, has_sigmoid_gate
from .base import Layout


class XlstmCuda(Layout):
    name = "xlstm_cuda"
    model = "this library's xLSTMLarge"

    def config(self, fields: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Those fields of xLSTMLargeConfig that concern the weights."""
        names = [*SIZES, *MODEL, *(["chunkwise_kernel"] if has_sigmoid_gate(fields) else []), "weight_mode"]
        return {name: fields[name] for name in names}
