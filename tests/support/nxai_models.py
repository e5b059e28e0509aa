"""Small models of the public `xlstm` package, whose configs either library can build."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

CONFIGS: dict[str, dict[str, Any]] = {
    "mlstm": {"num_blocks": 2, "slstm": False},
    "slstm": {"num_blocks": 3, "mlstm": False},
    "mixed": {"num_blocks": 3, "slstm_at": [1]},
    "bias": {"num_blocks": 2, "slstm_at": [1], "bias": True, "proj_factor": 1.5, "act_fn": "relu^2"},
    "tied": {"num_blocks": 2, "slstm_at": [0], "tie_weights": True, "weight_decay_on_embedding": True},
    "no conv": {"num_blocks": 1, "slstm_at": "all", "slstm_conv": 0, "group_norm_weight": False},
}


def build(library: Any, model: Any, *, num_blocks: int, mlstm: bool = True, slstm: bool = True, **options: Any) -> Any:
    """The same config, written once, in the classes of either library."""
    mlstm_layer = library.mLSTMLayerConfig(
        conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=2, proj_factor=options.pop("proj_factor", 2.0)
    )
    slstm_layer = library.sLSTMLayerConfig(
        backend=options.pop("backend", "vanilla"),
        num_heads=2,
        conv1d_kernel_size=options.pop("slstm_conv", 4),
        group_norm_weight=options.pop("group_norm_weight", True),
        bias_init="powerlaw_blockdependent",
    )
    feedforward = library.FeedForwardConfig(proj_factor=1.3, act_fn=options.pop("act_fn", "gelu"))
    return model.xLSTMLMModelConfig(
        mlstm_block=library.mLSTMBlockConfig(mlstm=mlstm_layer) if mlstm else None,
        slstm_block=library.sLSTMBlockConfig(slstm=slstm_layer, feedforward=feedforward) if slstm else None,
        context_length=32,
        num_blocks=num_blocks,
        embedding_dim=48,
        vocab_size=29,
        **options,
    )


def randomise(module: nn.Module) -> None:
    """Move every parameter, so that none is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def ids() -> Tensor:
    return torch.randint(29, (2, 21), generator=torch.Generator().manual_seed(1))


def without_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sLSTM cells with backend="cuda" be built where their kernels cannot be compiled. They cannot run."""
    monkeypatch.setattr("xlstm.blocks.slstm.cell.sLSTMCellFuncGenerator", lambda training, config: lambda: None)


def refuse(monkeypatch: pytest.MonkeyPatch, *kinds: type[nn.Module]) -> None:
    """No module of these kinds is to be called, but those of subclasses that have a forward of their own."""

    def refused(self: nn.Module, *_: Any, **__: Any) -> Tensor:
        raise AssertionError(f"{type(self).__name__} was called")

    for kind in kinds:
        monkeypatch.setattr(kind, "forward", refused)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Between models with cells of either layout, through the accessors of theirs, which know both."""
    cells = {name: cell for name, cell in source.named_modules() if hasattr(cell, "_recurrent_kernel_")}
    for name, cell in cells.items():
        for parameter in ("recurrent_kernel", "bias"):
            getattr(target.get_submodule(name), parameter)[:] = getattr(cell, parameter).clone().detach()
    names = ("_recurrent_kernel_", "_bias_")
    others = {key: value for key, value in source.state_dict().items() if not key.endswith(names)}
    assert not target.load_state_dict(others, strict=False).unexpected_keys
