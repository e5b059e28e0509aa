"""Configs of xLSTMLarge: Hugging Face's config.json, NX-AI's config.yaml and our config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import flat_yaml

_SIZES = ("embedding_dim", "num_heads", "num_blocks", "vocab_size")
# What the weights were trained for, with NX-AI's defaults.
_MODEL: dict[str, Any] = {
    "use_bias": False,
    "norm_eps": 1e-6,
    "norm_reduction_force_float32": True,
    "add_out_norm": True,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "eps": 1e-6,
    "ffn_proj_factor": 2.6667,
    "ffn_round_up_to_multiple_of": 64,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
}
# How NX-AI's code runs it: no matter of the weights.
_RUN = (
    *("chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "chunk_size", "return_last_states"),
    *("autocast_kernel_dtype", "inference_state_dtype"),
)
_HF_SIZES = {"embedding_dim": 4096, "num_heads": 8, "num_blocks": 32, "vocab_size": 50304}
_HF_RUN = {  # the only values that every version of transformers takes, and that generation needs
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
}


def read(folder: Path, hf: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """NX-AI's fields, complete as far as they concern the weights, and the file as it is.

    Raises FileNotFoundError, and ValueError where a field is missing or nonsense.
    """
    path = folder / "config.yaml"
    if hf or not path.exists():
        path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"convert: {folder} has no {'config.json' if hf else 'config.yaml or config.json'}")
    try:
        text = path.read_text(encoding="utf-8")
        raw = flat_yaml.loads(text) if path.suffix == ".yaml" else json.loads(text)
        json.dumps(raw, indent=2)  # nested deeper than that, it could not be written again
        if not isinstance(raw, dict):
            raise ValueError(f"must hold the fields of a config, got {raw!r}")
        fields = _from_hf(raw) if hf else {**_MODEL, **raw}
        _check(fields)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"convert: {path}: {error}") from error
    return fields, raw


def write(folder: Path, layout: str, fields: Mapping[str, Any], raw_hf: Mapping[str, Any] | None, dtype: str) -> None:
    """The config of a layout, weight_mode included. raw_hf: the source's own file, where it is Hugging Face's too."""
    if layout == "hf":
        config = {**(raw_hf or _to_hf(fields)), "weight_mode": fields["weight_mode"], "dtype": dtype}
        config.pop("torch_dtype", None)  # the same field's former name
        _write_json(folder, config)
    elif layout == "nxai":
        names = (*_SIZES, *_MODEL, *_RUN, "weight_mode")
        text = flat_yaml.dumps({name: fields[name] for name in names if name in fields})
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    else:
        _write_json(folder, {**own_fields(fields), "weight_mode": fields["weight_mode"]})


def own_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of our xLSTMLargeConfig that concern the weights."""
    config = {name: fields[name] for name in (*_SIZES, *_MODEL)}
    if _sigmoid_gate(fields):
        config["chunkwise_kernel"] = fields["chunkwise_kernel"]
    return config


def check_target(fields: Mapping[str, Any], layout: str) -> None:
    """Raises ValueError where Hugging Face's model cannot be what the config says."""
    if layout != "hf":
        return
    if not fields["add_out_norm"]:
        raise ValueError("convert: Hugging Face's xLSTM always has the norm that add_out_norm=False leaves out")
    if _sigmoid_gate(fields):
        raise ValueError("convert: Hugging Face's xLSTM has no sigmoid input gates")
    for name in ("gate_soft_cap", "output_logit_soft_cap"):
        if fields[name] is None:
            raise ValueError(f"convert: Hugging Face's xLSTM needs a number as {name}, got None")


def _sigmoid_gate(fields: Mapping[str, Any]) -> bool:
    return "siging" in fields.get("chunkwise_kernel", "")


def _from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """transformers writes only what differs from its defaults, and has two names for width and depth."""
    if raw.get("model_type") != "xlstm":
        raise ValueError(f"model_type must be 'xlstm', got {raw.get('model_type')!r}")
    fields = {**_HF_SIZES, **_MODEL, "ffn_proj_factor": 2.667, **_HF_RUN}
    fields.update({name: raw[name] for name in _SIZES if raw.get(name) is not None})
    fields.update({name: raw[name] for name in (*_MODEL, *_RUN) if name in raw})
    for name, other in (("embedding_dim", "hidden_size"), ("num_blocks", "num_hidden_layers")):
        if raw.get(name) is None and raw.get(other) is not None:
            fields[name] = raw[other]
    return {**fields, "add_out_norm": True}  # which the model does not look at


def _to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    floats = [name for name, default in _MODEL.items() if isinstance(default, float)]
    return {
        "architectures": ["xLSTMForCausalLM"],
        "model_type": "xlstm",
        **{name: fields[name] for name in (*_SIZES, *_MODEL)},
        **{name: float(fields[name]) for name in floats},  # transformers 5 refuses 15 for 15.0
        **{name: fields[name] for name in _RUN if name in fields},
        **_HF_RUN,
        "hidden_size": fields["embedding_dim"],
        "num_hidden_layers": fields["num_blocks"],
        "tie_word_embeddings": False,
    }


def _check(fields: Mapping[str, Any]) -> None:
    for name in (*_SIZES, "ffn_round_up_to_multiple_of"):
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if value >= 2**63:
            raise ValueError(f"{name} is no size of a tensor: {value!r}")
    for name in ("qk_dim_factor", "v_dim_factor", "ffn_proj_factor"):
        if not _is_number(fields[name]) or fields[name] <= 0:
            raise ValueError(f"{name} must be a positive number, got {fields[name]!r}")
        if fields[name] * float(fields["embedding_dim"]) >= 2**63:
            raise ValueError(f"{name} times embedding_dim is no size of a tensor: {fields[name]!r}")
    for name in ("gate_soft_cap", "output_logit_soft_cap"):
        if fields[name] is not None and (not _is_number(fields[name]) or fields[name] <= 0):
            raise ValueError(f"{name} must be None or a positive number, got {fields[name]!r}")
    for name in ("eps", "norm_eps"):
        if not _is_number(fields[name]) or fields[name] < 0:
            raise ValueError(f"{name} must be a number >= 0, got {fields[name]!r}")
    for name, default in _MODEL.items():
        if isinstance(default, bool) and not isinstance(fields[name], bool):
            raise ValueError(f"{name} must be true or false, got {fields[name]!r}")
    if not isinstance(kernel := fields.get("chunkwise_kernel", ""), str):
        raise ValueError(f"chunkwise_kernel must be text, got {kernel!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _write_json(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
