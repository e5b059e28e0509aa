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


class WeightDecayGroups(nn.Module):
    """Base of models that say by name which of their parameters are decayed."""

    def get_weight_decay_optim_group_param_names(self) -> tuple[list[str], list[str]]:
        """Names of the trainable parameters with and without weight decay."""
        raise NotImplementedError

    def get_weight_decay_optim_groups(self) -> tuple[tuple[nn.Parameter, ...], tuple[nn.Parameter, ...]]:
        """Trainable parameters with and without weight decay, as `get_weight_decay_optim_group_param_names` says."""
        parameters = dict(self.named_parameters())
        decay, no_decay = self.get_weight_decay_optim_group_param_names()
        return tuple(parameters[name] for name in decay), tuple(parameters[name] for name in no_decay)
