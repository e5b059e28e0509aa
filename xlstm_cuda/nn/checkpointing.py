"""Activation checkpointing of blocks, by the names that trainers call it by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .config import require

# Of torch.utils.checkpoint.checkpoint.
OPTIONS = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")


class Checkpointing(NamedTuple):
    options: dict[str, Any]  # of torch.utils.checkpoint.checkpoint
    every_n_layers: int
    offload: bool


class ActivationCheckpointing(nn.Module):
    """A model made of blocks, or the part of it that runs them, by `_blocks_to_run`."""

    blocks: Any  # ModuleList
    _checkpointing: Checkpointing | None = None

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """From now on training saves the inputs of blocks only, and its backward pass computes these anew.

        activation_checkpointing_kwargs: options of torch.utils.checkpoint.checkpoint (`OPTIONS`). ValueError for
            others, and for use_reentrant=True: that way loses the gradients of states that are handed on.
        every_n_layers: the first block and every n-th one after it do so; ValueError for less than 1.
        offload: these inputs wait in the memory of the CPU.
        """
        require(every_n_layers >= 1, f"every_n_layers must be at least 1, got {every_n_layers}")
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        unknown = [name for name in options if name not in OPTIONS]
        require(not unknown, f"activation_checkpointing_kwargs must be among {', '.join(OPTIONS)}, got {unknown}")
        require(
            not options["use_reentrant"], "use_reentrant must be False, as it loses the gradients of states, got True"
        )
        self._set_checkpointing(Checkpointing(options, every_n_layers, offload))

    def activation_checkpointing_disable(self) -> None:
        """Training saves all that the backward pass needs: as it was at first."""
        self._set_checkpointing(None)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """`activation_checkpointing_enable` by its name in transformers 4."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """`activation_checkpointing_disable` by its name in transformers 4."""
        self.activation_checkpointing_disable()

    def _set_checkpointing(self, how: Checkpointing | None) -> None:
        for module in self.modules():
            if isinstance(module, ActivationCheckpointing):
                module._checkpointing = how

    def _blocks_to_run(self) -> Iterator[Any]:
        """The blocks, to be called one after the other."""
        how = self._checkpointing if self.training and torch.is_grad_enabled() else None
        for index, block in enumerate(self.blocks):
            yield block if how is None or index % how.every_n_layers else Recomputed(block, how)


class Recomputed(NamedTuple):
    """A block of which only the inputs are saved."""

    block: nn.Module
    how: Checkpointing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.save_on_cpu() if self.how.offload else nullcontext():
            return checkpoint(self.block, *args, **self.how.options, **kwargs)
