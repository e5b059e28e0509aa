"""Patched models of `xlstm` in graphs for ONNX."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from tests.support.nxai_models import CONFIGS, build
from tests.support.onnx_graphs import Graph
from xlstm_cuda import patch

xlstm = pytest.importorskip("xlstm")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.slow
def test_a_patched_model() -> None:
    model = xlstm.xlstm_lm_model.xLSTMLMModel(build(xlstm, xlstm.xlstm_lm_model, **CONFIGS["mixed"])).eval()
    patch(model)
    graph = Graph(model, (torch.randint(29, (1, 8)),), ({0: Dim("batch"), 1: Dim("tokens")},))
    for sizes in ((3, 7), (1, 1), (2, 31)):
        graph.check(torch.randint(29, sizes))
