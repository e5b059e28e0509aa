"""What a layout of checkpoints is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..fields import MODEL
from ..parts import EMBEDDING, fused_name


class Layout:
    """How a library stores xLSTMLarge. Unless a layout says otherwise: NX-AI's names and fields, Hugging Face's files.

    name: `to` of `convert`.
    model: whose model it is, for messages.
    config_file: JSON, or flat YAML if it ends in .yaml. It tells apart layouts whose tensors have the same names.
    has_index: whether several files of weights have an index that says which tensor is in which.
    """

    name: str
    model: str
    config_file = "config.json"
    has_index = True

    def tensor_name(self, name: str) -> str | None:
        """Of a part, or of the tensor of fused ones. None: the model has no such tensor; it counts as zero."""
        return name

    def tensors(self, parts: Iterable[str], weights: str) -> dict[str, list[str]]:
        """The tensors for these parts with weight_mode `weights`, each with the parts that make it up."""
        result: dict[str, list[str]] = {}
        for part in parts:
            name = self.tensor_name(fused_name(part) if weights == "fused" else part)
            if name is not None:
                result.setdefault(name, []).append(part)
        return result

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensors of these names may be of this layout: by the embedding."""
        prefix = str(self.tensor_name(EMBEDDING)).removesuffix("weight")
        return any(name.startswith(prefix) for name in names)

    def weight_mode(self, names: Iterable[str]) -> str:
        """Of tensors of these names: "single" or "fused"."""
        return "fused" if any(".qkv_opreact." in name for name in names) else "single"

    def tied(self, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
        """The parts that are not stored, each with the part whose tensor it shares. config: as in the file."""
        return {}

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """NX-AI's, complete as far as they concern the weights. config: as in the file. ValueError if it is no such."""
        return {**MODEL, **config}

    def config(self, fields: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As in the file. fields: NX-AI's, weight_mode, and dtype, that of the weights. source: the config that the
        checkpoint has had, if in this layout too.
        """
        raise NotImplementedError

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raises ValueError where the model cannot be what NX-AI's fields say."""

    def file_names(self, count: int) -> list[str]:
        """Of the files of weights."""
        if count == 1:
            return ["model.safetensors"]
        return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
