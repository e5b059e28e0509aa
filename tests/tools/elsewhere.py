"""The suite as other machines would run it, without SIMT and inductor: environment after environment, then a table.

make test-elsewhere ARGS="--only CBWR --only SIMD tests/nn": environments by parts of their names; what is left
goes to pytest. Ends with status 1 where anything failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from xlstm_cuda import info

ROOT = Path(__file__).resolve().parents[2]
PLAIN, THREADS, FRESH = "plain", "all threads", "fresh seeds, 50 times"
OPTIONS = {THREADS: "-n 0", FRESH: "-n 2 --repeat-fresh 50"}  # of several workers each has one thread: conftest.py
PYTEST = [sys.executable, "-m", "pytest", "--dist", "worksteal", "-k", "not simt and not inductor"]


def environments() -> list[str]:
    """Names: most are a variable and its value."""
    lower_levels = info()["CPU SIMD levels"].split(", ")[1:]
    return [
        PLAIN,
        THREADS,
        "OMP_NUM_THREADS=1",
        "ATEN_CPU_CAPABILITY=avx2",
        "ATEN_CPU_CAPABILITY=default",
        "MKL_CBWR=COMPATIBLE",
        "MKL_ENABLE_INSTRUCTIONS=SSE4_2",
        "ONEDNN_MAX_CPU_ISA=SSE41",
        *(f"XLSTM_SIMD={level}" for level in lower_levels),
        FRESH,
    ]


class Row(NamedTuple):
    environment: str
    passed: int
    failed: int
    skipped: int
    seconds: int
    end: str  # empty where pytest came to an ordinary one


def run(environment: str, arguments: Sequence[str]) -> Row:
    variables = dict([environment.split("=")]) if "=" in environment else {}
    options = OPTIONS.get(environment, "-n 2").split()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*PYTEST, *options, f"--junitxml={report}", *arguments]
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode
        passed, failed, skipped = counts(report) if report.exists() else (0, 0, 0)
    ordinary = status in (0, 5) or (status == 1 and failed)  # 5: there was no test to run
    end = "" if ordinary else f"pytest ended with status {status}"
    return Row(environment, passed, failed, skipped, round(time.monotonic() - begin), end)


def counts(report: Path) -> tuple[int, int, int]:
    """Passed, failed (errors of fixtures and imports too) and skipped tests of a JUnit report."""
    suites = [*ElementTree.parse(report).iter("testsuite")]
    tests, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    return tests - failures - errors - skipped, failures + errors, skipped


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.environment) for row in rows)
    head = f"{'environment':{width}}  {'passed':>7}  {'failed':>7}  {'skipped':>7}  {'seconds':>7}"
    lines = (
        f"{row.environment:{width}}  {row.passed:7}  {row.failed:7}  {row.skipped:7}  {row.seconds:7}  {row.end}"
        for row in rows
    )
    return "\n".join([head, *map(str.rstrip, lines)])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PART", help="environments whose name holds PART")
    options, rest = parser.parse_known_args(arguments)
    chosen = [name for name in environments() if any(part in name for part in options.only or [""])]
    if not chosen:
        parser.error(f"--only: no environment is called so; there are {', '.join(environments())}")
    rows = []
    for name in chosen:
        print(f"\n{name}", flush=True)
        rows.append(run(name, rest))
    print(f"\n{table(rows)}")
    return int(any(row.failed or row.end for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
