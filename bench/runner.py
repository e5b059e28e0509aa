"""Runs cases: check, then time what is right (of peers, all that runs), then the figures derived from the times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from tqdm import tqdm

from . import memory
from .calls import Builder, Implementation
from .cases import DTYPES, Case, UsageError, known
from .check import Checker, Runner, WrongResult, copies, runner
from .files import FORMAT, title
from .implementations import IMPLEMENTATIONS
from .measure import Timing, ceilings, fastest, interleaved
from .ops import OPS, Tensors
from .provenance import provenance


@dataclass(frozen=True)
class Options:
    threads: int
    repeats: int = 30
    check: bool = True
    memory: bool = False
    max_seconds: float = 30.0


def run(
    cases: Sequence[Case], options: Options, strict: bool = True, keep: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Results of all cases, JSON-able; progress on stderr.

    strict: an implementation that cannot run its case is a UsageError, otherwise it is noted under "skipped". A wrong
    result of ours is noted under "error" in the place of the times, one of a peer under "wrong" beside them.
    keep: called with the results so far after each case.
    """
    chosen = [(case, *choose(case, strict)) for case in cases]  # mistakes come before any work
    tops: dict[str, dict[str, float]] = {}
    records: list[dict[str, Any]] = []
    with _threads(options.threads), tqdm(chosen, unit="case") as bar:
        results = {"format": FORMAT, "provenance": provenance(cases[0].device), "ceilings": tops, "cases": records}
        for case, impls, skipped in bar:
            bar.set_description(case.label)
            if case.dtype not in tops:
                tops[case.dtype] = ceilings(DTYPES[case.dtype], case.device)
            records.append(_run_case(case, impls, options, tops[case.dtype]) | {"skipped": skipped})
            if keep is not None:
                keep(results)
    return results


def wrong(results: dict[str, Any], peers: bool = False) -> list[str]:
    """What was found wrong with ours, or with the peers, a line each."""
    return [
        f"{title(record)}: {entry['impl']}: {entry.get('error') or entry['wrong']}"
        for record in results["cases"]
        for entry in record["results"]
        if ("error" in entry or "wrong" in entry) and entry.get("peer", False) == peers
    ]


def choose(case: Case, strict: bool) -> tuple[list[Implementation], dict[str, str]]:
    """The implementations to run, and why others of the wanted ones cannot."""
    op = OPS[case.op]
    names = case.impls or tuple(
        name for name, impl in IMPLEMENTATIONS.items() if case.op in impl.builders and case.device in impl.devices
    )
    for name in names:
        known("implementation", name, tuple(IMPLEMENTATIONS))
    reasons = {name: IMPLEMENTATIONS[name].why_not(op, case.shape, case.device) for name in names}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    if strict and case.impls and skipped:
        raise UsageError("; ".join(f"{case.op}: {name} {reason}" for name, reason in skipped.items()))
    return [IMPLEMENTATIONS[name] for name in names if name not in skipped], skipped


def _run_case(case: Case, impls: Sequence[Implementation], options: Options, top: dict[str, float]) -> dict[str, Any]:
    op = OPS[case.op]
    checker = Checker(case) if options.check else None
    inputs = op.draw(case.shape, DTYPES[case.dtype], case.device)
    entries: dict[str, dict[str, Any]] = {impl.name: _entry(impl, case) for impl in impls}
    calls: dict[str, Runner] = {}
    sizes: dict[str, int | None] = {}
    for impl in impls:
        entry = entries[impl.name]
        try:
            ways = impl.ways(case.op, case.shape, case.mode)
            entry["note"] = note = _fastest(ways, inputs, case)
            if checker:
                entry |= _checked(checker, impl, ways[note])
            call = ways[note](copies(inputs, case.mode))
            calls[impl.name], sizes[impl.name] = runner(call, case.mode), call.nbytes
        except WrongResult as error:
            entry["error"] = str(error)
        except Exception as error:  # a peer that fails must not cost the results of the others
            entry["error"] = f"failed: {type(error).__name__}: {error}"
    for name, timing in interleaved(calls, case.device, options.repeats, options.max_seconds).items():
        entries[name] |= asdict(timing) | _rates(case, timing, sizes[name], top)
        if options.memory:
            entries[name]["peak_bytes"] = memory.measured(case, name, entries[name]["note"], options.threads)
    identity = {key: value for key, value in asdict(case).items() if key != "impls"}
    return identity | {"checked_shape": checker.shape if checker else None, "results": list(entries.values())}


def _entry(impl: Implementation, case: Case) -> dict[str, Any]:
    """The fields that are known before anything is measured."""
    entry: dict[str, Any] = {"impl": impl.name} | ({"peer": True} if impl.peer else {})
    claim = impl.claim(case.op, case.mode)
    return entry if claim is None else entry | {"computes": claim.note}


def _checked(checker: Checker, impl: Implementation, builder: Builder) -> dict[str, Any]:
    """For the entry. Raises WrongResult for ours; a peer's time is wanted also where its result is wrong."""
    try:
        return {"check": checker.errors(builder, impl.claim(checker.case.op, checker.case.mode))}
    except WrongResult as error:
        if not impl.peer:
            raise
        finite = {name: e for name, e in error.errors.items() if isfinite(e)}  # JSON has no infinity
        return {"check": finite, "wrong": str(error)}


def _fastest(ways: Mapping[str, Builder], inputs: Tensors, case: Case) -> str:
    """The note of the way to time."""
    if len(ways) == 1:
        return next(iter(ways))
    built = {note: runner(builder(copies(inputs, case.mode)), case.mode) for note, builder in ways.items()}
    return fastest(built, case.device)


def _rates(case: Case, timing: Timing, nbytes: int | None, top: dict[str, float]) -> dict[str, float]:
    """nbytes: None for the op's."""
    op = OPS[case.op]
    if nbytes is None:
        nbytes = op.bytes(case.shape, case.mode, DTYPES[case.dtype])
    gflops = 1e-9 * op.work(case.shape, case.mode) / timing.median
    gbs = 1e-9 * nbytes / timing.median
    return {
        "gflops": gflops,
        "gbs": gbs,
        "gemm_percent": 100 * gflops / top["gemm_gflops"],
        "copy_percent": 100 * gbs / top["copy_gbs"],
    } | ({} if op.tokens is None else {"tokens_per_second": op.tokens(case.shape) / timing.median})


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
