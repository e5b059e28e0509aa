"""Language model: token embedding, xLSTM block stack, linear head. Keys and fields of the public xLSTM code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ...nn import StackState, xLSTMBlockStack
from ...nn.checkpointing import ActivationCheckpointing
from ...nn.config import check_config, require
from ...nn.init import small_init_
from ...nn.inputs import check_ids, check_tokens
from ...nn.linear import mapped
from ...nn.loading import CheckedLoading
from ...nn.tracing import leaf_call
from ..generation import generate, stream
from ..parameter_groups import WeightDecayGroups, weight_decay_names
from .config import xLSTMLMModelConfig


class xLSTMLMModel(ActivationCheckpointing, CheckedLoading, WeightDecayGroups):
    """ids (B, S) -> logits (B, S, V). The state is the stack's, the tuple of its blocks'; None is the empty one."""

    def __init__(self, config: xLSTMLMModelConfig) -> None:
        super().__init__()
        check_config(config, xLSTMLMModelConfig)
        require(config.vocab_size > 0, f"xLSTMLMModelConfig: vocab_size must be positive, got {config.vocab_size}")
        self.config = config
        self.xlstm_block_stack = xLSTMBlockStack(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.emb_dropout = nn.Dropout(config.dropout) if config.add_embedding_dropout else nn.Identity()
        self.lm_head = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        self._init_embedding()

    def forward(
        self,
        ids: Tensor,
        state: StackState | None = None,
        return_state: bool = False,
        *,
        reset: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, StackState]:
        """Integer ids (B, S), any S >= 0 -> logits (B, S, V), and with return_state the state after the last token.

        reset: bool (B, S): the state is emptied before that token: documents packed in one row, each as if alone.
        Raises ValueError for ids, a state or reset of the wrong shape, TypeError for ids that are not integers.
        """
        if (node := leaf_call(self, ids, state, return_state, reset=reset)) is not None:
            return node
        x = self.xlstm_block_stack(self._embed(ids), state, return_state, reset=reset)
        x, state = x if return_state else (x, None)
        logits = mapped(self.lm_head, x)
        return logits if state is None else (logits, state)

    def prefill(
        self, ids: Tensor, state: StackState | None = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, StackState]:
        """A prompt at once: ids (B, S), S >= 1 -> logits (B, 1, V) of the last token only, and the state after it."""
        check_ids(ids)
        require(ids.shape[1] > 0, f"ids must have shape (B, S), S >= 1, got {tuple(ids.shape)}")
        x, state = self.xlstm_block_stack(self._embed(ids), state, True, reset=reset)
        return mapped(self.lm_head, x[:, -1:]), state

    def step(self, ids: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """1 to 16 tokens: ids (B, S) -> logits (B, S, V) and the state after them. `state` stays as it is."""
        check_tokens(ids)
        x, state = self.xlstm_block_stack.step(self._embed(ids), state)
        return mapped(self.lm_head, x), state

    def generate(self, prompt_ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor | tuple[Tensor, StackState]:
        """`xlstm_cuda.models.generate` with this model and options."""
        return generate(self, prompt_ids, max_new_tokens, **options)

    def stream(self, prompt_ids: Tensor, max_new_tokens: int, **options: Any) -> Iterator[Tensor]:
        """`xlstm_cuda.models.stream` with this model and options."""
        return stream(self, prompt_ids, max_new_tokens, **options)

    def _embed(self, ids: Tensor) -> Tensor:
        check_ids(ids)
        x: Tensor = self.emb_dropout(self.token_embedding(ids))
        return x

    def own_layout(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        return self.xlstm_block_stack.own_layout(state_dict, "xlstm_block_stack.")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As CheckedLoading's. Tied weights are one parameter afterwards too, also with assign and after to_empty."""
        result = super().load_state_dict(state_dict, strict, assign)
        self._tie(self.lm_head if "lm_head.weight" in state_dict else self.token_embedding)
        return result

    def tie_weights(self) -> None:
        """One matrix for embedding and head, if the config says so: after what makes new parameters of a model's, as
        torch's to_empty and accelerate's init_empty_weights and load_checkpoint_in_model do. It is the embedding's, or
        the head's where only that is not on the meta device.
        """
        self._tie(self.lm_head if self.token_embedding.weight.is_meta else self.token_embedding)

    def _tie(self, source: nn.Linear | nn.Embedding) -> None:
        replaced = any("weight" not in x._parameters for x in (self.token_embedding, self.lm_head))  # by an adapter
        if self.config.tie_weights and not replaced:
            self.token_embedding.weight = self.lm_head.weight = source.weight

    def reset_parameters(self) -> None:
        self.xlstm_block_stack.reset_parameters()
        self._init_embedding()

    def _init_embedding(self) -> None:
        self._tie(self.token_embedding)
        for module in (self.token_embedding, self.lm_head):
            small_init_(module.weight, self.config.embedding_dim)

    def get_weight_decay_optim_group_param_names(self) -> tuple[list[str], list[str]]:
        """Names of the trainable parameters with and without weight decay.

        Decayed are the weights of linear maps and convolutions, and the embedding (and with it a tied head) if
        weight_decay_on_embedding; not decayed are norms, biases, learnable skips and recurrent kernels.
        """
        exempt = () if self.config.weight_decay_on_embedding else ("token_embedding.weight",)
        return weight_decay_names(self, exempt)
