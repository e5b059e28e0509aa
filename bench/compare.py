"""Two result files, case by case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .files import title

Entry = dict[str, Any]


@dataclass(frozen=True)
class Line:
    name: str  # case and implementation
    ratio: float  # new time / old time
    verdict: str  # "slower", "faster", "same", or "noise": outside the band, but the p10-p90 ranges overlap


def compare(old: dict[str, Any], new: dict[str, Any], band: float) -> tuple[list[Line], list[str]]:
    """Lines of what both have timed, and the names of what the old one has timed alone."""
    before, after = _timed(old), _timed(new)
    lines = [Line(name, *_judge(entry, after[name], band)) for name, entry in before.items() if name in after]
    return lines, [name for name in before if name not in after]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences that make the times of the two hard to compare."""
    a, b = old["provenance"], new["provenance"]
    return [f"{key}: {a[key]} / {b[key]}" for key in ("cpu", "gpu", "threads", "torch") if a[key] != b[key]]


def _timed(results: dict[str, Any]) -> dict[str, Entry]:
    return {
        f"{title(record)}: {entry['impl']}": entry
        for record in results["cases"]
        for entry in record["results"]
        if "median" in entry
    }


def _judge(old: Entry, new: Entry, band: float) -> tuple[float, str]:
    ratio = new["median"] / old["median"]
    if 1 / (1 + band) <= ratio <= 1 + band:
        return ratio, "same"
    if new["p10"] <= old["p90"] and old["p10"] <= new["p90"]:
        return ratio, "noise"
    return ratio, "slower" if ratio > 1 else "faster"
