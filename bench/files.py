"""Result files: JSON as runner.run returns it; FORMAT changes when older files can no longer be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .cases import UsageError, label

FORMAT = 1


def read(path: Path) -> dict[str, Any]:
    """The results in a file. Raises UsageError where it is not one."""
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT or not isinstance(results.get("cases"), list):
        raise UsageError(f"{path}: not a result of `python -m bench run` of this version")
    return results


def write(path: Path, results: dict[str, Any]) -> None:
    """At once: a run that is stopped leaves the file of its last finished case."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(path)


def title(record: dict[str, Any]) -> str:
    """A case of a file in words."""
    return label(record["op"], record["shape"], record["dtype"], record["mode"], record["device"])
