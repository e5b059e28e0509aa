"""Registers of every CUDA kernel, as `nvcc -Xptxas=-v` printed them, against the checked-in table.

    python tests/tools/kernel_resources.py build/gates-kernels          compare
    python tests/tools/kernel_resources.py build/gates-kernels --write  keep what was printed, after a kernel changed

The folder is that of csrc/cuda/CMakeLists.txt in a finished build, for all architectures of the table or for some.
The table holds for one release of nvcc; under another one only the limits are checked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # where this file is run by its path

from tools.sass.names import demangled  # noqa: E402

TABLE = ROOT / "csrc" / "cuda" / "resources.json"
MAX_KERNELS = 240  # instances per architecture: a build must stay a matter of minutes
MAX_REGISTERS = 255

Kernels = dict[str, dict[str, int]]  # name: {architecture: registers}


def printed(folder: Path) -> str:
    """What nvcc printed for the objects in `folder`/objects.txt, each in a file beside it."""
    objects = (folder / "objects.txt").read_text().split("\n")
    return "".join((folder / f"{name}.txt").read_text() for name in objects if name)


def parse(log: str) -> Kernels:
    """Registers of each kernel and architecture. Raises ValueError for a kernel that spills or uses local memory."""
    entries = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?"
        r"Used (\d+) registers",
        log,
        re.DOTALL,
    )
    names = demangled([entry[0] for entry in entries])
    kernels: Kernels = {}
    for name, (_, arch, stack, spilled, registers) in zip(names, entries, strict=True):
        if int(stack) or int(spilled):
            raise ValueError(f"{name} on sm_{arch} uses {stack} bytes of stack and spills {spilled} bytes")
        kernels.setdefault(name, {})[arch] = int(registers)
    return {name: dict(sorted(archs.items())) for name, archs in sorted(kernels.items())}


def problems(kernels: Kernels, table: dict[str, object], nvcc: str) -> list[str]:
    """What is wrong with `kernels`; empty where nothing is."""
    found = []
    if not kernels:
        found.append("no kernel was found in what nvcc printed")
    if len(kernels) > MAX_KERNELS:
        found.append(f"{len(kernels)} kernel instances, at most {MAX_KERNELS} are allowed")
    for name, archs in kernels.items():
        if max(archs.values()) > MAX_REGISTERS:
            found.append(f"{name} uses {max(archs.values())} registers")
    if nvcc == table.get("nvcc"):
        expected = table["registers"]
        assert isinstance(expected, dict)
        compiled = set().union(*kernels.values())
        for name in sorted({*kernels, *expected}):
            of_these = {arch: count for arch, count in expected.get(name, {}).items() if arch in compiled}
            if kernels.get(name, {}) != of_these:
                found.append(f"{name}: registers {kernels.get(name, {})}, {TABLE.name} has {of_these}")
    return found


def nvcc_release() -> str:
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release ([\d.]+)", text)
    return match.group(1) if match else "unknown"


def main(arguments: list[str]) -> int:
    kernels, nvcc = parse(printed(Path(arguments[0]))), nvcc_release()
    if "--write" in arguments:
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(archs)}" for name, archs in kernels.items())
        TABLE.write_text(f'{{\n  "nvcc": {json.dumps(nvcc)},\n  "registers": {{\n{rows}\n  }}\n}}\n')
        return 0
    found = problems(kernels, json.loads(TABLE.read_text()), nvcc)
    for problem in found:
        print(f"gates: {problem}")
    if found:
        print("gates: if this is as it should be: make gates ARGS=--write")
    else:
        most = max(max(archs.values()) for archs in kernels.values())
        print(f"gates: {len(kernels)} kernel instances, at most {most} registers")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
