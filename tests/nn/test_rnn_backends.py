"""nn.LSTM and nn.sLSTM on every backend: layers, directions, packed sequences and states through the same kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from xlstm_cuda import backend as use_backend
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

LENGTHS = [6, 1, 4]


def results(module: Any, backend: str, device: str, packed: bool) -> list[torch.Tensor]:
    """Outputs, state, and gradients of tokens and parameters, in float64 on the CPU."""
    module = module.to(device)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in LENGTHS]
    x = [t.to(device).requires_grad_() for t in tokens]
    with use_backend(backend):
        output, state = module(pack_sequence(x, enforce_sorted=False) if packed else x[0][:, None])
        y = output.data if packed else output
        loss = y.square().sum() + sum(s.sum() for s in state)
        leaves = [*(x if packed else x[:1]), *module.parameters()]
        grads = torch.autograd.grad(loss, leaves)
    return [t.detach().cpu().double() for t in (y, *state, *grads)]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "heads", "proj_size"), [("LSTM", 1, 0), ("LSTM", 2, 4), ("sLSTM", 2, 0)])
def test_layers(
    backend: str, device: str, name: str, heads: int, proj_size: int, bidirectional: bool, packed: bool
) -> None:
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "proj_size": proj_size, "num_heads": heads, "dtype": torch.float64}
    module = getattr(xnn, name)(5, 8, 2, **options)
    actual = results(module, backend, device, packed)
    expected = results(module, "reference", "cpu", packed)
    for a, b in zip(actual, expected, strict=True):
        assert_close_relative(a, b, 1e-10)


def test_lstm_is_torchs_on_every_backend(backend: str, device: str) -> None:
    theirs = torch.nn.LSTM(5, 8, 2, bidirectional=True, dtype=torch.float64).to(device)
    ours = xnn.LSTM(5, 8, 2, bidirectional=True, dtype=torch.float64).to(device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    with use_backend(backend):
        actual, (h, c) = ours(x)
    expected, (h_n, c_n) = theirs(x)
    for a, b in ((actual, expected), (h, h_n), (c, c_n)):
        assert_close_relative(a, b, 1e-12)
