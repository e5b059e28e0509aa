"""The mLSTM layer of the xLSTM paper (arXiv 2405.04517, figure 11): an mLSTM block without norm and residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _autocast, functional
from .._children import call, is_ordinary, is_plain, only_forward
from .._states import MLSTMState
from .config import UpProjectionConfig, check_config, require
from .conv import CausalConv1d
from .gates import GateLinear, joined_gates
from .init import linspace_, small_init_, wang_init_
from .inputs import check_input, check_reset, layer_state, step_flag
from .layer import RecurrentLayer
from .linear import mapped
from .linear_headwise import LinearHeadwise, headwise_maps
from .norms import MultiHeadLayerNorm, widest
from .states import MLSTMLayerState


@dataclass
class mLSTMLayerConfig(UpProjectionConfig):
    """Inner width I = proj_factor embedding_dim, rounded up to a multiple of 64. The stack sets the fields from
    embedding_dim on. context_length is kept for compatibility: any length works."""

    proj_factor: float = 2.0
    conv1d_kernel_size: int = 4
    qkv_proj_blocksize: int = 4
    num_heads: int = 4

    embedding_dim: int = -1
    bias: bool = False
    dropout: float = 0.0
    context_length: int = -1

    _num_blocks: int | None = 1
    _block_idx: int | None = None

    @property
    def inner_dim(self) -> int:
        return self.rounded_width(self.embedding_dim)

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""
        name = type(self).__name__
        require(self.embedding_dim > 0, f"{name}: embedding_dim must be positive, got {self.embedding_dim}")
        require(self.num_heads > 0, f"{name}: num_heads must be positive, got {self.num_heads}")
        require(
            self.conv1d_kernel_size > 0, f"{name}: conv1d_kernel_size must be positive, got {self.conv1d_kernel_size}"
        )
        require(self.inner_dim > 0, f"{name}: inner width is 0 for proj_factor {self.proj_factor}")
        for field in ("num_heads", "qkv_proj_blocksize"):
            divisor = getattr(self, field)
            require(
                divisor > 0 and self.inner_dim % divisor == 0,
                f"{name}: {field} must divide the inner width {self.inner_dim} "
                f"(embedding_dim {self.embedding_dim} times proj_factor, rounded), got {divisor}",
            )


class mLSTMCell(nn.Module):
    """Gates, mLSTM and norm over the heads; q, k, v (B, S, I) -> (B, S, I)."""

    def __init__(self, dim: int, num_heads: int, norm_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.igate = GateLinear(3 * dim, num_heads)
        self.fgate = GateLinear(3 * dim, num_heads)
        self.outnorm = MultiHeadLayerNorm(dim, bias=norm_bias)
        self.reset_parameters()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: MLSTMState | None,
        *,
        reset: Tensor | None = None,
        is_step: bool = False,
    ) -> tuple[Tensor, MLSTMState]:
        """is_step: 1 to 16 tokens, no reset."""
        h, state = self.before_norm(q, k, v, state, reset, is_step)
        return self.outnorm(h), state

    def before_norm(
        self, q: Tensor, k: Tensor, v: Tensor, state: MLSTMState | None, reset: Tensor | None, is_step: bool
    ) -> tuple[Tensor, MLSTMState]:
        """h (B, S, H, D) and the state."""
        if is_step:
            return self._step(q, k, v, state)
        i, f = self._gates(q, k, v)
        q, k, v = (self._heads(u).transpose(1, 2) for u in (q, k, v))  # (B, H, S, D)
        result = functional.mlstm(q, k, v, i, f, initial_state=state, return_state=True, reset=reset)
        h, state = cast(tuple[Tensor, MLSTMState], result)
        return h.transpose(1, 2), state

    def _step(self, q: Tensor, k: Tensor, v: Tensor, state: MLSTMState | None) -> tuple[Tensor, MLSTMState]:
        """One token goes without a sequence dimension, the cheaper call."""
        one = isinstance(q.shape[1], int) and q.shape[1] == 1  # where a graph is recorded it may be a symbol
        i, f = self._gates(q, k, v)
        q, k, v = (self._heads(u).transpose(1, 2) for u in (q, k, v))  # (B, H, S, D)
        if one:
            q, k, v, i, f = (x.squeeze(2) for x in (q, k, v, i, f))
        h, state = functional.mlstm_step(q, k, v, i, f, state)
        return h.unsqueeze(1) if one else h.transpose(1, 2), state

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, I) -> (B, S, H, D)."""
        return torch.unflatten(x, -1, (self.num_heads, -1))

    def _gates(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """i, f (B, H, S), at least float32: bfloat16 is too coarse for a bias of 3 to 6.

        The linear maps of concatenated q, k, v, without concatenating them where that is not needed.
        """
        if not is_plain(GateLinear, self.igate, self.fgate):
            x = torch.cat([q, k, v], dim=-1)
            return call(self.igate, x).mT, call(self.fgate, x).mT
        return joined_gates(self.igate, self.fgate, q, k, v)

    def reset_parameters(self) -> None:
        self.outnorm.reset_parameters()
        nn.init.zeros_(self.fgate.weight)
        linspace_(self.fgate.bias, 3.0, 6.0)
        nn.init.zeros_(self.igate.weight)
        nn.init.normal_(self.igate.bias, std=0.1)


class GatedMLSTM(nn.Module):
    """What mLSTM layers have in common: up-projection to two branches, one through a convolution and the mLSTM, the
    other gating it, down-projection.

    conv: makes the convolution, a module of inner width I that is called `conv_name`, with `reset_parameters`.
    """

    def __init__(
        self,
        config: mLSTMLayerConfig,
        conv_name: str,
        conv: Callable[[int], nn.Module],
        norm_bias: bool = False,
    ) -> None:
        super().__init__()
        check_config(config, mLSTMLayerConfig)
        self.config = config
        dim, inner = config.embedding_dim, config.inner_dim
        blocks = inner // config.qkv_proj_blocksize
        self.proj_up = nn.Linear(dim, 2 * inner, bias=config.bias)
        self.q_proj = LinearHeadwise(inner, blocks, bias=config.bias)
        self.k_proj = LinearHeadwise(inner, blocks, bias=config.bias)
        self.v_proj = LinearHeadwise(inner, blocks, bias=config.bias)
        self.add_module(conv_name, conv(inner))
        self.mlstm_cell = mLSTMCell(inner, config.num_heads, norm_bias)
        self.learnable_skip = nn.Parameter(torch.ones(inner))
        self.proj_down = nn.Linear(inner, dim, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self._conv_name = conv_name
        self.reset_parameters()

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, S, D) -> (B, S, I) of the mLSTM branch and of the gating one."""
        u, z = mapped(self.proj_up, x).chunk(2, dim=-1)
        return u, z

    def mixed(
        self,
        u: Tensor,
        conv: Tensor,
        z: Tensor,
        state: MLSTMState | None = None,
        reset: Tensor | None = None,
        is_step: bool = False,
    ) -> tuple[Tensor, MLSTMState]:
        """The branches and the convolution of the first one, (B, S, I) each -> (B, S, D) and the cell's state."""
        q, k = self._queries_and_keys(conv)
        v = self.v_proj(u)
        cell = self.mlstm_cell
        if only_forward(mLSTMCell, cell) and is_plain(MultiHeadLayerNorm, cell.outnorm):
            h, state = cell.before_norm(q, k, v, state, reset, is_step)
            h = self._normed_and_gated(h, conv, z)
        else:
            h, state = cell(q, k, v, state, reset=reset, **step_flag(is_step))
            h = (h + self.learnable_skip * conv) * F.silu(z)
        return self.dropout(mapped(self.proj_down, h)), state

    def _queries_and_keys(self, conv: Tensor) -> list[Tensor]:
        """Two maps of the same features."""
        maps = self.q_proj, self.k_proj
        return headwise_maps(conv, *maps) if is_plain(LinearHeadwise, *maps) else [child(conv) for child in maps]

    def _normed_and_gated(self, h: Tensor, conv: Tensor, z: Tensor) -> Tensor:
        """h (B, S, H, D) -> (B, S, I); in one pass where all of it has one dtype, or the projection rounds to it."""
        norm, skip = self.mlstm_cell.outnorm, self.learnable_skip
        weight = cast(Tensor, norm.weight)
        wide = widest(h.dtype, weight, norm.bias, skip)
        rounded = _autocast.enabled(h.device.type) and is_plain(nn.Linear, self.proj_down)
        if is_ordinary(skip) and h.dtype == conv.dtype == z.dtype and (wide == h.dtype or rounded):
            return norm.gated(h, conv, skip, z)
        return (norm(h) + skip * conv) * F.silu(z)

    def reset_parameters(self) -> None:
        dim = self.config.embedding_dim
        small_init_(self.proj_up.weight, dim)
        wang_init_(self.proj_down.weight, dim, self.config._num_blocks)
        for linear in (self.proj_up, self.proj_down):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for headwise in (self.q_proj, self.k_proj, self.v_proj):
            headwise.reset_parameters(dim)
        nn.init.ones_(self.learnable_skip)
        getattr(self, self._conv_name).reset_parameters()
        self.mlstm_cell.reset_parameters()


class mLSTMLayer(GatedMLSTM, RecurrentLayer[MLSTMLayerState]):
    """Up-projection to two branches, one through convolution and mLSTM, the other gating it, down-projection.

    x (B, S, D), any S >= 0 -> (B, S, D). The state is an `MLSTMLayerState`; None is the empty one.
    """

    conv1d: CausalConv1d

    def __init__(self, config: mLSTMLayerConfig) -> None:
        check_config(config, mLSTMLayerConfig)
        super().__init__(config, "conv1d", lambda inner: CausalConv1d(inner, config.conv1d_kernel_size))

    def _run(
        self, x: Tensor, state: MLSTMLayerState | None, reset: Tensor | None, is_step: bool
    ) -> tuple[Tensor, MLSTMLayerState]:
        check_input(x, self.config.embedding_dim)
        check_reset(reset, x)
        conv_state, cell_state = layer_state(state)
        u, z = self.branches(x)
        conv, conv_state = self.conv1d(u, conv_state, reset=reset, activation="silu")
        y, cell_state = self.mixed(u, conv, z, cell_state, reset, is_step and reset is None)
        return y, MLSTMLayerState(conv_state, cell_state)
