"""The parts in their order. The sum of their time limits is the time that all of it can take."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .commands import Done, Failed, Shell, Skipped
from .machine import Machine
from .runner import Part

PYTHON = sys.executable
SCRATCH = Path("build", "gpu-check")  # from the root
Figures = dict[str, Any]

BUILD_INFO = "import json; from xlstm_cuda import _C; print(json.dumps(_C.build_info()))"

SANITIZER_STATUS = 86  # of compute-sanitizer where it has found something
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Seen on machines whose driver or virtualisation lets no debugger in. The command has run well without the tool before.
REFUSALS = re.compile(
    r"[^\n]*(?:device not supported|not supported on|unable to (?:find|launch|attach|initialize|connect)"
    r"|terminated before first instrumented API call|no attachable process|Internal Sanitizer Error"
    r"|failed to initialize|operation not permitted)[^\n]*",
    re.IGNORECASE,
)


def build(shell: Shell, machine: Machine) -> Figures:
    """The extension for this GPU, into this interpreter."""
    # given an interpreter, this package is installed into it, also where the system's package manager claims it
    settings = {"XLSTM_CUDA": "on", "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    options = ("--disable-pip-version-check", "--no-build-isolation", "--no-deps")
    shell.run(PYTHON, "-m", "pip", "install", "-v", *options, "-e", ".", extra=settings)
    shell.run(PYTHON, "-m", "xlstm_cuda", "info")
    built = result(shell.run(PYTHON, "-c", BUILD_INFO))
    if built["cuda"] is None:
        raise Failed("the extension was built without CUDA kernels", {"build_info": built})
    return {"found": f"CUDA {built['cuda']}, {', '.join(built['cuda_archs'])}", "build_info": built}


def calibrate(shell: Shell, machine: Machine) -> Figures:
    """Every PTX wrapper on the device against what its host definition gives; what messages between blocks cost."""
    source, folder = Path("tests", "simt"), SCRATCH / "calibrate"
    shell.run(
        *("cmake", "-S", source, "-B", folder, "-G", "Ninja"), f"-DCMAKE_CUDA_ARCHITECTURES={machine.architecture}"
    )
    shell.run("cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1))
    done = shell.attempt(folder / "simt_calibrate", "--golden", "compare", source / "golden.json")
    counts, wrong = result(done.output), re.findall(r"^FAIL +(.*?) *$", done.output, re.MULTILINE)
    found = f"{counts['compared']} cases compared, {counts['different']} differ"
    asked = dict(re.findall(r"^ask +asked: (.*?)  +(.*?) *$", done.output, re.MULTILINE))
    figures = {"found": found, **counts, "wrong": wrong, "asked": asked}
    if done.status != 0:
        raise Failed(found, figures)
    probe = result(shell.run(folder / "simt_probe"))
    return {**figures, "found": f"{found}; L2 round trip {probe['L2 round trip']:.0f} ns", "probe, ns": probe}


def tests(shell: Shell, machine: Machine) -> Figures:
    """Every test of the backend cuda."""
    workers = str(min(12, os.cpu_count() or 1))
    parallel = ("-n", workers, "--dist", "worksteal") if find_spec("xdist") else ()
    report = _not_there_yet(shell.root / SCRATCH / "tests.xml")
    # a kernel that waits for ever loses its own test alone, and a run that is too long still ends with its report
    limits = ("--timeout", "40", "--session-timeout", str(int(shell.seconds - 25)))
    patience = limits if find_spec("pytest_timeout") else ()
    options = ("-k", "cuda", *parallel, *patience, "-rfEs", "--tb=short", "--durations=10")
    done = shell.attempt(PYTHON, "-m", "pytest", *options, f"--junitxml={SCRATCH / report.name}")
    if not report.exists():
        raise Failed(f"pytest ended with status {done.status} and left no report")
    counts = count_tests(report)
    found = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    figures = {"found": found, **counts}
    if done.status != 0:
        raise Failed(found, figures)
    if counts["backend cuda passed"] == 0:
        raise Failed("no test ran on the backend cuda", figures)
    return figures


def count_tests(report: Path) -> Figures:
    """Of a JUnit file: how many, the names of those that failed, and why others were skipped, with how many."""
    passed, on_cuda, failed, skipped = 0, 0, list[str](), dict[str, int]()
    ours = "./properties/property[@name='backend'][@value='cuda']"  # from the fixture in tests/conftest.py
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            reason = skip.get("message") or "no reason given"
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            passed += 1
            on_cuda += case.find(ours) is not None
    return {
        "passed": passed,
        "backend cuda passed": on_cuda,
        "failed": len(failed),
        "skipped": sum(skipped.values()),
        "failures": failed,
        "skip reasons": skipped,
    }


def sanitizer(shell: Shell, machine: Machine) -> Figures:
    """Every CUDA op on small shapes under each tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer", path=shell.environment["PATH"])
    if program is None:
        raise Skipped("there is no compute-sanitizer on the PATH or in CUDA_HOME")
    small = (PYTHON, "-m", "tools.gpu_check.small")
    # each tensor an allocation of its own: memory beyond its end then belongs to no tensor
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    alone = result(shell.run(*small, extra=settings))
    if not alone["ran"]:
        raise Skipped("no op has a CUDA kernel in this build")
    options = ("--error-exitcode", str(SANITIZER_STATUS), "--target-processes", "all")
    every = shell.together([(program, "--tool", tool, *options, *small) for tool in TOOLS], settings)
    verdicts = dict(zip(TOOLS, map(sanitizer_verdict, every), strict=True))
    found = "; ".join(f"{tool}: {verdict}" for tool, verdict in verdicts.items())
    figures = {"found": found, **alone, **verdicts}
    if any(verdict.startswith("failed") for verdict in verdicts.values()):
        raise Failed(found, figures)
    refused = [tool for tool, verdict in verdicts.items() if verdict.startswith("refused")]
    if len(refused) == len(TOOLS):
        raise Skipped(f"compute-sanitizer {verdicts[refused[0]]}")
    return figures


def sanitizer_verdict(done: Done) -> str:
    """clean, failed or refused, with the line that says so. What found nothing has to say that it has looked."""
    summaries = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", done.output, re.MULTILINE)
    if done.status == SANITIZER_STATUS:
        return f"failed ({summaries[-1] if summaries else 'errors found'})"
    refusal = REFUSALS.search(done.output)
    if refusal is not None:
        return f"refused ({refusal[0].lstrip('= ').strip()})"
    if done.status != 0 or not summaries:
        return f"failed (exit status {done.status}{'' if summaries else ', no summary'})"
    found = [summary for summary in summaries if not re.search(r": 0 (errors|hazards)", summary)]
    return f"failed ({found[0]})" if found else f"clean ({summaries[-1]})"


def bench(shell: Shell, machine: Machine) -> Figures:
    """The suites cuda, cuda-mlstm and cuda-recurrent: every result checked, then timed; then their kernels, timed."""
    file = _not_there_yet(shell.root / SCRATCH / "bench.json")
    options = ("--suite", "cuda,cuda-mlstm,cuda-recurrent", "--repeats", "10", "--max-seconds", "1.5")
    try:
        done = shell.attempt(PYTHON, "-m", "bench", "run", *options, "--json", SCRATCH / file.name)
    finally:  # also of a run that was stopped: the cases it has finished
        if file.exists():
            results = json.loads(file.read_text())
            shell.folder.write_json("bench.json", results)
    if not file.exists():
        raise Failed(f"`python -m bench run` ended with status {done.status} and left no results")
    entries = [entry for record in results["cases"] for entry in record["results"]]
    if not any(entry["impl"].startswith("cuda") for entry in entries):
        raise Skipped("no op has a CUDA kernel in this build")
    timed = sum("median" in entry for entry in entries)
    figures: Figures = {"found": f"{timed} of {len(entries)} timed", "results": "bench.json"}
    kernels = shell.attempt(PYTHON, "-m", "bench", "kernels")
    if kernels.status == 0:
        figures["kernels, us"] = result(kernels.output)
    if done.status != 0:
        ours = [entry for entry in entries if not entry.get("peer")]
        raise Failed(f"{sum('error' in entry for entry in ours)} of {len(ours)} wrong or failing", figures)
    return figures


def _not_there_yet(file: Path) -> Path:
    """For a command to write; what an earlier run has left must not be taken for this one's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    return file


def result(output: str) -> Figures:
    """The last line that is JSON. Raises Failed without one."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found: Figures = json.loads(line)
            return found
    raise Failed("the command printed no result")


PARTS = (
    Part("build", 100, build, ("pip", "setuptools", "pybind11")),
    Part("calibrate", 60, calibrate),
    Part("tests", 170, tests, ("pytest", "hypothesis", "numpy", "matplotlib", "safetensors", "tqdm"), needs="build"),
    Part("sanitizer", 80, sanitizer, needs="build"),
    Part("bench", 120, bench, ("tqdm",), needs="build"),
)
