"""Checkpoints that do not fit: all that is wrong in one error, the likely layout, and the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_cuda import models
from xlstm_cuda import nn as xnn


def build(heads: int = 2) -> models.xLSTMLMModel:
    config = models.xLSTMLMModelConfig.from_ratio(
        "1:1",
        2,
        mlstm_block=xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(num_heads=heads)),
        slstm_block=xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(num_heads=heads)),
        embedding_dim=16,
        vocab_size=11,
    )
    return models.xLSTMLMModel(config)


CELL = "xlstm_block_stack.blocks.1.xlstm.slstm_cell."
SKIP = "xlstm_block_stack.blocks.0.xlstm.learnable_skip"


def refused(model: nn.Module, checkpoint: dict[str, Any], strict: bool = True) -> str:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(checkpoint, strict=strict)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(error.value)


def vanilla(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as models built with backend="vanilla" keep them."""
    kernel, bias = checkpoint[CELL + "_recurrent_kernel_"], checkpoint[CELL + "_bias_"]
    by_gate = bias.view(2, 4, 8).transpose(0, 1).flatten()
    return {**checkpoint, CELL + "_recurrent_kernel_": kernel.transpose(1, 2), CELL + "_bias_": by_gate}


def test_all_problems_in_one_error() -> None:
    model = build()
    checkpoint = dict(build().state_dict())
    checkpoint["head"] = checkpoint.pop("lm_head.weight")
    checkpoint[SKIP] = checkpoint[SKIP][:5]
    message = refused(model, checkpoint)
    assert "looks like xLSTMLMModel" in message
    assert "missing: lm_head.weight (11, 16)" in message
    assert "extra: head (11, 16)" in message
    assert f"wrong shape: {SKIP} is (5,), expected (64,)" in message
    assert message.count("\n") == 4


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x.to("meta"), "meta torch.float32 torch.strided"),
        (lambda x: x.to_sparse(), "torch.float32 torch.sparse_coo"),
        (lambda x: x.cfloat(), "torch.complex64 torch.strided"),
        (lambda x: x.char(), "torch.int8 torch.strided"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_tensors_that_cannot_be_copied(change: Any, kind: str, strict: bool) -> None:
    """torch notices after it has copied the others, or not at all."""
    model, checkpoint = build(), dict(build().state_dict())
    checkpoint["lm_head.weight"] = change(checkpoint["lm_head.weight"])
    message = refused(model, checkpoint, strict)
    assert f"wrong kind: lm_head.weight is {kind}, expected torch.float32 torch.strided" in message
    build().load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    with torch.device("meta"):
        build().load_state_dict(model.state_dict(), assign=True)


@pytest.mark.parametrize(
    ("checkpoint", "given"),
    [({1: 2}, "dict with other keys than text"), (None, "NoneType"), ([1], "list"), ("model.pt", "str")],
)
def test_no_state_dict(checkpoint: Any, given: str) -> None:
    config = models.xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=1, vocab_size=5)
    for model in (build(), models.xLSTMLarge(config)):
        with pytest.raises(TypeError, match=f"{type(model).__name__}: state_dict must be a dict .*, got a {given}$"):
            model.load_state_dict(checkpoint)


def test_not_strict_tolerates_names_but_no_shapes() -> None:
    model, checkpoint = build(), dict(build().state_dict())
    checkpoint["head"] = checkpoint.pop("lm_head.weight")
    result = model.load_state_dict(checkpoint, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["lm_head.weight"], ["head"])
    assert torch.equal(model.state_dict()[SKIP], checkpoint[SKIP])
    checkpoint[SKIP] = checkpoint[SKIP][:5]
    assert refused(model, checkpoint, strict=False).count("\n") == 2


@pytest.mark.parametrize(
    ("wrap", "layout"),
    [
        (nn.DataParallel, "DataParallel"),
        (torch.compile, "torch.compile"),
        (lambda model: model.xlstm_block_stack, "xLSTMBlockStack"),
        (lambda model: nn.LSTM(3, 4), "torch.nn.LSTM"),
        (lambda model: nn.ModuleDict({"backbone": nn.ModuleDict({"embeddings": nn.Embedding(3, 4)})}), "Hugging Face"),
    ],
)
def test_likely_layout(wrap: Any, layout: str) -> None:
    assert layout in refused(build(), wrap(build()).state_dict()).split("\n")[1]


def test_unknown_layout() -> None:
    assert "looks like" not in refused(build(), nn.Linear(2, 3).state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_vanilla_kernels_are_converted_and_the_checkpoint_kept(assign: bool) -> None:
    source, model = build(), build()
    nn.init.normal_(source.state_dict()[CELL + "_recurrent_kernel_"])
    checkpoint = vanilla(source.state_dict())
    before = {key: value.clone() for key, value in checkpoint.items()}
    model.load_state_dict(checkpoint, assign=assign)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in checkpoint.items())
    stack = build().xlstm_block_stack
    stack.load_state_dict(
        {key.removeprefix("xlstm_block_stack."): v for key, v in checkpoint.items() if "stack" in key}
    )
    assert all(
        torch.equal(a, b) for a, b in zip(stack.parameters(), source.xlstm_block_stack.parameters(), strict=True)
    )


def test_vanilla_kernels_of_another_shape_are_refused() -> None:
    checkpoint = vanilla(build().state_dict())
    checkpoint[CELL + "_recurrent_kernel_"] = checkpoint[CELL + "_recurrent_kernel_"][:1]
    assert "_recurrent_kernel_ is (1, 32, 8), expected (2, 8, 32)" in refused(build(), checkpoint)


def test_what_is_no_checkpoint() -> None:
    arrays = {key: value.numpy() for key, value in vanilla(build().state_dict()).items()}
    assert "_recurrent_kernel_ is ndarray, expected (2, 8, 32)" in refused(build(), arrays)
    with pytest.raises(
        TypeError, match="^xLSTMLMModel: state_dict must be a dict of names and tensors, got a NoneType"
    ):
        build().load_state_dict(None)
