"""python -m bench accuracy: approximate functions of the recurrent kernels cost nothing beside the rounding of h."""

from __future__ import annotations

import pytest
import torch

from bench import accuracy
from bench.__main__ import main
from xlstm_cuda import _ops

needs_ptx = pytest.mark.skipif(not _ops.available(_ops.PTX_NAMESPACE), reason="make ptx builds it")


def test_errors_are_relative() -> None:
    values = torch.tensor([3.0, 4.0])
    assert accuracy.errors([values * 1.5], [values]) == pytest.approx((0.5,))


@needs_ptx
@pytest.mark.simt
def test_the_worst_approximations_add_little(capsys: pytest.CaptureFixture[str]) -> None:
    """Of what rounding h and d raw to 16 bits adds anyway."""
    for row in accuracy.rows(64):
        epsilon = torch.finfo(row.dtype).eps
        for exact, worst in zip(row.exact, row.approximate, strict=True):
            assert exact < 2 * epsilon and worst < exact + epsilon / 4
    assert main(["accuracy", "--tokens", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(accuracy.CELLS) and "float16" in lines[-1]


def test_without_ptx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_ops, "available", lambda namespace: False)
    assert main(["accuracy"]) == 2
    assert "make ptx" in capsys.readouterr().err
