"""The sLSTM layer of the xLSTM paper (arXiv 2405.04517, figure 10), up to the group norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import functional
from .._backend import in_onnx_graph
from .._children import is_plain
from .._states import SLSTMState
from .config import Config, check_config, ignored, require
from .conv import CausalConv1d
from .init import linspace_, powerlaw_, small_init_
from .inputs import check_input, check_reset, layer_state, step_flag
from .layer import RecurrentLayer
from .linear_headwise import LinearHeadwise
from .norms import MultiHeadLayerNorm
from .states import SLSTMLayerState

_BIAS_INITS = ("powerlaw_blockdependent", "small_init", "zeros", "standard")
_KERNEL_INITS = ("zeros", "standard")
_UNSUPPORTED = {
    "function": "slstm",
    "gradient_recurrent_cut": False,
    "gradient_recurrent_clipval": None,
    "forward_clipval": None,
}


@dataclass
class sLSTMLayerConfig(Config):
    """embedding_dim and dropout are set by the stack. conv1d_kernel_size 0: no convolution and no activation.

    The fields from backend on belong to the public code's kernels and have no effect here; `function` and the
    gradient and clipping options accept only their defaults.
    """

    embedding_dim: int = -1
    num_heads: int = 4
    conv1d_kernel_size: int = 4
    group_norm_weight: bool = True
    dropout: float = 0.0
    bias_init: str = "powerlaw_blockdependent"
    recurrent_weight_init: str = "zeros"

    function: str = "slstm"
    gradient_recurrent_cut: bool = False
    gradient_recurrent_clipval: float | None = None
    forward_clipval: float | None = None

    backend: str = ignored("cuda")
    hidden_size: int = ignored(-1)
    num_states: int = ignored(4)
    num_gates: int = ignored(4)
    batch_size: int = ignored(8)
    input_shape: str = ignored("BSGNH")
    internal_input_shape: str = ignored("SBNGH")
    output_shape: str = ignored("BNSH")
    constants: dict[str, Any] | None = ignored(None)
    dtype: str | None = ignored("bfloat16")
    dtype_b: str | None = ignored("float32")
    dtype_r: str | None = ignored(None)
    dtype_w: str | None = ignored(None)
    dtype_g: str | None = ignored(None)
    dtype_s: str | None = ignored(None)
    dtype_a: str | None = ignored(None)
    enable_automatic_mixed_precision: bool = ignored(True)
    initial_val: Any = ignored(0.0)

    _num_blocks: int | None = 1
    _block_idx: int | None = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field, names in (("bias_init", _BIAS_INITS), ("recurrent_weight_init", _KERNEL_INITS)):
            value = getattr(self, field)
            require(value in names, f"{name}: {field} must be one of {', '.join(names)}, got {value!r}")
        for field, only in _UNSUPPORTED.items():
            value = getattr(self, field)
            require(value == only, f"{name}: {field} must be {only!r}, got {value!r}")

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""
        name = type(self).__name__
        dim, heads = self.embedding_dim, self.num_heads
        require(dim > 0, f"{name}: embedding_dim must be positive, got {dim}")
        require(heads > 0 and dim % heads == 0, f"{name}: num_heads must divide embedding_dim {dim}, got {heads}")
        require(self.conv1d_kernel_size >= 0, f"{name}: conv1d_kernel_size must be >= 0, got {self.conv1d_kernel_size}")


class sLSTMCell(nn.Module):
    """sLSTM with its recurrent kernel and bias, gate order i, f, z, o.

    Both are kept and saved in the "cuda" layout of the public code: `_recurrent_kernel_` (H, D, 4 D), input unit by
    gate and output unit, and `_bias_` (H 4 D,), by head, gate and unit. State dicts in its "vanilla" layout, kernel
    (H, 4 D, D) and bias by gate, head and unit, are converted while loading.
    """

    _recurrent_kernel_: nn.Parameter
    _bias_: nn.Parameter

    def __init__(self, config: sLSTMLayerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads
        self.head_dim = config.embedding_dim // config.num_heads
        self._recurrent_kernel_ = nn.Parameter(torch.empty(self.num_heads, self.head_dim, 4 * self.head_dim))
        self._bias_ = nn.Parameter(torch.empty(4 * config.embedding_dim))
        self.reset_parameters()

    def forward(
        self, x: Tensor, state: SLSTMState | None, *, reset: Tensor | None = None, is_step: bool = False
    ) -> tuple[Tensor, SLSTMState]:
        """x (B, S, 4, H, D) -> (B, S, H, D). is_step: one token goes the cheaper way; no reset."""
        if is_step and isinstance(x.shape[1], int) and x.shape[1] == 1:
            h, state = functional.slstm_step(x.squeeze(1), *self._weights(), state)
            return h.unsqueeze(1), state
        result = functional.slstm(x, *self._weights(), initial_state=state, return_state=True, reset=reset)
        return cast(tuple[Tensor, SLSTMState], result)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """R (4, H, D, D), from unit last, and b (4, H, D)."""
        kernel = torch.unflatten(self._recurrent_kernel_, -1, (4, self.head_dim))  # (H, D in, 4, D out)
        return kernel.permute(2, 0, 3, 1), self._bias_by_head().transpose(0, 1)

    def _bias_by_head(self) -> Tensor:
        return self._bias_.view(self.num_heads, 4, self.head_dim)

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.config.embedding_dim)
        if self.config.recurrent_weight_init == "standard":
            nn.init.uniform_(self._recurrent_kernel_, -bound, bound)
        else:
            nn.init.zeros_(self._recurrent_kernel_)
        nn.init.zeros_(self._bias_)
        forget = self._bias_by_head().detach()[:, 1]
        match self.config.bias_init:
            case "standard":
                nn.init.uniform_(self._bias_, -bound, bound)
            case "small_init":
                linspace_(forget, 3.0, 6.0)
            case "powerlaw_blockdependent":
                powerlaw_(forget, self.config._block_idx, self.config._num_blocks)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.update(self.own_layout(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def own_layout(self, state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """What has to be replaced in a state dict of the "vanilla" layout: nothing if it has the other one."""
        kernel, bias = (state_dict.get(prefix + name) for name in ("_recurrent_kernel_", "_bias_"))
        if not isinstance(kernel, Tensor) or kernel.shape != (self.num_heads, 4 * self.head_dim, self.head_dim):
            return {}
        changes = {prefix + "_recurrent_kernel_": kernel.transpose(1, 2).contiguous()}
        if isinstance(bias, Tensor) and bias.numel() == self._bias_.numel():
            by_gate = bias.view(4, self.num_heads, self.head_dim)
            changes[prefix + "_bias_"] = by_gate.transpose(0, 1).flatten()
        return changes

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"


class sLSTMLayer(RecurrentLayer[SLSTMLayerState]):
    """Convolution, gates, sLSTM, group norm. x (B, S, D), any S >= 0 -> (B, S, D).

    The names of two parameters are exchanged, as in the public code, whose checkpoints depend on it: `fgate` feeds
    the input gate and `igate` the forget gate. Bias and recurrent kernel are not exchanged.
    The state is an `SLSTMLayerState`; None is the empty one.
    """

    def __init__(self, config: sLSTMLayerConfig) -> None:
        super().__init__()
        check_config(config, sLSTMLayerConfig)
        self.config = config
        dim, heads = config.embedding_dim, config.num_heads
        self.conv1d = CausalConv1d(dim, config.conv1d_kernel_size) if config.conv1d_kernel_size else None
        self.fgate = LinearHeadwise(dim, heads)
        self.igate = LinearHeadwise(dim, heads)
        self.zgate = LinearHeadwise(dim, heads)
        self.ogate = LinearHeadwise(dim, heads)
        self.slstm_cell = sLSTMCell(config)
        self.group_norm = MultiHeadLayerNorm(dim, weight=config.group_norm_weight)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def _run(
        self, x: Tensor, state: SLSTMLayerState | None, reset: Tensor | None, is_step: bool
    ) -> tuple[Tensor, SLSTMLayerState]:
        check_input(x, self.config.embedding_dim)
        check_reset(reset, x)
        conv_state, cell_state = layer_state(state)
        if self.conv1d is None:
            conv, conv_state = x, x.new_empty(x.shape[0], 0, x.shape[2])  # a view would keep x alive
        else:
            conv, conv_state = self.conv1d(x, conv_state, reset=reset, activation="silu")
        i_f = self._headwise(conv, self.fgate, self.igate)
        z_o = self._headwise(x, self.zgate, self.ogate)
        gates = torch.cat([i_f, z_o], dim=2)
        h, cell_state = self.slstm_cell(gates, cell_state, reset=reset, **step_flag(is_step and reset is None))
        return self.group_norm(self.dropout(h)), SLSTMLayerState(conv_state, cell_state)

    def _headwise(self, x: Tensor, *gates: LinearHeadwise) -> Tensor:
        """Several gates of the same input at once: (B, S, D) -> (B, S, len(gates), H, D / H)."""
        heads = (self.config.num_heads, -1)
        if not is_plain(LinearHeadwise, *gates):
            return torch.stack([gate(x) for gate in gates], 2).unflatten(-1, heads)
        weight = torch.cat([gate.weight for gate in gates], dim=1)  # (H, len(gates) D / H out, D / H in)
        if in_onnx_graph():
            y = cast(Tensor, functional.headwise_linear(x, weight)).unflatten(-1, heads)
        else:
            y = torch.einsum("bshd,hod->bsho", torch.unflatten(x, -1, heads), weight)
        return torch.unflatten(y, -1, (len(gates), -1)).transpose(2, 3)

    def reset_parameters(self) -> None:
        for gate in (self.igate, self.fgate, self.zgate, self.ogate):
            small_init_(gate.weight, self.config.embedding_dim)
        if self.conv1d is not None:
            self.conv1d.reset_parameters()
        self.slstm_cell.reset_parameters()
        self.group_norm.reset_parameters()
