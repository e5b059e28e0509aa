"""build.toml, which kernel-builder of Hugging Face reads: python -m tools.build_toml writes it anew.

Its lists of sources are those of CMakeLists.txt, with all headers; a test compares. kernel-builder itself has not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "build.toml"
CPU_OPS = ("few_rows_linear.cpp", "large_block_step.cpp")
HEAD = """\
# For kernel-builder of Hugging Face: written by `python -m tools.build_toml`. Not run with kernel-builder yet; what is
# tested is the folder that tools/hub_kernel.py makes.
[general]
name = "xlstm-kernels"
version = 0
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda"]

[torch]
include = ["csrc", "torch-ext"]
"""
ABI = """
[torch.stable-abi]
cpu = "2.11"
cuda = "2.11"
"""


def listed(name: str, files: Iterable[str]) -> str:
    return f"{name} = [\n" + "".join(f'    "{file}",\n' for file in sorted(files)) + "]\n"


def cmake_list(file: str, name: str) -> list[str]:
    """The sources that set(name ...) has in a CMake file, from the root."""
    found = re.search(rf"set\({name}\n(.*?)\)", (ROOT / file).read_text(), re.DOTALL)
    assert found, f"{file} has no list {name}"
    folders = {"${xlstm_cuda_folder}": "csrc/cuda", "${xlstm_ops_folder}": "csrc/ops"}
    return [re.sub(r"^\$\{\w+\}", lambda folder: folders[folder[0]], line) for line in found[1].split()]


def headers(*folders: str) -> list[str]:
    return [str(file.relative_to(ROOT)) for folder in folders for file in (ROOT / folder).rglob("*.h")]


def section(name: str, backend: str, sources: Iterable[str], **options: str) -> str:
    lines = [f"\n[kernel.{name}]", f'backend = "{backend}"', 'depends = ["torch"]', 'include = ["csrc", "torch-ext"]']
    lines += [f"{key.replace('_', '-')} = {value}" for key, value in options.items()]
    return "\n".join(lines) + "\n" + listed("src", sources)


def text() -> str:
    simd, core = cmake_list("CMakeLists.txt", "simd_sources"), headers("csrc/core", "csrc/cpu")
    ops = [file for file in cmake_list("csrc/cuda/sources.cmake", "xlstm_op_sources") if "/kernel_ops/" not in file]
    bindings = [*ops, *headers("csrc/ops", "csrc/core"), "csrc/ops/backends/cpu.cpp"]
    bindings += [f"csrc/ops/{name}" for name in CPU_OPS] + ["csrc/cpu/kernels.h"]
    found = HEAD + listed("src", dict.fromkeys(bindings)) + ABI
    dispatch = ["csrc/cpu/dispatch.cpp", "csrc/cpu/team.cpp", "torch-ext/simd_levels.inc", *core]
    found += section("dispatch", "cpu", dispatch)
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        name = "simd_" + level.replace("-", "_")
        flags = ["-O3", "-fno-math-errno", f"-march={level}", f"-DXLSTM_SIMD_LEVEL={name}"]
        found += section(name, "cpu", [*simd, *core], cxx_flags=str(flags).replace("'", '"'))
    cuda = cmake_list("csrc/cuda/sources.cmake", "xlstm_kernel_sources")
    cuda += cmake_list("csrc/cuda/sources.cmake", "xlstm_device_op_sources")
    cuda += [
        "csrc/ops/backends/cuda.cpp",
        "csrc/ops/backends/cuda_device.cpp",
        *headers("csrc/core", "csrc/cuda", "csrc/ops"),
    ]
    return found + section("cuda", "cuda", dict.fromkeys(cuda), cuda_capabilities='["8.0", "9.0a", "10.0", "12.0"]')


if __name__ == "__main__":
    FILE.write_text(text())
