"""`python -m bench kernels`, as far as it goes without a GPU."""

from __future__ import annotations

import pytest

from bench import kernels
from bench.__main__ import main
from bench.implementations import IMPLEMENTATIONS


def test_names_of_kernels() -> None:
    assert kernels.short(
        "void xlstm::cuda::(anonymous namespace)::outputs<(xlstm::cuda::Product)0, 4>(Params, int)"
    ) == ("outputs")
    assert kernels.short("xlstm::cuda::resident_fwd_kernel<xlstm::cuda::ForwardTraits<int> >(int)") == (
        "resident_fwd_kernel"
    )
    assert (
        kernels.short("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT")
        == "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT"
    )


def test_every_case_can_be_called() -> None:
    cases = list(kernels.cases())
    assert all(case.op in IMPLEMENTATIONS[impl].builders for case, impl, _ in cases)
    assert {case.op for case, _, _ in cases} == {"mlstm", "mlstm_step", "slstm", "slstm_step", "lstm", "lstm_step"}
    assert {case.shape["D"] for case, _, way in cases if way and case.op == "slstm"} == set(kernels.WAYS)
    assert {way for case, _, way in cases if case.op == "mlstm"} == set(kernels.MLSTM_WAYS)


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["kernels"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
