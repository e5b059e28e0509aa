"""xLSTMForCausalLM of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..fields import MODEL, RUN, SIZES, SOFT_CAPS, has_sigmoid_gate
from ..parts import EMBEDDING, HEAD, OUT_NORM_BIAS
from .base import Layout

_SIZES = {"embedding_dim": 4096, "num_heads": 8, "num_blocks": 32, "vocab_size": 50304}
_RUN = {  # the only values that every version of transformers takes, and that generation needs
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
}


class HuggingFace(Layout):
    name = "hf"
    model = "Hugging Face's xLSTM"

    def tensor_name(self, name: str) -> str | None:
        if name == OUT_NORM_BIAS:  # which the model never has
            return None
        return "backbone.embeddings.weight" if name == EMBEDDING else name

    def tied(self, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
        return {HEAD: EMBEDDING} if config.get("tie_word_embeddings") and HEAD not in names else {}

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """transformers writes only what differs from its defaults, and has two names for width and depth."""
        if config.get("model_type") != "xlstm":
            raise ValueError(f"model_type must be 'xlstm', got {config.get('model_type')!r}")
        fields = {**_SIZES, **MODEL, "ffn_proj_factor": 2.667, **_RUN}
        fields.update({name: config[name] for name in SIZES if config.get(name) is not None})
        fields.update({name: config[name] for name in (*MODEL, *RUN) if name in config})
        for name, other in (("embedding_dim", "hidden_size"), ("num_blocks", "num_hidden_layers")):
            if config.get(name) is None and config.get(other) is not None:
                fields[name] = config[other]
        return {**fields, "add_out_norm": True}  # which the model does not look at

    def config(self, fields: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        config = {**(source or _config(fields)), "weight_mode": fields["weight_mode"], "dtype": fields["dtype"]}
        config.pop("torch_dtype", None)  # the same field's former name
        return config

    def check(self, fields: Mapping[str, Any]) -> None:
        if not fields["add_out_norm"]:
            raise ValueError(f"convert: {self.model} always has the norm that add_out_norm=False leaves out")
        if has_sigmoid_gate(fields):
            raise ValueError(f"convert: {self.model} has no sigmoid input gates")
        for name in SOFT_CAPS:
            if fields[name] is None:
                raise ValueError(f"convert: {self.model} needs a number as {name}, got None")


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    floats = [name for name, default in MODEL.items() if isinstance(default, float)]
    return {
        "architectures": ["xLSTMForCausalLM"],
        "model_type": "xlstm",
        **{name: fields[name] for name in (*SIZES, *MODEL)},
        **{name: float(fields[name]) for name in floats},  # transformers 5 refuses 15 for 15.0
        **{name: fields[name] for name in RUN if name in fields},
        **_RUN,
        "hidden_size": fields["embedding_dim"],
        "num_hidden_layers": fields["num_blocks"],
        "tie_word_embeddings": False,
    }
