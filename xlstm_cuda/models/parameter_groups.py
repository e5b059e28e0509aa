"""Which parameters are decayed: the rule of the public xLSTM code, which goes by name so that it survives FSDP."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def weight_decay_names(module: nn.Module, exempt: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters with and without weight decay.

    Decayed: "weight" in the name, no "norm" in it, and not `exempt`. A shared parameter counts once, by its first name.
    """
    decay: list[str] = []
    no_decay: list[str] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = "weight" in name and "norm" not in name and name not in exempt
            (decay if decays else no_decay).append(name)
    return decay, no_decay
