"""Beam search against transformers': the same random model, once as it is, once called by prefill and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_cuda.models import generate

transformers = pytest.importorskip("transformers")

VOCAB, EOS = 12, 5


class WholePrefix(nn.Module):
    """A transformer whose state is all ids so far."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def prefill(self, ids: Tensor, state: Any = None, *, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert state is None and reset is None
        return self.model(ids).logits[:, -1:], ids

    def step(self, ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.prefill(torch.cat([state, ids], 1))


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=EOS
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
def test_the_same_sequences(model: Any, beams: int, penalty: float) -> None:
    prompt = torch.randint(VOCAB, (6, 3))
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=beams,
        length_penalty=penalty,
        max_new_tokens=9,
        early_stopping="never",
        do_sample=False,
        pad_token_id=EOS,
    )
    options: dict[str, Any] = {"num_beams": beams, "length_penalty": penalty, "eos_id": EOS}
    found = generate(WholePrefix(model), prompt, 9, temperature=0, **options)
    assert found.tolist() == expected.tolist()
