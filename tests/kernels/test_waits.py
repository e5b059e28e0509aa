"""Waits between blocks of the recurrent scans: with a limit, a message that never comes ends in a report of where."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.executor import EXECUTOR, FORM, PLAIN, needs_executor
from tests.support.mutants import simt_options
from tests.support.paths import ROOT
from tests.support.variants import only
from xlstm_cuda import slstm
from xlstm_cuda.testing import slstm_inputs

pytestmark = pytest.mark.simt
needs_limit = pytest.mark.skipif(FORM == "ptx", reason="what ships has no limit")

LIMIT = 1000  # attempts: others get their turn between any two
LOST = {
    "resident_fwd: cluster does not send h": ("cluster", "h, step 1"),
    "resident_fwd: grid does not send h": ("grid", "h, step 1"),
    "resident_bwd: cluster does not send sums": ("cluster", "parts of dh, step 0"),
    "resident_bwd: grid does not send d raw": ("grid", "d raw, step 0"),
}


def forward_and_backward() -> list[torch.Tensor]:
    """By a team of two blocks that need each other's part of every step."""
    inputs = slstm_inputs(2, 3, 1, 72, dtype=torch.bfloat16, seed=0)
    leaves = [inputs[name].requires_grad_() for name in ("x", "R")]
    h = slstm(**inputs, backend=EXECUTOR)
    return [h.detach(), *torch.autograd.grad(h.float().sum(), leaves)]


@needs_executor
@needs_limit
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mutant", LOST)
def test_a_lost_message_is_reported(mutant: str, seed: int) -> None:
    variant, what = LOST[mutant]
    reported = pytest.raises(RuntimeError, match=rf"waited too long for {what}, tile 0.*block \([01],0,0\) thread \d+")
    options = {"wait_limit": LIMIT, "mutant": mutant, "seed": seed, "order": "random"}
    with only(f"{variant} teams=1", PLAIN), simt_options(PLAIN, **options), reported:
        forward_and_backward()


@needs_executor
@needs_limit
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", ["cluster", "grid"])
def test_a_message_that_comes_is_waited_for(variant: str, seed: int) -> None:
    with only(f"{variant} teams=1", PLAIN):
        with simt_options(PLAIN, seed=seed, order="random"):
            expected = forward_and_backward()
        with simt_options(PLAIN, wait_limit=LIMIT, seed=seed, order="random"):
            actual = forward_and_backward()
    assert all(map(torch.equal, actual, expected))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize("source", ["resident_fwd_bf16.cu", "resident_bwd_bf16.cu"])
def test_what_ships_has_no_limit(source: str, tmp_path: Path) -> None:
    with_limit, ships = (ptx(source, "sm_90a", tmp_path, *flags) for flags in (["-DXLSTM_DEBUG_WAITS=2000"], []))
    for part in ("%globaltimer", "vprintf"):
        assert part in with_limit and part not in ships


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize("source", ["resident_fwd_bf16.cu", "resident_bwd_bf16.cu"])
def test_kernels_for_clusters_trap_where_there_are_none(source: str, tmp_path: Path) -> None:
    """They have no code there: to return would be to leave results unwritten without a word."""
    kernels = ptx(source, "sm_80", tmp_path).split(".entry ")[1:]
    traps = [re.search(r"\{\s*(//.*\s*)*trap;", kernel) is not None for kernel in kernels]
    in_clusters = ["VariantE1" in kernel.partition("(")[0] for kernel in kernels]
    assert any(in_clusters) and traps == in_clusters


def ptx(source: str, arch: str, folder: Path, *options: str) -> str:
    """What nvcc makes of the kernels."""
    file, kernels = folder / "kernels.ptx", ROOT / "csrc" / "cuda" / "recurrent" / source
    flags = ["-std=c++20", f"-arch={arch}", f"-I{ROOT / 'csrc'}", *options]
    subprocess.run(["nvcc", "--ptx", *flags, "-o", file, kernels], check=True, capture_output=True)
    return file.read_text()
