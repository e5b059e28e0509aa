"""Residual blocks of the xLSTM paper (arXiv 2405.04517, figures 10 and 11): pre-norm, layer, skip connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .config import Config, check_config, hand_down
from .feedforward import FeedForwardConfig, GatedFeedForward
from .inputs import check_input, check_tokens, step_flag
from .mlstm_layer import mLSTMLayer, mLSTMLayerConfig
from .norms import LayerNorm
from .slstm_layer import sLSTMLayer, sLSTMLayerConfig
from .states import LayerState
from .tracing import leaf_call


@dataclass
class mLSTMBlockConfig(Config):
    mlstm: mLSTMLayerConfig = field(default_factory=mLSTMLayerConfig)

    _num_blocks: int | None = None
    _block_idx: int | None = None

    def __post_init__(self) -> None:
        self.mlstm._num_blocks, self.mlstm._block_idx = self._num_blocks, self._block_idx

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""
        self.mlstm.check()


@dataclass
class sLSTMBlockConfig(Config):
    """feedforward None: a block without feed-forward network."""

    slstm: sLSTMLayerConfig = field(default_factory=sLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = field(default_factory=FeedForwardConfig)

    _num_blocks: int | None = None
    _block_idx: int | None = None

    def __post_init__(self) -> None:
        self.slstm._num_blocks, self.slstm._block_idx = self._num_blocks, self._block_idx
        if self.feedforward is not None:
            hand_down(self.slstm, self.feedforward, "embedding_dim")
            self.feedforward._num_blocks = self._num_blocks

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""
        self.slstm.check()
        if self.feedforward is not None:
            self.feedforward.check()


class xLSTMBlock(nn.Module):
    """x + layer(norm(x)), then, where there is a feed-forward network, x + ffn(norm(x)). The state is the layer's."""

    xlstm: Any  # mLSTMLayer or sLSTMLayer
    ffn_norm: Any
    ffn: Any

    def __init__(self, dim: int, layer: mLSTMLayer | sLSTMLayer, feedforward: FeedForwardConfig | None) -> None:
        super().__init__()
        self.dim = dim
        self.xlstm_norm = LayerNorm(dim)
        self.xlstm = layer
        self.ffn_norm = None if feedforward is None else LayerNorm(dim)
        self.ffn = None if feedforward is None else GatedFeedForward(feedforward)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        return_state: bool = False,
        *,
        reset: Tensor | None = None,
        is_step: bool = False,
    ) -> Tensor | tuple[Tensor, LayerState]:
        """x (B, S, D) -> (B, S, D), and with return_state the state after the last token.

        reset: bool (B, S): the state, the convolution's window included, is emptied before that token.
        is_step: a call of `step`: 1 to 16 tokens, the cheaper way, where there is no reset.
        Raises ValueError for an x, state or reset of the wrong shape.
        """
        if (node := leaf_call(self, x, state, return_state, reset=reset, is_step=is_step)) is not None:
            return node
        check_input(x, self.dim)
        y = self.xlstm(self.xlstm_norm(x), state, return_state, reset=reset, **step_flag(is_step))
        if not return_state:
            return self._feedforward(x + y)
        y, following = y
        return self._feedforward(x + y), following

    def step(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """1 to 16 tokens: x (B, S, D) -> (B, S, D) and the state after them. `state` stays as it is."""
        check_tokens(x)
        following: tuple[Tensor, LayerState] = self(x, state, True, is_step=True)
        return following

    def _feedforward(self, x: Tensor) -> Tensor:
        if self.ffn is not None:
            x = x + self.ffn(self.ffn_norm(x))
        return x

    def reset_parameters(self) -> None:
        for module in (self.xlstm_norm, self.xlstm, self.ffn_norm, self.ffn):
            if module is not None:
                module.reset_parameters()


class mLSTMBlock(xLSTMBlock):
    def __init__(self, config: mLSTMBlockConfig) -> None:
        check_config(config, mLSTMBlockConfig)
        super().__init__(config.mlstm.embedding_dim, mLSTMLayer(config.mlstm), None)
        self.config = config


class sLSTMBlock(xLSTMBlock):
    def __init__(self, config: sLSTMBlockConfig) -> None:
        check_config(config, sLSTMBlockConfig)
        super().__init__(config.slstm.embedding_dim, sLSTMLayer(config.slstm), config.feedforward)
        self.config = config
