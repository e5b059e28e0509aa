"""What a build with CUDA kernels must be, checked without a GPU: few kernels, and a library that runs on any torch."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.tools.kernel_resources import MAX_KERNELS, parse, printed, problems
from xlstm_cuda import _C
from xlstm_cuda.info import info

MANGLED = "_ZN5xlstm4cuda46_GLOBAL__N__7cdfa22e_13_mlstm_step_cu_038ded9c10normaliserIfEEvi"
NVCC_LOG = f"""
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_80'
ptxas info    : Function properties for {MANGLED}
    {{stack}} bytes stack frame, {{spills}} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {{registers}} registers, used 1 barriers, 885 bytes cmem[0], 84 bytes cmem[2]
"""
KERNEL = "mlstm_step.cu: normaliser<float>"


@pytest.fixture
def library() -> Path:
    if _C.build_info()["cuda"] is None:
        pytest.skip("built without CUDA kernels")
    return Path(_C.__file__)


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_kernel_instances_are_few(library: Path) -> None:
    stubs = set(re.findall(r"__device_stub__(\w+?)(?:E\d__\w+)?\n", output("nm", library)))  # or variables of theirs
    assert 0 < len(stubs) <= MAX_KERNELS


def test_needs_no_cuda_library(library: Path) -> None:
    """So that it loads where there is neither a driver nor a CUDA build of torch."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", library))
    assert needed and not [name for name in needed if "cuda" in name]
    strong = [
        line.split()[-1] for line in output("nm", "-D", "--undefined-only", library).splitlines() if " U " in line
    ]
    assert not [name for name in strong if re.match(r"cu[A-Z]|cuda[A-Z]|aoti_torch_get_current_cuda", name)]


def test_build_info_names_the_architectures(library: Path) -> None:
    archs = _C.build_info()["cuda_archs"]
    assert archs and all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs)
    assert info()["CUDA archs"] == ", ".join(archs)


def test_resources_are_parsed() -> None:
    assert parse(NVCC_LOG.format(stack=0, spills=0, registers=96)) == {KERNEL: {"80": 96}}


def test_what_was_printed_stays_beside_each_object(tmp_path: Path) -> None:
    """csrc/cuda's compiler launcher, with a compiler that fails for one of three objects."""
    launcher = ROOT / "csrc" / "cuda" / "keep_output.sh"
    log = NVCC_LOG.format(stack=0, spills=0, registers=96)
    (tmp_path / "objects.txt").write_text(f"a b.o\n{tmp_path / 'c.o'}\n")
    for name, text, status in (("a b.o", log, 0), ("c.o", "warning: unused\n" + log, 0), ("d.o", "error", 3)):
        compiler = ["sh", "-c", f"cat; exit {status}", "-MF", "d", "-o", name, "-c", "x.cu"]
        done = subprocess.run(["sh", launcher, *compiler], input=text, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status
        assert done.stdout.strip() == text.replace(log, "").strip()
    assert printed(tmp_path) == log + "warning: unused\n" + log
    assert parse(printed(tmp_path)) == {KERNEL: {"80": 96}}


@pytest.mark.parametrize(("stack", "spills"), [(40, 0), (0, 56)])
def test_spills_are_found(stack: int, spills: int) -> None:
    with pytest.raises(ValueError, match=r"normaliser<float> on sm_80 uses .* bytes of stack and spills"):
        parse(NVCC_LOG.format(stack=stack, spills=spills, registers=96))


def test_changed_registers_are_found() -> None:
    table = {"nvcc": "13.0", "registers": {KERNEL: {"80": 96}}}
    assert problems({KERNEL: {"80": 96}}, table, "13.0") == []
    assert problems({KERNEL: {"80": 97}}, table, "13.0")
    assert problems({KERNEL: {"80": 97}}, table, "13.1") == []
    assert problems({KERNEL: {"80": 96}, "new": {"80": 8}}, table, "13.0")
    assert problems({}, table, "13.0")
    more = {"nvcc": "13.0", "registers": {KERNEL: {"80": 96, "100": 97}, "of another": {"100": 8}}}
    assert problems({KERNEL: {"80": 96}}, more, "13.0") == [], "architectures that were not compiled say nothing"
    assert problems({KERNEL: {"80": 96, "100": 98}}, more, "13.0")
    assert problems({KERNEL: {"80": 96, "100": 97}}, more, "13.0"), "a kernel is gone"
    assert problems({f"k{n}": {"80": 8} for n in range(MAX_KERNELS + 1)}, {"nvcc": "1"}, "13.0")
    assert problems({KERNEL: {"80": 256}}, table, "13.1")
