"""Activation checkpointing of models by one call: the same gradients, fewer saved values."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.support.tiny_models import VOCAB, blocks_lm, tokens
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig

MODELS = {
    "lm": blocks_lm,
    "large": lambda: xLSTMLarge(xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=3, vocab_size=VOCAB)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]()


def step(model: Any, x: Tensor) -> tuple[list[Tensor], int]:
    """All gradients, also through a state that is handed on, and the bytes that were saved for them."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    reset = torch.zeros(x.shape, dtype=torch.bool)
    reset[0, 3] = True
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _, state = model(x[:, :2], return_state=True)
        y, after = model(x, state, True, reset=reset)
        loss = sum(part.square().sum() for part in (y, *pytree.tree_leaves(after)))
    return list(torch.autograd.grad(loss, list(model.parameters()))), sum(saved.values())


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("every", [1, 2])
@every_model
def test_same_gradients(name: str, every: int, offload: bool) -> None:
    model, x = build(name), tokens(2, 40)
    expected, all_bytes = step(model, x)
    model.activation_checkpointing_enable(every_n_layers=every, offload=offload)
    gradients, saved_bytes = step(model, x)
    for a, e in zip(gradients, expected, strict=True):
        assert torch.equal(a, e)
    if not offload:  # what waits on the CPU is packed by another hook
        assert saved_bytes < (0.6 if every == 1 else 0.9) * all_bytes
    model.activation_checkpointing_disable()
    assert step(model, x)[1] == all_bytes


@every_model
def test_names_of_transformers_4(name: str) -> None:
    model, x = build(name), tokens(2, 40)
    _, all_bytes = step(model, x)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"preserve_rng_state": False})
    assert step(pickle.loads(pickle.dumps(model)), x)[1] < all_bytes
    assert torch.equal(model.eval()(x), build(name).eval()(x))
    model.train().gradient_checkpointing_disable()
    assert step(model, x)[1] == all_bytes


def test_fewer_than_every_layer() -> None:
    with pytest.raises(ValueError, match="^every_n_layers must be at least 1, got 0"):
        build("lm").activation_checkpointing_enable(every_n_layers=0)


@every_model
def test_refusals(name: str) -> None:
    """Both ways would lose something without a word: gradients of states, or the option."""
    model = build(name)
    with pytest.raises(ValueError, match="^use_reentrant must be False, as it loses the gradients of states, got True"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match=r"^activation_checkpointing_kwargs must be among .*, got \['reentrant'\]"):
        model.activation_checkpointing_enable({"reentrant": False})
