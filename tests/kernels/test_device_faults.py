"""Faults planted in what only nvcc compiles: the self-test in the form of PTX notices them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from tests.support.paths import ROOT
from tests.support.ptx.device_faults import FAULTS, WRAPPERS, DeviceFault, read
from tests.tools.device_faults import BUILD, TARGET, Build, plant, same_code

BY_NAME = {str(fault): fault for fault in FAULTS}
QUICK = ["math.h: 2^x keeps subnormal results", "memory.h: acquires nothing", "cluster.h: does not wait"]

built = pytest.mark.skipif(
    not shutil.which("nvcc") or not (BUILD / TARGET).exists(), reason="needs nvcc and make test-device-faults"
)


@pytest.fixture(scope="module")
def build() -> Build:
    return Build()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_text_is_in_the_wrapper(fault: DeviceFault) -> None:
    text = (WRAPPERS / fault.file).read_text()
    assert fault.planted(text) != text


def test_cases_and_names_exist() -> None:
    tests = ROOT / "tests" / "simt"
    names = [row["case"] for row in json.loads((tests / "golden.json").read_text())]
    for fault in FAULTS:
        assert all((tests / f"cases_{case}.cu").exists() for case in fault.cases), fault
        assert any(fault.filter in name for name in names), fault
    assert len(BY_NAME) == len(FAULTS)


IN_DEBUG_BUILDS = {"waiting.h"}  # what ships has none of its asm: test_waits.py looks at the PTX of a debug build


def test_every_wrapper_with_asm_has_faults() -> None:
    counts = Counter(fault.file for fault in FAULTS)
    assert len(FAULTS) >= 40
    for file in WRAPPERS.glob("*.h"):
        if file.name not in IN_DEBUG_BUILDS:
            assert counts[file.name] >= 2 or "asm" not in file.read_text(), file.name


@pytest.mark.parametrize(
    "text", ["two\n@ cases: f\n- a\n- b\n+ c", "three\n@ cases: f\n- x\n+ y", "none\n@ cases: f\n- z\n+ y"]
)
def test_a_fault_that_does_not_fit_is_an_error(text: str) -> None:
    (fault,) = read(f"== some.h\n\n{text}")
    with pytest.raises(ValueError, match=f"some.h: {fault.name}"):
        fault.planted("a\nb\nx x")


def test_lines_and_files_are_no_difference() -> None:
    ptx = '.file 1 "a.h"\n.entry k()\n{\n.loc 1 2 3\nmov.u32 %r1, 0;\n}\n.section .debug_str\n'
    assert same_code(ptx) == same_code(ptx.replace("a.h", "b.h").replace(".loc 1 2 3", ".loc 1 9 9"))
    assert same_code(ptx) != same_code(ptx.replace("%r1, 0", "%r1, 1"))
    assert same_code("$L__BB0_1:\nnop;\n") != same_code("nop;\n$L__BB0_1:\n")


@built
@pytest.mark.simt
@pytest.mark.parametrize("name", QUICK)
def test_noticed(build: Build, name: str) -> None:
    result = plant(build, BY_NAME[name])
    assert result.verdict == "caught", result.detail


@built
@pytest.mark.simt
def test_what_no_case_reaches_is_missed(build: Build) -> None:
    fault = replace(BY_NAME[QUICK[0]], filter="wrapper: bits")
    assert plant(build, fault).verdict == "missed"


@built
@pytest.mark.slow
@pytest.mark.simt
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_every_fault_is_noticed(build: Build, fault: DeviceFault) -> None:
    result = plant(build, fault)
    assert result.noticed, result.detail
