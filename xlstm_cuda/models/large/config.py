"""Config of xLSTMLarge: fields and defaults of the public xLSTM code."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...nn.config import Config, ignored, require, require_width

SIZES = ("embedding_dim", "num_heads", "num_blocks", "vocab_size")
FACTORS = ("qk_dim_factor", "v_dim_factor", "ffn_proj_factor")  # widths over embedding_dim
SOFT_CAPS = ("gate_soft_cap", "output_logit_soft_cap")
EPSILONS = ("eps", "norm_eps")
_CHOICES = {
    "mode": ("train", "train_with_padding", "inference"),
    "weight_mode": ("single", "fused"),
    "inference_state_dtype": ("float32", "bfloat16", "float16"),
}


def ffn_width(embedding_dim: int, proj_factor: float, multiple: int) -> int:
    """Inner width of the feed-forward network, rounded up as the public code does.

    A fraction below one does not reach the next multiple.
    """
    return int((embedding_dim * proj_factor + multiple - 1) // multiple) * multiple


def input_gate_of(chunkwise_kernel: str) -> str:
    """The input gate of `functional.mlstm` that a kernel of the public code computes: "exp" or "sigmoid"."""
    return "sigmoid" if "siging" in chunkwise_kernel else "exp"


@dataclass
class xLSTMLargeConfig(Config):
    """Sizes and options of `xLSTMLarge`.

    qk_dim_factor, v_dim_factor: width of all queries (keys), and of all values, over embedding_dim.
    ffn_proj_factor: inner width of the feed-forward network over embedding_dim, before it is rounded up.
    gate_soft_cap, output_logit_soft_cap: c in c tanh(x / c), for the pre-activations of input and forget gate and for
        the logits; None for no cap.
    use_bias: of the linear maps and norms. The gates always have biases, the head never has one.
    eps: added to the denominator of the mLSTM; norm_eps: of all norms.
    mode: may be changed at any time, in the model's own `config`. Any sequence length works in all of them.
        "train", "train_with_padding": the same here.
        "inference": no gradients, and C of the states that are returned has dtype inference_state_dtype (n and m, which
        are small, stay in float32 at least).
    return_last_states: `forward` always returns the state too.
    weight_mode: "single", a map for each of q, k, v and the gates, or "fused", one for q, k, v and the output gate, one
        for input and forget gate, one for both halves of the feed-forward network. Checkpoints of either load.
    chunkwise_kernel: decides one thing here: a name with "siging" in it is an mLSTM with sigmoid input gate.

    Accepted without effect: the other kernels, chunk_size (the kernels choose), autocast_kernel_dtype (autocast's own
    dtype counts), norm_reduction_force_float32 (norms always reduce in float32 at least).
    """

    embedding_dim: int
    num_heads: int
    num_blocks: int
    vocab_size: int
    use_bias: bool = False
    norm_eps: float = 1e-6
    norm_reduction_force_float32: bool = ignored(True)
    add_out_norm: bool = True
    qk_dim_factor: float = 0.5
    v_dim_factor: float = 1.0
    chunkwise_kernel: str = "chunkwise--triton_limit_chunk"
    sequence_kernel: str = ignored("native_sequence__triton")
    step_kernel: str = ignored("triton")
    mode: str = "train"
    chunk_size: int = ignored(64)
    return_last_states: bool = False
    autocast_kernel_dtype: str = ignored("bfloat16")
    eps: float = 1e-6
    inference_state_dtype: str = "float32"
    ffn_proj_factor: float = 2.6667
    ffn_round_up_to_multiple_of: int = 64
    gate_soft_cap: float | None = 15.0
    output_logit_soft_cap: float | None = 30.0
    weight_mode: str = "single"

    @property
    def qk_dim(self) -> int:
        return int(self.embedding_dim * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        return int(self.embedding_dim * self.v_dim_factor)

    @property
    def ffn_dim(self) -> int:
        return ffn_width(self.embedding_dim, self.ffn_proj_factor, self.ffn_round_up_to_multiple_of)

    @property
    def input_gate(self) -> str:
        """Of `functional.mlstm`: "exp" or "sigmoid"."""
        return input_gate_of(self.chunkwise_kernel)

    @property
    def state_dtype(self) -> torch.dtype | None:
        """The dtype of C in a returned state; None: as it is computed."""
        return getattr(torch, self.inference_state_dtype) if self.mode == "inference" else None

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""
        name = type(self).__name__
        for field in (*SIZES, "ffn_round_up_to_multiple_of", *FACTORS):
            value = getattr(self, field)
            require(0 < value < math.inf, f"{name}: {field} must be positive and finite, got {value}")
        for field in FACTORS:
            require_width(name, field, getattr(self, field), self.embedding_dim)
        for field, factor in (("qk_dim", self.qk_dim_factor), ("v_dim", self.v_dim_factor)):
            width = getattr(self, field)
            require(
                width > 0 and width % self.num_heads == 0,
                f"{name}: num_heads must divide the width {width} (embedding_dim {self.embedding_dim} times "
                f"{field}_factor {factor}), got {self.num_heads}",
            )
        for field in SOFT_CAPS:
            value = getattr(self, field)
            allowed = value is None or 0 < value < math.inf  # infinity would be inf * 0 = NaN, not no cap
            require(allowed, f"{name}: {field} must be None or positive and finite, got {value}")
        for field in EPSILONS:
            value = getattr(self, field)
            require(0 <= value < math.inf, f"{name}: {field} must be finite and >= 0, got {value}")
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            require(value in choices, f"{name}: {field} must be one of {', '.join(choices)}, got {value!r}")
