"""From the PTX of a kernel to its machine code, by ptxas and nvdisasm."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .listing import Kernel, kernels

ENTRY = re.compile(r"^(?:\.visible |\.weak |\.extern )*\.entry\s+([\w$]+)", re.MULTILINE)


def program(name: str) -> str:
    """The path of a CUDA program: on the PATH, else of the PyPI package that holds it. Raises FileNotFoundError."""
    packaged = [Path(folder, "nvidia", "cu13", "bin", name) for folder in sys.path]
    found = [shutil.which(name), *(str(file) for file in packaged if file.exists())]
    for path in filter(None, found):
        return path
    raise FileNotFoundError(f"no {name}: CUDA has it, and pip install nvidia-cuda-{name}")


def entries(text: str) -> list[str]:
    """The kernels of a PTX file by their mangled names."""
    return ENTRY.findall(text)


def single_kernel(text: str, name: str) -> str:
    """A PTX file without its other kernels. Raises KeyError where it does not have this one."""
    starts = [(found.start(), found[1]) for found in ENTRY.finditer(text)]
    if name not in [kernel for _, kernel in starts]:
        raise KeyError(name)
    kept, at = "", 0
    for start, kernel in starts:
        end = _end_of_body(text, start)
        kept += text[at:start] + (text[start:end] if kernel == name else "")
        at = end
    return kept + text[at:]


def _end_of_body(text: str, start: int) -> int:
    depth = 0
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise ValueError("the file is cut short in a kernel")


def ptx_of(source: Path, include: Path, arch: str, folder: Path) -> str:
    """What nvcc makes of a CUDA source; kept in `folder` until a file under `include` is newer."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{source.stem}.{arch}.ptx"
    newest = max(file.stat().st_mtime for file in include.rglob("*") if file.suffix in (".h", ".cu"))
    if not made.exists() or made.stat().st_mtime < newest:
        command = [program("nvcc"), "-std=c++20", "-O3", "-lineinfo", f"-I{include}", f"-arch={arch}", "-ptx"]
        subprocess.run([*command, str(source), "-o", str(made)], check=True)
    return made.read_text()


def assembled(text: str, arch: str, folder: Path) -> list[Kernel]:
    """The machine code of a PTX file's kernels; kept in `folder` by the file's contents."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / hashlib.sha256(f"{arch}\n{text}".encode()).hexdigest()[:24]
    listing = stem.with_suffix(".sass")
    if not listing.exists():
        stem.with_suffix(".ptx").write_text(text)
        cubin = stem.with_suffix(".cubin")
        command = [program("ptxas"), f"-arch={arch}", "-lineinfo", str(stem.with_suffix(".ptx")), "-o", str(cubin)]
        subprocess.run(command, check=True)
        command = [program("nvdisasm"), "-gi", "-hex", "-c", str(cubin)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        listing.write_text(re.sub(" {2,}", "  ", printed))  # it is padded to hundreds of columns
    return list(kernels(listing.read_text()))
