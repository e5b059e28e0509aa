"""Block stacks in which every second block reads from the last token to the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import VOCAB
from xlstm_cuda import nn as xnn
from xlstm_cuda.models import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_cuda.testing import assert_close_relative

DIM, S = 16, 11
bound = 1e-10  # in float64
ratios = pytest.mark.parametrize("ratio", ["1:0", "0:1", "1:1"])

pytestmark = pytest.mark.usefixtures("fresh_seed")


def stack(ratio: str, blocks: int = 4) -> Any:
    made = xnn.xLSTMBlockStack(
        xnn.xLSTMBlockStackConfig.from_ratio(ratio, blocks, embedding_dim=DIM, bidirectional=True)
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return made.double()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@ratios
def test_every_second_block_reads_backwards(ratio: str) -> None:
    model, x = stack(ratio), draw(2, S, DIM)
    expected = x
    for index, block in enumerate(model.blocks):
        expected = block(expected.flip(1)).flip(1) if index % 2 else block(expected)
    assert torch.equal(model(x), model.post_blocks_norm(expected))
    changed = x.clone()
    changed[:, -1] += 1
    assert (model(changed)[:, 0] != model(x)[:, 0]).any(), "the first token knows of the last one"


@ratios
def test_documents_are_apart(ratio: str) -> None:
    """Packed in one row, or followed by padding: each as if it were alone, with its gradients."""
    model = stack(ratio)
    x, reset = draw(2, S, DIM).requires_grad_(), torch.zeros(2, S, dtype=torch.bool)
    bounds = [[0, 4, 5, S], [0, 7, S]]
    for row, edges in enumerate(bounds):
        reset[row, edges[1:-1]] = True
    found = model(x, reset=reset)
    parts = [
        torch.cat([model(x[row : row + 1, a:b])[0] for a, b in zip(edges, edges[1:], strict=False)])
        for row, edges in enumerate(bounds)
    ]
    expected = torch.stack(parts)
    assert_close_relative(found, expected, bound)
    weights = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad((found * weights).sum(), [x, *model.parameters()]),
        torch.autograd.grad((expected * weights).sum(), [x, *model.parameters()]),
        strict=True,
    ):
        assert_close_relative(a, e, 100 * bound)


def test_no_tokens() -> None:
    assert stack("1:1")(draw(2, 0, DIM), reset=torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0, DIM)


def test_a_language_model_as_encoder() -> None:
    config = xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=DIM, vocab_size=VOCAB, bidirectional=True)
    assert xLSTMLMModelConfig.from_dict(config.to_dict()).bidirectional
    model, ids = xLSTMLMModel(config), torch.randint(VOCAB, (2, S))
    expected = torch.autograd.grad(model(ids).square().sum(), list(model.parameters()))
    model.activation_checkpointing_enable()
    found = torch.autograd.grad(model(ids).square().sum(), list(model.parameters()))
    assert all(map(torch.equal, found, expected))
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    assert_close_relative(compiled(ids), model(ids), 1e-5)
    message = "^a bidirectional stack reads whole rows: it has no state"
    for call in (
        lambda: model(ids, return_state=True),
        lambda: model.prefill(ids),
        lambda: model.step(ids[:, :1]),
        lambda: model.generate(ids, 3),
        lambda: model.xlstm_block_stack(draw(1, 3, DIM).float(), (None, None)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
