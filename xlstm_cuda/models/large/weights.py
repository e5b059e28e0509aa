"""The two layouts of xLSTMLarge's weights.

"single": each linear map by itself; "fused": several of the same input in one matrix, their rows below each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .config import xLSTMLargeConfig

# The fused map of a block, and the maps whose rows it holds, in this order.
FUSED = {
    "mlstm_layer.qkv_opreact": ("mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact"),
    "mlstm_layer.ifgate_preact": ("mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"),
    "ffn.proj_up_gate_z": ("ffn.proj_up_gate", "ffn.proj_up"),
}
_KEY = re.compile(r"(.*\.|)((?:mlstm_layer|ffn)\.\w+)\.(weight|bias)")


def fuse_weights(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of weight_mode "single" as one of "fused".

    Everything else stays as it is, also maps of which a part is missing or does not fit, and maps that are there in
    both ways. Prefixes of the keys are kept. New tensors share no memory with the old ones.
    """
    result: dict[str, Any] = {}
    for key, value in state_dict.items():
        fused, keys = _group(key)
        parts = [state_dict.get(name) for name in keys]
        if fused in state_dict or not _stackable(parts):
            result[key] = value
        elif fused not in result:
            result[fused] = torch.cat([part.detach() for part in parts])
    return result


def split_weights(state_dict: Mapping[str, Any], config: xLSTMLargeConfig) -> dict[str, Any]:
    """A state dict of weight_mode "fused" as one of "single"; the config knows the widths.

    Everything else stays as it is, also maps with another number of rows, and maps that are there in both ways.
    Prefixes of the keys are kept. New tensors share no memory with the old ones, nor with each other.
    """
    rows = {
        "mlstm_layer.qkv_opreact": (config.qk_dim, config.qk_dim, config.v_dim, config.v_dim),
        "mlstm_layer.ifgate_preact": (config.num_heads, config.num_heads),
        "ffn.proj_up_gate_z": (config.ffn_dim, config.ffn_dim),
    }
    result: dict[str, Any] = {}
    for key, value in state_dict.items():
        prefix, name, kind = _split_key(key)
        names = [f"{prefix}{part}.{kind}" for part in FUSED.get(name, ())]
        if names and _has_rows(value, sum(rows[name])) and not any(part in state_dict for part in names):
            parts = value.detach().split(rows[name])
            result.update({part: weight.clone() for part, weight in zip(names, parts, strict=True)})
        else:
            result[key] = value
    return result


def _split_key(key: str) -> tuple[str, str, str]:
    """ "backbone.blocks.3.ffn.proj_up.weight" -> "backbone.blocks.3.", "ffn.proj_up", "weight"; else three times ""."""
    match = _KEY.fullmatch(key)
    return (match[1], match[2], match[3]) if match else ("", "", "")


def _group(key: str) -> tuple[str, list[str]]:
    """The fused key that a single map's key belongs to, and all keys that do; "" and none for other keys."""
    prefix, name, kind = _split_key(key)
    for fused, names in FUSED.items():
        if name in names:
            return f"{prefix}{fused}.{kind}", [f"{prefix}{part}.{kind}" for part in names]
    return "", []


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def _stackable(parts: Sequence[Any]) -> TypeGuard[Sequence[Tensor]]:
    """Whether these are tensors that torch.cat can put below each other."""
    if not all(isinstance(part, Tensor) and part.ndim > 0 for part in parts):
        return False
    return len({(part.shape[1:], part.device) for part in parts}) == 1
