"""summary.json, and summary.md for a reader: where it ran, what came out, every command line, the goals."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .machine import Machine
from .runner import FAILED, Outcome

FORMAT = 1


Results = dict[str, Any] | None  # of `python -m bench run`; None where nothing was measured


def source(root: Path, commit: str | None) -> dict[str, Any]:
    """What was checked. commit: its name where the folder is not a git checkout."""
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD") or commit, "dirty": None if changes is None else bool(changes)}


def summary(origin: dict[str, Any], machine: Machine, outcomes: Sequence[Outcome], results: Results) -> dict[str, Any]:
    """JSON-able. origin: what `source` told."""
    return {
        "format": FORMAT,
        **origin,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": machine.gpu,
        "versions": machine.versions,
        "parts": [asdict(outcome) for outcome in outcomes],
        "goals": goals(results),
    }


def goals(results: Results) -> list[dict[str, Any]]:
    from bench.goals import GOALS  # imports torch

    measured = [(goal, None if results is None else goal.measured(results)) for goal in GOALS["cuda"]]
    return [
        {"goal": goal.label, "wanted": goal.wanted, "measured": figure, "verdict": goal.verdict(figure)}
        for goal, figure in measured
    ]


def markdown(record: dict[str, Any], results: Results) -> str:
    """Of what `summary` returned."""
    failed = [part["part"] for part in record["parts"] if part["status"] == FAILED]
    lines = [
        f"# GPU check: {record['gpu']['name']}",
        "",
        f"{'Failed: ' + ', '.join(failed) if failed else 'Nothing failed'}. {_commit(record)}, {record['date']}.",
        "",
        *_table(("GPU and software", ""), {**record["gpu"], **record["versions"]}.items()),
        "",
        *_table(("part", "status", "seconds", "found"), map(_part, record["parts"])),
        "",
        *_table(("goal", "wanted", "measured", "verdict"), map(_goal, record["goals"])),
    ]
    if results is not None:
        lines += _measured(results)
    lines += ["", "Commands, from the root of the repository:", "", "```sh"]
    lines += [command for part in record["parts"] for command in part["commands"]]
    lines += ["```"]
    for part in record["parts"]:
        if part["tail"]:
            lines += ["", f"The end of {part['part']}.log:", "", "```text", *part["tail"], "```"]
    return "\n".join(lines) + "\n"


def _commit(record: dict[str, Any]) -> str:
    if record["commit"] is None:
        return "No commit"
    return f"Commit {record['commit'][:10]}{' with changes' if record['dirty'] else ''}"


def _part(part: dict[str, Any]) -> tuple[str, ...]:
    found = part["reason"] or part["figures"].get("found", "")
    return (part["part"], part["status"], f"{part['seconds']:.0f}", found)


def _goal(goal: dict[str, Any]) -> tuple[str, ...]:
    measured = "" if goal["measured"] is None else f"{goal['measured']:.2f}"
    return (goal["goal"], goal["wanted"], measured, goal["verdict"])


def _measured(results: dict[str, Any]) -> list[str]:
    """The steps, which move data, then the sequences, which compute."""
    from bench.report import flops_unit  # imports torch

    unit, giga = flops_unit(results)
    tops = results["ceilings"].items()
    copy = "; ".join(f"{dtype} {top['copy_gbs']:.0f} GB/s" for dtype, top in tops)
    gemm = "; ".join(f"{dtype} {top['gemm_gflops'] / giga:.0f} {unit}" for dtype, top in tops)
    steps = ("case", "implementation", "µs", "GB/s", "% copy", "reference / this")
    sequences = ("case", "implementation", "ms", unit, "% gemm", "this / cuda")
    return [
        "",
        f"Measured in the same run: copy, read plus written, {copy}; gemm {gemm}.",
        "",
        *_table(steps, _steps(results)),
        "",
        *_table(sequences, _sequences(results, giga)),
    ]


def _sequences(results: dict[str, Any], giga: float) -> Iterable[tuple[str, ...]]:
    """A row per case and implementation, peers as well."""
    from bench.files import title
    from bench.report import described, ratios, rounded

    for record in results["cases"]:
        if record["mode"] == "step":
            continue
        relative = ratios(record)
        for entry in record["results"]:
            name = (title(record), described(entry))
            if "median" not in entry:
                yield (*name, entry["error"], "", "", "")
                continue
            figures = f"{1e3 * entry['median']:.4g}", rounded(entry["gflops"] / giga), f"{entry['gemm_percent']:.0f}"
            yield (*name, *figures, f"{relative[entry['impl']]:.2f}")


def _steps(results: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """A row per case and implementation of ours."""
    from bench.files import title

    for record in results["cases"]:
        if record["mode"] != "step":
            continue
        entries = {entry["impl"]: entry for entry in record["results"]}
        reference = entries.get("reference", {}).get("median")
        for impl, entry in entries.items():
            if not impl.startswith("cuda"):
                continue
            if "median" not in entry:
                yield (title(record), impl, entry["error"], "", "", "")
                continue
            ratio = "" if reference is None else f"{reference / entry['median']:.1f}"
            figures = (f"{1e6 * entry['median']:.1f}", f"{entry['gbs']:.0f}", f"{entry['copy_percent']:.0f}")
            yield (title(record), impl, *figures, ratio)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [list(head), ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in row)} |" for row in cells]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
