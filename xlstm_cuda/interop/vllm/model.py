"""The model class that vLLM builds: only this file imports vLLM. Written against its V1 engine (tried: 0.33.0)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_utils import get_kv_cache_torch_dtype
from vllm.model_executor.models.interfaces import HasInnerState, IsAttentionFree
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from ..._states import MLSTMState
from ...models import xLSTMLarge, xLSTMLargeConfig
from ...nn.gates import soft_cap
from .batch import Batch
from .large import config_of, hidden_states, load_weights, state_shapes


class PagedState(nn.Module, MambaBase):
    """Where vLLM keeps the states of one block: it has no parameters, and computes nothing."""

    def __init__(self, config: xLSTMLargeConfig, dtypes: tuple[torch.dtype, ...], name: str, known: dict[str, Any]):
        super().__init__()
        if name in known:
            raise ValueError(f"xLSTMForCausalLM: vLLM has a layer {name} already")
        known[name] = self
        self.name = name
        self.kv_cache = (torch.empty(0),)
        self._shapes, self._dtypes = state_shapes(config), dtypes

    @property
    def pages(self) -> MLSTMState | None:
        """None before vLLM has made them."""
        return MLSTMState(*self.kv_cache) if len(self.kv_cache) == 3 else None

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """Whose metadata say what `Batch` does: decodes first, then prompts."""
        return MambaAttentionBackendEnum.LINEAR

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> Any:
        """One page for a request, however long it is."""
        cache = vllm_config.cache_config
        if cache.mamba_block_size is None:
            cache.mamba_block_size = vllm_config.model_config.max_model_len
        return super().get_kv_cache_spec(vllm_config)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return self._shapes

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return self._dtypes


class XLSTMForCausalLM(nn.Module, HasInnerState, IsAttentionFree):
    """transformers' xLSTMForCausalLM in vLLM. One device for the whole model.

    C of the states is float32, or bfloat16 by --mamba-ssm-cache-dtype; n and m are float32.
    Raises ValueError for tensor or pipeline parallelism, and for speculative decoding.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        parallel = vllm_config.parallel_config
        if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
            raise ValueError("xLSTMForCausalLM: a model is on one device: tensor and pipeline parallel sizes must be 1")
        if vllm_config.speculative_config is not None:
            raise ValueError("xLSTMForCausalLM: vLLM's speculative decoding is not supported")
        self.config = config_of(vllm_config.model_config.hf_config.to_dict())
        self.model = xLSTMLarge(self.config)
        dtypes = self.get_mamba_state_dtype_from_config(vllm_config)
        known = vllm_config.compilation_config.static_forward_context
        names = [f"{prefix}.blocks.{index}".lstrip(".") for index in range(self.config.num_blocks)]
        self.states = nn.ModuleList(PagedState(self.config, dtypes, name, known) for name in names)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        return state_shapes(config_of(vllm_config.model_config.hf_config.to_dict()))

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """C, n, m. "auto" is float32: the model's own dtype loses what a long text has written."""
        name = vllm_config.cache_config.mamba_ssm_cache_dtype
        C = torch.float32 if name == "auto" else get_kv_cache_torch_dtype(name, vllm_config.model_config.dtype)
        if C not in (torch.float32, torch.bfloat16):
            raise ValueError(f"xLSTMForCausalLM: mamba_ssm_cache_dtype must be float32 or bfloat16, got {name}")
        return C, torch.float32, torch.float32

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return cast(Tensor, self.model.embedding(input_ids))

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None
    ) -> Tensor:
        """Ids (T,) of all requests of a step -> (T, D) before the head."""
        context = get_forward_context().attn_metadata
        states = [cast(PagedState, state) for state in self.states]
        if context is None:  # vLLM looks at how much memory a step takes
            batch, pages = Batch.alone(len(input_ids), input_ids.device), [None] * len(states)
            return hidden_states(self.model, input_ids, pages, batch)
        batch = batch_of(context[states[0].name])
        return hidden_states(self.model, input_ids, [state.pages for state in states], batch)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return soft_cap(self.model.lm_head(hidden_states), self.config.output_logit_soft_cap)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return {f"model.{name}" for name in load_weights(self.model, weights)}


def batch_of(metadata: Any) -> Batch:
    """From vLLM's LinearAttentionMetadata."""
    decodes, prompts = metadata.num_decodes, metadata.num_prefills
    starts = metadata.query_start_loc[decodes : decodes + prompts + 1]
    lengths = metadata.seq_lens[decodes : decodes + prompts]
    fresh = lengths == starts.diff()
    slots = metadata.state_indices_tensor[: decodes + prompts].int()
    return Batch(decodes, metadata.num_prefill_tokens, (starts - starts[:1]).int(), fresh, slots)
