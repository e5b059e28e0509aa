"""A switch over an enum of the kernels has no default: the compiler names the places that a new value leaves open."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).parent.parent / "csrc"
FOLDERS = ("core", "cpu", "cuda", "simt")
OPEN_ENUMS = {"simt/tensor_map.cpp"}  # a switch over CUDA's own enum, which grows


def test_no_switch_has_a_default() -> None:
    sources = [file for folder in FOLDERS for file in (CSRC / folder).rglob("*") if file.is_file()]
    assert sources
    found = {
        str(file.relative_to(CSRC)) for file in sources if re.search(r"^\s*default\s*:", file.read_text(), re.MULTILINE)
    }
    assert found == OPEN_ENUMS


def test_a_missing_case_is_an_error() -> None:
    for build in (CSRC.parent / "CMakeLists.txt", CSRC / "simt" / "CMakeLists.txt"):
        options = [line for line in build.read_text().splitlines() if "-Wextra" in line]
        assert options
        assert all("-Werror=switch" in line for line in options), build
