"""`load_large`: a checkpoint of any layout as a model of this library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...models import xLSTMLarge, xLSTMLargeConfig
from . import checkpoints
from .conversion import as_dtype
from .layouts import OURS
from .parts import fused_shape


def load_large(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    **fields: Any,
) -> xLSTMLarge:
    """The xLSTMLarge of a checkpoint that `convert` reads, in eval mode; there is memory for one model and one tensor.

    Args:
        source: as in `convert`.
        device: of the model.
        dtype: of all weights; None: the one that holds all of the checkpoint's (float32 for bfloat16 and float32, with
            which no model runs).
        fields: of `xLSTMLargeConfig`, such as weight_mode or mode, in the place of the checkpoint's. How the checkpoint
            says it is to be run (mode, return_last_states, inference_state_dtype) is not looked at.

    Raises: for a source and dtype what `convert` raises; for fields what `xLSTMLargeConfig` and `xLSTMLarge` raise.
    """
    wanted = as_dtype(dtype)
    with checkpoints.opened(Path(source)) as checkpoint:
        stored = OURS.config({**checkpoint.fields, "weight_mode": checkpoint.weights})
        with torch.device("meta"):
            model = xLSTMLarge(xLSTMLargeConfig(**{**stored, **fields}))
        wanted = wanted or checkpoint.dtype(list(checkpoint.shapes))
        state_dict = {}
        for name, parts in OURS.tensors(checkpoint.shapes, model.config.weight_mode).items():
            tensor = torch.empty(fused_shape(checkpoint.shapes, parts), dtype=wanted, device=device)
            for rows, part in zip(tensor.split([checkpoint.shapes[part][0] for part in parts]), parts, strict=True):
                rows.copy_(checkpoint.read(part, wanted))
            state_dict[name] = tensor
        model.load_state_dict(state_dict, assign=True)
    return model.eval()
