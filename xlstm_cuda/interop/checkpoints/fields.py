"""Fields of a config of xLSTMLarge, as NX-AI names them: what those of every layout are read to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...models.large.config import EPSILONS, FACTORS, SIZES, SOFT_CAPS, input_gate_of, xLSTMLargeConfig

__all__ = ["MODEL", "RUN", "SIZES", "SOFT_CAPS", "check_fields", "has_sigmoid_gate"]

# What the weights were trained for, beside the sizes, with NX-AI's defaults.
MODEL: dict[str, Any] = {
    name: getattr(xLSTMLargeConfig, name)
    for name in (
        *("use_bias", "norm_eps", "norm_reduction_force_float32", "add_out_norm", "qk_dim_factor", "v_dim_factor"),
        *("eps", "ffn_proj_factor", "ffn_round_up_to_multiple_of", "gate_soft_cap", "output_logit_soft_cap"),
    )
}
# How NX-AI's code runs it: no matter of the weights.
RUN = (
    *("chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "chunk_size", "return_last_states"),
    *("autocast_kernel_dtype", "inference_state_dtype"),
)


def has_sigmoid_gate(fields: Mapping[str, Any]) -> bool:
    return input_gate_of(fields.get("chunkwise_kernel", "")) == "sigmoid"


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raises ValueError where a field is missing or nonsense."""
    for name in (*SIZES, "ffn_round_up_to_multiple_of"):
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if value >= 2**63:
            raise ValueError(f"{name} is no size of a tensor: {value!r}")
    for name in FACTORS:
        if not _is_number(fields[name]) or fields[name] <= 0:
            raise ValueError(f"{name} must be a positive number, got {fields[name]!r}")
        if fields[name] * float(fields["embedding_dim"]) >= 2**63:
            raise ValueError(f"{name} times embedding_dim is no size of a tensor: {fields[name]!r}")
    for name in SOFT_CAPS:
        if fields[name] is not None and (not _is_number(fields[name]) or fields[name] <= 0):
            raise ValueError(f"{name} must be None or a positive number, got {fields[name]!r}")
    for name in EPSILONS:
        if not _is_number(fields[name]) or fields[name] < 0:
            raise ValueError(f"{name} must be a number >= 0, got {fields[name]!r}")
    for name, default in MODEL.items():
        if isinstance(default, bool) and not isinstance(fields[name], bool):
            raise ValueError(f"{name} must be true or false, got {fields[name]!r}")
    if not isinstance(kernel := fields.get("chunkwise_kernel", ""), str):
        raise ValueError(f"chunkwise_kernel must be text, got {kernel!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
