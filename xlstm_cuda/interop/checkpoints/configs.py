"""The files of configs: JSON, or the flat part of YAML, by their names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import flat_yaml
from .fields import check_fields
from .layouts import Layout


def read(folder: Path, layouts: Sequence[Layout]) -> tuple[Layout, dict[str, Any], dict[str, Any]]:
    """The first of these layouts whose config is there, its fields in NX-AI's names, and the file as it is.

    Raises FileNotFoundError, and ValueError where a field is missing or nonsense.
    """
    layout = next((layout for layout in layouts if (folder / layout.config_file).exists()), None)
    if layout is None:
        raise FileNotFoundError(f"convert: {folder} has no {' or '.join(layout.config_file for layout in layouts)}")
    path = folder / layout.config_file
    try:
        text = path.read_text(encoding="utf-8")
        config = flat_yaml.loads(text) if _is_yaml(path) else json.loads(text)
        json.dumps(config, indent=2)  # nested deeper than that, it could not be written again
        if not isinstance(config, dict):
            raise ValueError(f"must hold the fields of a config, got {config!r}")
        fields = layout.fields(config)
        check_fields(fields)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"convert: {path}: {error}") from error
    return layout, fields, config


def write(path: Path, config: Mapping[str, Any]) -> None:
    text = flat_yaml.dumps(config) if _is_yaml(path) else json.dumps(config, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def _is_yaml(path: Path) -> bool:
    return path.suffix == ".yaml"
