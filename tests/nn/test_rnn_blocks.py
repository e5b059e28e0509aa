"""Layers that project some tokens at a time, where nobody needs gradients: the results of one projection of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from xlstm_cuda import nn as xnn
from xlstm_cuda.nn.rnn import blocks
from xlstm_cuda.testing import TOLERANCE, assert_close_relative

B, S, F, D = 3, 70, 5, 6


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks as short as they get; the numbers of tokens that the kernels were given."""
    seen: list[int] = []
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    for cls in (xnn.LSTM, xnn.sLSTM):

        def spy(x: torch.Tensor, *args: Any, scan: Any = cls.scan, **options: Any) -> Any:
            seen.append(x.shape[1])
            return scan(x, *args, **options)

        monkeypatch.setattr(cls, "scan", staticmethod(spy))
    return seen


def flat(result: tuple[Any, Any]) -> list[torch.Tensor]:
    y, state = result
    return [y if isinstance(y, torch.Tensor) else y.data, *state]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "heads", "packed"), [("LSTM", 1, False), ("LSTM", 2, True), ("sLSTM", 2, True)])
def test_blocks_are_one_projection(name: str, heads: int, packed: bool, dtype: torch.dtype, scans: list[int]) -> None:
    module = getattr(xnn, name)(F, D, num_layers=2, batch_first=True, num_heads=heads, dtype=dtype)
    x: Any = torch.randn(B, S, F, dtype=dtype)
    if packed:  # a row ends in each block, one at the edge between them
        x = pack_padded_sequence(x, torch.tensor([20, S, 64]), batch_first=True, enforce_sorted=False)
    hx = tuple(torch.rand(2, B, D) for _ in module.state_type._fields)
    at_once = flat(module(x, hx))
    assert scans == [S, S]
    scans.clear()
    with torch.no_grad():
        in_blocks = flat(module(x, hx))
    assert scans == [32, 32, 6] * 2
    for got, expected in zip(in_blocks, at_once, strict=True):
        assert_close_relative(got, expected, TOLERANCE[dtype].h)


def test_all_tokens_at_once_where_blocks_would_not_do(scans: list[int]) -> None:
    x = torch.randn(B, S, F)
    with torch.no_grad():
        for options in ({"bidirectional": True}, {"proj_size": 3}):
            xnn.LSTM(F, D, batch_first=True, **options)(x)
    xnn.LSTM(F, D, batch_first=True)(x)  # weights that need gradients
    assert scans == [S] * 3
