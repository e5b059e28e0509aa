"""A result file as a Markdown table and as a bar plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cases import UsageError
from .files import title
from .implementations import OURS

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
COLUMNS = ("implementation", "ms", "p10 - p90", "x ours", "tokens/s", "FLOP/s", "% gemm", "GB/s", "% copy", "peak MB")
TERA = 1e4  # GFLOP/s of torch.mm from which a table counts in TFLOP/s


def ratios(record: dict[str, Any]) -> dict[str, float]:
    """Times relative to ours, by implementation; to the first one where ours was not timed."""
    medians = {entry["impl"]: entry["median"] for entry in record["results"] if "median" in entry}
    base = next((medians[name] for name in OURS if name in medians), next(iter(medians.values()), 1.0))
    return {name: median / base for name, median in medians.items()}


def markdown(results: dict[str, Any]) -> str:
    """Where the figures come from, then a table with a block of rows per case."""
    unit, giga = flops_unit(results)
    head = ("case", *(unit if column == "FLOP/s" else column for column in COLUMNS))
    lines = [_origin(results), "", *_row(head), *_row(("---",) * len(head))]
    for record in results["cases"]:
        relative, case = ratios(record), title(record)
        for entry in record["results"]:
            lines += _row((case, described(entry), *_cells(entry, relative, giga)))
            case = ""
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def flops_unit(results: dict[str, Any]) -> tuple[str, float]:
    """The unit of a table, and how many GFLOP/s it has."""
    large = any(top["gemm_gflops"] >= TERA for top in results["ceilings"].values())
    return ("TFLOP/s", 1e3) if large else ("GFLOP/s", 1.0)


def rounded(x: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{x:.3g}" if x < 999.5 else f"{x:.0f}"


def described(entry: dict[str, Any]) -> str:
    """The implementation, which of its ways, and what is to be known about its results."""
    wrong = f"wrong: {entry['wrong']}" if "wrong" in entry else None
    remarks = [remark for remark in (entry.get("note"), entry.get("computes"), wrong) if remark]
    return f"{entry['impl']} ({'; '.join(remarks)})" if remarks else entry["impl"]


def _cells(entry: dict[str, Any], relative: dict[str, float], giga: float) -> tuple[str, ...]:
    if "error" in entry:
        found = "failed" if entry["error"].startswith("failed:") else "wrong result"
        return (f"{found}, not timed", *[""] * (len(COLUMNS) - 2))
    peak = entry.get("peak_bytes")
    return (
        f"{1e3 * entry['median']:.4g}",
        f"{1e3 * entry['p10']:.4g} - {1e3 * entry['p90']:.4g}",
        f"{relative[entry['impl']]:.2f}",
        rounded(entry["tokens_per_second"]) if "tokens_per_second" in entry else "",
        rounded(entry["gflops"] / giga),
        f"{entry['gemm_percent']:.0f}",
        rounded(entry["gbs"]),
        f"{entry['copy_percent']:.0f}",
        "" if peak is None else f"{1e-6 * peak:.1f}",
    )


def _origin(results: dict[str, Any]) -> str:
    p = results["provenance"]
    commit = "no commit" if p["commit"] is None else p["commit"][:10] + (" with changes" if p["dirty"] else "")
    machine = p["gpu"] or f"{p['cpu']}, {p['info']['CPU SIMD level']}"
    unit, giga = flops_unit(results)
    tops = "; ".join(
        f"{dtype} gemm {top['gemm_gflops'] / giga:.0f} {unit}, copy {top['copy_gbs']:.1f} GB/s"
        for dtype, top in results["ceilings"].items()
    )
    return f"{machine}, threads: {p['threads']}, torch {p['torch']}, {commit}, {p['date'][:10]}. Ceilings: {tops}."


def insert(path: Path, text: str) -> None:
    """Replace what is between the markers in a file. Raises UsageError where they are missing or out of order."""
    try:
        content = path.read_text()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    head, begin, rest = content.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{path}: needs the lines {BEGIN} and {END}")
    path.write_text(f"{head}{BEGIN}\n{text}{END}{tail}")


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the times relative to ours, logarithmic, a group per case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [(title(record), ratios(record)) for record in results["cases"]]
    names = list(dict.fromkeys(name for _, group in groups for name in group))
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * sum(len(group) + 1 for _, group in groups)))
    ticks, position = [], 0.0
    for _, group in groups:
        rows = [position + row for row in range(len(group))]
        axes.barh(rows, [ratio - 1 for ratio in group.values()], 0.9, left=1, color=[_color(names, n) for n in group])
        for row, (name, ratio) in zip(rows, group.items(), strict=True):
            axes.annotate(f"{name} {ratio:.2f}", (max(ratio, 1), row), (4, 0), textcoords="offset points", va="center",
                          fontsize=7)  # fmt: skip
        ticks.append(position + (len(group) - 1) / 2)
        position += len(group) + 1
    axes.set_yticks(ticks, [name.replace(" ", "\n", 1) for name, _ in groups], fontsize=7)
    axes.set_xscale("log")
    axes.margins(x=0.3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("time relative to ours (right of 1: slower)")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _color(names: list[str], name: str) -> str:
    return f"C{names.index(name) % 10}"
