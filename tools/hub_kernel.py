"""The kernels in the form of the Hugging Face Hub, for the package `kernels`: python -m tools.hub_kernel FOLDER

Writes FOLDER/build/<variant>: a library of the ops in a namespace of its own, torch-ext/xlstm_kernels, and the
package's files that it needs, with relative imports. CUDA kernels are built where XLSTM_CUDA=on, for the architectures
of TORCH_CUDA_ARCH_LIST. Nothing of it is kept in git twice.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE, SHELL = ROOT / "xlstm_cuda", ROOT / "torch-ext" / "xlstm_kernels"
# Of the package: what is built on the functions, what is about an installation, and what the shell has of its own.
LEFT_OUT = {
    "distributed",
    "interop",
    "models",
    "nn",
    "convert",
    "integrations",
    "_children.py",
    "info.py",
    "testing.py",
}
LEFT_OUT |= {"__init__.py", "__main__.py", "_moved.py", "_extension.py"}
ABSOLUTE = re.compile(r"^(\s*)from xlstm_cuda(\.[\w.]+)? import ", re.MULTILINE)


def general() -> dict[str, object]:
    """The section of build.toml."""
    section: dict[str, object] = tomllib.loads((ROOT / "build.toml").read_text())["general"]
    return section


def python_files() -> dict[str, str]:
    """By their place in a variant's folder: the shell's files as they are, the package's with relative imports."""
    found = {file.name: file.read_text() for file in sorted(SHELL.glob("*.py"))}
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE)
        if place.parts[0] not in LEFT_OUT:
            found[str(place)] = relative(file.read_text(), len(place.parts) - 1)
    return found


def relative(source: str, depth: int) -> str:
    """Imports of the package by its name -> relative ones, of a file so many folders below it."""
    dots = "." * (depth + 1)
    return ABSOLUTE.sub(lambda found: f"{found[1]}from {dots}{(found[2] or '.')[1:]} import ", source)


def identifier(files: dict[str, str], backend: str) -> str:
    """Of a variant and its ops: other sources have another one, so that both can be loaded."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode())
    for file in sorted((ROOT / "csrc").rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    return f"xlstm_kernels_{backend}_{digest.hexdigest()[:7]}"


def build_library(name: str, folder: Path) -> Path:
    """The ops alone, without Python, in torch.ops.<name>."""
    import torch

    options = {
        "XLSTM_LIBRARY": name,
        "XLSTM_TORCH_DIR": Path(torch.__file__).parent,
        "XLSTM_TORCH_VERSION": torch.__version__,
        "XLSTM_CUDA": os.environ.get("XLSTM_CUDA", "off"),
    }
    defines = [f"-D{key}={value}" for key, value in options.items()]
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.check_call(["cmake", "-S", ROOT, "-B", folder, *ninja, *defines])
    subprocess.check_call(["cmake", "--build", folder, "--target", "_C", "--parallel", str(os.cpu_count() or 1)])
    return folder / f"{name}.so"


def variant(backend: str) -> str:
    """The folder's name: built against torch's stable ABI."""
    return f"torch-stable-abi211-{backend}-{platform.machine()}-{platform.system().lower()}"


def write(folder: Path, library: Path, name: str, backend: dict[str, object], compute: str) -> Path:
    """FOLDER/build/<variant>, anew. name: the namespace of the library's ops."""
    files = python_files()
    files["_ops.py"] = files["_ops.py"].replace('NAMESPACE = "xlstm_cuda"\n', f'NAMESPACE = "{name}"\n', 1)
    target = folder / "build" / variant(compute)
    shutil.rmtree(target, ignore_errors=True)
    for place, text in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(text)
    shutil.copy(library, target)
    digests = {
        str(file.relative_to(target)): base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
        for file in sorted(target.rglob("*"))
        if file.is_file()
    }
    section = general()
    metadata = {
        "id": name,
        "name": section["name"],
        "version": section["version"],
        "license": section["license"],
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests},
    }
    (target / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return target


def assemble(folder: Path) -> Path:
    """Builds the library and writes the variant of this machine."""
    cuda = os.environ.get("XLSTM_CUDA", "off") == "on"
    name = identifier(python_files(), "cuda" if cuda else "cpu")
    library = build_library(name, folder / "cmake")
    if not cuda:
        return write(folder, library, name, {"type": "cpu"}, "cpu")
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output(["nvcc", "--version"], text=True))
    assert release, "nvcc does not say its release"
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0a").split(";")
    return write(folder, library, name, {"type": "cuda", "archs": archs}, f"cu{release[1]}{release[2]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(assemble(parser.parse_args().folder.resolve()))
