"""Plants faults in what only nvcc compiles, and runs the self-test on the PTX of it: does it notice?

    python -m tests.tools.device_faults [--only TEXT] [--jobs N]

The faults are in tests/support/ptx/device_faults.py. The build of simt_selftest_ptx must be up to date, as make
test-device-faults leaves it. Its commands are run again for the files that a fault changes, its other objects are taken
as they are. Exit status 1: a fault was missed.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from tests.support.paths import ROOT
from tests.support.ptx.device_faults import FAULTS, WRAPPERS, DeviceFault
from tools.ptx.cpp import files
from tools.ptx.parse import Module
from tools.ptx.types import Unsupported

BUILD = ROOT / "build" / "simt"
TARGET = "simt_selftest_ptx"
PTX = BUILD / "ptx" / "ptx_selftest_files"
SEEDS = 4
PATIENCE = 20  # seconds, and as many times what it takes without a fault: a kernel that runs longer hangs


@dataclass
class Result:
    verdict: str  # caught, refused (by the translator), same (PTX) or missed
    detail: str

    @property
    def noticed(self) -> bool:
        return self.verdict != "missed"


class Missing(Exception):
    """The build is not there, or does not fit."""


def run(command: list[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=BUILD, capture_output=True, text=True, errors="replace", timeout=timeout)


def checked(command: list[str]) -> None:
    result = run(command)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{result.stdout}{result.stderr}")


def object_of(built: Path) -> str:
    return f"CMakeFiles/{TARGET}.dir/ptx/ptx_selftest_files/{built.name}.o"


def same_code(ptx: str) -> str:
    """PTX without what says where it comes from: lines, files and debug sections."""
    code = re.split(r"^\s*\.section\b", ptx, maxsplit=1, flags=re.M)[0]
    lines = (line.strip() for line in code.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith((".loc", ".file", "//")))


class Build:
    """The commands and objects of the self-test."""

    def __init__(self) -> None:
        if not (BUILD / TARGET).exists():
            raise Missing(f"{BUILD / TARGET} is not built: make test-device-faults")
        self.unplanted: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # of the self-test without a fault, by filter
        self.lock = Lock()

    @cached_property
    def commands(self) -> list[list[str]]:
        lines = run(["ninja", "-t", "commands", TARGET]).stdout.splitlines()
        return [shlex.split(part) for line in lines for part in line.split(" && ")]

    def command(self, *words: str) -> list[str]:
        """The one that has all of these words."""
        found = [command for command in self.commands if all(word in command for word in words)]
        if len(found) != 1:
            raise Missing(f"{len(found)} commands of the build have {' '.join(words)}: make test-device-faults")
        return found[0]

    def ptx(self, case: str, csrc: Path, folder: Path) -> str:
        """What nvcc makes of cases_<case>.cu with these wrappers."""
        to = folder / f"cases_{case}.ptx"
        built = PTX / f"cases_{case}.sm_90a.ptx"
        other = {f"-I{ROOT / 'csrc'}": f"-I{csrc}", str(built): str(to), f"{built}.d": f"{to}.d"}
        source = ROOT / "tests" / "simt" / f"cases_{case}.cu"
        checked([other.get(word, word) for word in self.command("-ptx", str(source))])
        return to.read_text()

    def unplanted_ptx(self, case: str) -> str:
        with self.lock:
            if case not in self.unplanted:
                with copied() as folder:
                    self.unplanted[case] = self.ptx(case, folder / "csrc", folder)
            return self.unplanted[case]

    def objects(self, case: str, ptx: str, folder: Path) -> dict[str, str]:
        """Built objects: what takes their place, compiled of this PTX. Unsupported if the translator refuses it.

        Where more than one file differs, one with all kernels is compiled: most of the time goes to headers.
        """
        stem = f"cases_{case}.sm_90a"
        built = sorted(PTX.glob(f"{stem}.*.cpp"))
        module = Module(ptx)
        texts = files(module, f"{stem}.ptx", len(built))
        different = [number for number, file in enumerate(built) if texts[number] != file.read_text()]
        if len(different) == 1:
            return {object_of(built[different[0]]): self.compiled(texts[different[0]], built[different[0]], folder)}
        (whole,) = files(module, f"{stem}.ptx", 1)
        return {object_of(file): "" for file in built} | {object_of(built[0]): self.compiled(whole, built[0], folder)}

    def compiled(self, text: str, built: Path, folder: Path) -> str:
        """The object of this text, in the place of a built file."""
        code = folder / built.name
        code.write_text(text)
        other = {str(built): str(code), object_of(built): f"{code}.o", f"{object_of(built)}.d": f"{code}.d"}
        checked([other.get(word, word) for word in self.command("-c", str(built))])
        return f"{code}.o"

    def link(self, places: dict[str, str], folder: Path) -> Path:
        executable = folder / TARGET
        other = {**places, TARGET: str(executable)}
        checked([other.get(word, word) for word in self.command("-o", TARGET) if other.get(word, word)])
        return executable

    def control(self, filter: str) -> float:
        """How long these cases take without a fault. They pass."""
        with self.lock:
            if filter not in self.seconds:
                start = time.monotonic()
                if found := flaw(BUILD / TARGET, filter, None):
                    raise RuntimeError(f"without a fault, --filter '{filter}': {found}")
                self.seconds[filter] = time.monotonic() - start
            return self.seconds[filter]


class copied(TemporaryDirectory):  # type: ignore[type-arg]
    """A folder with a copy of csrc."""

    def __enter__(self) -> Path:  # type: ignore[override]
        folder = Path(super().__enter__())
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        return folder


def flaw(executable: Path, filter: str, timeout: float | None) -> str:
    """What the self-test reports first; empty if it passes."""
    try:
        result = run([str(executable), "--seeds", str(SEEDS), "--filter", filter], timeout)
    except subprocess.TimeoutExpired:
        return "hangs"
    if result.returncode == 0:
        return ""
    report = re.search(r"^FAIL (.*?)  .*?flagged (\d+/\d+).*\n\s*(.*)", result.stdout, re.M)
    return f"{report[2]} {report[3]}" if report else f"ends with status {result.returncode}"


def plant(build: Build, fault: DeviceFault) -> Result:
    seconds = build.control(fault.filter)
    with copied() as folder:
        wrapper = folder / WRAPPERS.relative_to(ROOT) / fault.file
        wrapper.write_text(fault.planted(wrapper.read_text()))
        ptx = {case: build.ptx(case, folder / "csrc", folder) for case in fault.cases}
        changed = {case: text for case, text in ptx.items() if same_code(text) != same_code(build.unplanted_ptx(case))}
        if not changed:
            return Result("same", "the same PTX")
        places = {}
        try:
            for case, text in changed.items():
                places |= build.objects(case, text, folder)
        except Unsupported as error:
            return Result("refused", str(error))
        found = flaw(build.link(places, folder), fault.filter, PATIENCE * (1 + seconds))
        return Result("caught", found) if found else Result("missed", f"the PTX of {' '.join(changed)} differs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.device_faults")
    parser.add_argument("--only", default="", help="faults whose file or name has this in it")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.only in str(fault)]
    start = time.monotonic()
    try:
        build = Build()
        with ThreadPoolExecutor(options.jobs) as pool:
            results = []
            for fault, result in zip(chosen, pool.map(lambda fault: plant(build, fault), chosen), strict=True):
                results.append(result)
                print(f"{result.verdict:8} {fault.file:13} {fault.name:58} {result.detail[:150]}", flush=True)
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    counts = {
        verdict: sum(r.verdict == verdict for r in results) for verdict in ("caught", "refused", "same", "missed")
    }
    print(
        f"{len(results)} faults in {time.monotonic() - start:.0f} s: "
        + ", ".join(f"{n} {v}" for v, n in counts.items())
    )
    return 1 if counts["missed"] or not results else 0


if __name__ == "__main__":
    sys.exit(main())
