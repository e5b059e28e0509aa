"""xLSTMLarge: token embedding, blocks, head. Keys and fields of the public xLSTM code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.checkpointing import ActivationCheckpointing
from ...nn.config import check_config, require
from ...nn.gates import soft_cap
from ...nn.init import small_init_
from ...nn.inputs import check_ids, check_tokens
from ...nn.linear import mapped
from ...nn.loading import CheckedLoading
from ...nn.tracing import leaf_call
from ..generation import generate, stream
from ..parameter_groups import WeightDecayGroups, weight_decay_names
from .config import xLSTMLargeConfig
from .layers import LargeBlock
from .norms import RMSNorm
from .states import GivenState, LargeState, block_states, stored
from .weights import fuse_weights, split_weights


class LargeBackbone(ActivationCheckpointing):
    """The blocks and the norm after them: x (B, S, D) -> (B, S, D) and the states of the blocks."""

    blocks: Any  # ModuleList of LargeBlock

    def __init__(self, config: xLSTMLargeConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(LargeBlock(config) for _ in range(config.num_blocks))
        dim, eps, bias = config.embedding_dim, config.norm_eps, config.use_bias
        self.out_norm = RMSNorm(dim, eps, bias) if config.add_out_norm else nn.Identity()

    def forward(
        self, x: Tensor, state: GivenState = None, reset: Tensor | None = None, is_step: bool = False
    ) -> tuple[Tensor, LargeState]:
        """is_step: 1 <= S <= 16, the cheaper way."""
        states = []
        for block, before in zip(self._blocks_to_run(), block_states(state, len(self.blocks)), strict=True):
            x, after = block(x, before, reset, is_step)
            states.append(stored(after, self.config.state_dtype))
        return self.out_norm(x), tuple(states)


class xLSTMLarge(ActivationCheckpointing, CheckedLoading, WeightDecayGroups):
    """ids (B, S) -> logits (B, S, V): the architecture of xLSTM 7B (arXiv 2503.13427).

    A state is the tuple of the blocks' `MLSTMState`; None is the empty one. Where one is taken, the public xLSTM code's
    {block: (C, n, m (B, H, 1))} is taken too. A state that was handed over is never changed.

    State dicts have the keys and shapes of the public code, and those of either weight_mode load into either.
    """

    def __init__(self, config: xLSTMLargeConfig) -> None:
        super().__init__()
        check_config(config, xLSTMLargeConfig)
        self.config = config = copy(config)  # its mode may be changed, which is nobody else's
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.backbone = LargeBackbone(config)
        self.lm_head = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        self.reset_parameters()

    def forward(
        self,
        ids: Tensor,
        state: GivenState = None,
        return_state: bool = False,
        *,
        reset: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, LargeState]:
        """Integer ids (B, S), any S >= 0 -> logits (B, S, V), and the state after the last token if asked for.

        It is asked for by return_state or by the config's return_last_states.
        reset: bool (B, S): the state is emptied before that token, where a document begins.

        Raises ValueError for ids, a state or reset of the wrong shape, TypeError for ids that are not integers.
        """
        if (node := leaf_call(self, ids, state, return_state, reset=reset)) is not None:
            return node
        with self._gradients():
            x, after = self.backbone(self._embed(ids), state, reset)
            logits = self._logits(x)
        return (logits, after) if return_state or self.config.return_last_states else logits

    def prefill(
        self,
        ids: Tensor,
        state: GivenState = None,
        *,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, LargeState]:
        """A prompt at once: ids (B, S), S >= 1 -> logits (B, 1, V) of the last token only, and the state after it."""
        check_ids(ids)
        require(ids.shape[1] > 0, f"ids must have shape (B, S), S >= 1, got {tuple(ids.shape)}")
        with self._gradients():
            x, after = self.backbone(self._embed(ids), state, reset)
            return self._logits(x[:, -1:]), after

    def step(self, ids: Tensor, state: GivenState = None) -> tuple[Tensor, LargeState]:
        """One token, or a few: ids (B, S), 1 <= S <= 16 -> logits (B, S, V) and the next state."""
        check_tokens(ids)
        with self._gradients():
            x, after = self.backbone(self._embed(ids), state, is_step=True)
            return self._logits(x), after

    def generate(self, prompt_ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor | tuple[Tensor, Any]:
        """`xlstm_cuda.models.generate` with this model: its options and errors."""
        return generate(self, prompt_ids, max_new_tokens, **options)

    def stream(self, prompt_ids: Tensor, max_new_tokens: int, **options: Any) -> Iterator[Tensor]:
        """`xlstm_cuda.models.stream` with this model: its options and errors."""
        return stream(self, prompt_ids, max_new_tokens, **options)

    def tie_weights(self) -> None:
        """Does nothing: embedding and head are two matrices. Tools that move models call it."""

    def _gradients(self) -> AbstractContextManager[Any]:
        if torch.compiler.is_exporting():  # torch.export.load cannot read a program that is one block without gradients
            return nullcontext()
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.config.mode != "inference")

    def _embed(self, ids: Tensor) -> Tensor:
        check_ids(ids)
        x: Tensor = self.embedding(ids)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return soft_cap(mapped(self.lm_head, x), self.config.output_logit_soft_cap)

    def own_layout(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        if self.config.weight_mode == "fused":
            return fuse_weights(state_dict)
        return split_weights(state_dict, self.config)

    def reset_parameters(self) -> None:
        """Initial values as xLSTM 7B was trained from.

        Gates: weights 0, biases -10 of the input gate, 3 to 6 over the heads of the forget gate. Maps that end on
        the residual stream: normal, standard deviation 2 / (num_blocks sqrt(D)). All other maps and the embedding:
        normal, variance 2 / (5 D). Other biases 0, norms 1.
        """
        for module in (self.embedding, self.lm_head):
            small_init_(module.weight, self.config.embedding_dim)
        for block in self.backbone.blocks:
            block.reset_parameters()
        if isinstance(self.backbone.out_norm, RMSNorm):
            self.backbone.out_norm.reset_parameters()

    def get_weight_decay_optim_group_param_names(self) -> tuple[list[str], list[str]]:
        """Names of the trainable parameters with and without weight decay.

        Decayed are the weights of linear maps; not decayed are norms, biases and the embedding.
        """
        return weight_decay_names(self, exempt=("embedding.weight",))
