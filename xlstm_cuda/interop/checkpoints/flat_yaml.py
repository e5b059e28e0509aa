"""The part of YAML that NX-AI's config.yaml is written in: one `name: number, text, true, false or null` a line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_LINE = re.compile(r"([A-Za-z_]\w*):\s*(\"[^\"]*\"|'[^']*'|[^\s#\"'\[{&*!|>][^#]*?)?\s*(?:#.*)?")
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}


def loads(text: str) -> dict[str, Any]:
    """Raises ValueError for all other YAML."""
    fields: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() in ("", "---") or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not of the form `name: value`: {line.strip()!r}")
        fields[match[1]] = _value(match[2] or "")
    return fields


def _value(text: str) -> Any:
    if text[:1] in ("'", '"'):
        return text[1:-1]
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def dumps(fields: Mapping[str, Any]) -> str:
    return "".join(f"{name}: {_text(value)}\n" for name, value in fields.items())


def _text(value: Any) -> str:
    text = json.dumps(value)
    if isinstance(value, float) and "." not in text:  # YAML 1.1 takes 1e-06 for text
        text = text.replace("e", ".0e")
    return text
