"""A stack of mLSTM and sLSTM blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .blocks import mLSTMBlock, mLSTMBlockConfig, sLSTMBlock, sLSTMBlockConfig, xLSTMBlock
from .checkpointing import ActivationCheckpointing
from .config import Config, check_config, hand_down, require
from .inputs import check_input, check_reset, check_tokens, step_flag
from .loading import CheckedLoading
from .norms import LayerNorm
from .rows import document_ends
from .slstm_layer import sLSTMCell
from .states import StackState
from .tracing import leaf_call

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class xLSTMBlockStackConfig(Config):
    """num_blocks blocks: sLSTM at the positions `slstm_at` (from 0; "all"), mLSTM elsewhere.

    embedding_dim, dropout, and for mLSTM bias, are set in copies of the block configs. Without mlstm_block all blocks
    are sLSTM. context_length is kept for compatibility: any length works.
    bidirectional: every second block, the one at position 1 and so on, reads from the last token to the first, as in
    Vision-LSTM (arXiv 2406.04303): an encoder, which takes and returns no state.
    Raises ValueError for positions out of range, a missing block config, and sizes that do not divide.
    """

    mlstm_block: mLSTMBlockConfig | None = None
    slstm_block: sLSTMBlockConfig | None = None

    context_length: int = -1
    num_blocks: int = 1
    embedding_dim: int = 128
    add_post_blocks_norm: bool = True
    bias: bool = False
    dropout: float = 0.0
    slstm_at: Sequence[int] | str = field(default_factory=list)
    bidirectional: bool = False

    _block_map: str | None = None
    # slstm_at where it was "all", which goes on to hold
    _all_positions: list[int] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = type(self).__name__
        require(self.num_blocks >= 0, f"{name}: num_blocks must be >= 0, got {self.num_blocks}")
        require(self.embedding_dim > 0, f"{name}: embedding_dim must be positive, got {self.embedding_dim}")
        for field_name, kind in (("mlstm_block", mLSTMBlockConfig), ("slstm_block", sLSTMBlockConfig)):
            value = getattr(self, field_name)
            given = f"{type(value).__module__}.{type(value).__name__}"  # theirs has the same name
            expected = f"{kind.__module__}.{kind.__name__}"
            accepted = value is None or isinstance(value, kind)
            require(accepted, f"{name}: {field_name} must be {expected} or None, got {given}")
        self.slstm_at = self._positions()
        self._own_blocks()
        if self.mlstm_block is not None:
            hand_down(self, self.mlstm_block.mlstm, "embedding_dim", "dropout", "bias", "context_length")
        if self.slstm_block is not None:
            hand_down(self, self.slstm_block.slstm, "embedding_dim", "dropout")
        self._block_map = ",".join(str(kind) for kind in self.block_map)
        for block in (self.mlstm_block, self.slstm_block):
            if block is not None:
                block._num_blocks = self.num_blocks
                block.__post_init__()
                block.check()

    def _own_blocks(self) -> None:
        """Copies the nested configs, which others may use too; once, so that who holds one of the copies can set it."""
        own = self.__dict__.get("_own", (None, None))
        if own[0] is not self.mlstm_block or own[1] is not self.slstm_block:
            self.mlstm_block, self.slstm_block = deepcopy(self.mlstm_block), deepcopy(self.slstm_block)
            self.__dict__["_own"] = self.mlstm_block, self.slstm_block

    def _positions(self) -> list[int]:
        """`slstm_at` as a list, checked."""
        name = type(self).__name__
        said_all = self.slstm_at in ("all", self._all_positions)
        everywhere = said_all or self.mlstm_block is None
        if isinstance(self.slstm_at, str):
            require(
                self.slstm_at == "all", f"{name}: slstm_at must be a list of positions or 'all', got {self.slstm_at!r}"
            )
        given: Any = range(self.num_blocks) if everywhere else self.slstm_at
        whole = isinstance(given, Sequence) and all(isinstance(p, int) for p in given)
        require(whole, f"{name}: slstm_at must be a list of positions or 'all', got {self.slstm_at!r}")
        positions = sorted(set(given))
        for position in positions:
            require(
                0 <= position < self.num_blocks,
                f"{name}: slstm_at must hold positions from 0 to {self.num_blocks - 1}, got {position}",
            )
        require(not positions or self.slstm_block is not None, f"{name}: slstm_block is needed for the sLSTM blocks")
        self._all_positions = list(positions) if said_all else None
        return positions

    @property
    def block_map(self) -> list[int]:
        """For each block 1 where it is an sLSTM block, 0 where it is an mLSTM block."""
        return [int(position in self.slstm_at) for position in range(self.num_blocks)]

    @classmethod
    def from_ratio(cls, ratio: str, num_blocks: int, **fields: Any) -> Self:
        """The paper's xLSTM[a:b]: of every a + b consecutive blocks the first a are mLSTM and the last b sLSTM.

        "7:1" with 16 blocks gives slstm_at = [7, 15]; "1:0" only mLSTM blocks, "0:1" only sLSTM blocks. Models whose
        sLSTM blocks were placed by hand need slstm_at.
        `fields` are the other fields of the config; block configs default to those of the public code.
        Raises ValueError for a malformed ratio and a num_blocks that is not a multiple of a + b.
        """
        a, b = _parse_ratio(ratio)
        require(num_blocks % (a + b) == 0, f"from_ratio: num_blocks must be a multiple of {a + b}, got {num_blocks}")
        require("slstm_at" not in fields, "from_ratio: slstm_at follows from the ratio and cannot be given")
        if a:
            fields.setdefault("mlstm_block", mLSTMBlockConfig())
        if b:
            fields.setdefault("slstm_block", sLSTMBlockConfig())
        positions = [position for position in range(num_blocks) if position % (a + b) >= a]
        return cls(num_blocks=num_blocks, slstm_at=positions, **fields)


def _parse_ratio(ratio: str) -> tuple[int, int]:
    parts = ratio.split(":")
    require(
        len(parts) == 2 and all(p.isdecimal() for p in parts) and any(int(p) for p in parts),
        f"from_ratio: ratio must look like '7:1' (mLSTM to sLSTM blocks), got {ratio!r}",
    )
    return int(parts[0]), int(parts[1])


class xLSTMBlockStack(ActivationCheckpointing, CheckedLoading):
    """x (B, S, D), any S >= 0 -> (B, S, D). The state is the tuple of the blocks' states; None is the empty one."""

    blocks: Any  # ModuleList of xLSTMBlock

    def __init__(self, config: xLSTMBlockStackConfig) -> None:
        super().__init__()
        check_config(config, xLSTMBlockStackConfig)
        self.config = config
        self.blocks = nn.ModuleList(_block(config, index) for index in range(config.num_blocks))
        self.post_blocks_norm = LayerNorm(config.embedding_dim) if config.add_post_blocks_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        state: StackState | None = None,
        return_state: bool = False,
        *,
        reset: Tensor | None = None,
        is_step: bool = False,
    ) -> Tensor | tuple[Tensor, StackState]:
        """x (B, S, D) -> (B, S, D), and with return_state the state after the last token.

        reset: bool (B, S): the state of all blocks, the convolutions' windows included, is emptied before that token:
        documents packed in one row, each as if it were alone.
        is_step: a call of `step`: 1 to 16 tokens, the cheaper way, where there is no reset.
        Raises ValueError for an x, state or reset of the wrong shape, and for a state, also one to be returned, in a
        bidirectional stack: it reads rows as a whole. There `reset` also parts right padding from a row.
        """
        if (node := leaf_call(self, x, state, return_state, reset=reset, is_step=is_step)) is not None:
            return node
        check_input(x, self.config.embedding_dim)
        if self.config.bidirectional:
            require(state is None and not return_state, "a bidirectional stack reads whole rows: it has no state")
            return self.post_blocks_norm(self._both_ways(x, reset))
        following = []
        for block, block_state in zip(self._blocks_to_run(), self._states(state), strict=True):
            x = block(x, block_state, return_state, reset=reset, **step_flag(is_step))
            if return_state:
                x, block_state = x
                following.append(block_state)
        x = self.post_blocks_norm(x)
        return (x, tuple(following)) if return_state else x

    def _both_ways(self, x: Tensor, reset: Tensor | None) -> Tensor:
        check_reset(reset, x)
        backwards = None if reset is None else document_ends(reset).flip(1)
        for index, block in enumerate(self._blocks_to_run()):
            x = block(x.flip(1), reset=backwards).flip(1) if index % 2 else block(x, reset=reset)
        return x

    def step(self, x: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """1 to 16 tokens: x (B, S, D) -> (B, S, D) and the state after them. `state` stays as it is."""
        check_tokens(x)
        following: tuple[Tensor, StackState] = self(x, state, True, is_step=True)
        return following

    def _states(self, state: StackState | None) -> StackState | tuple[None, ...]:
        if state is None:
            return (None,) * len(self.blocks)
        if not isinstance(state, (tuple, list)):
            raise TypeError(f"state must be None or a tuple of block states, got {type(state).__name__}")
        require(len(state) == len(self.blocks), f"state must hold {len(self.blocks)} block states, got {len(state)}")
        return state

    def own_layout(self, state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """The state dict with the recurrent kernels of all sLSTM layers as they are kept here."""
        found = dict(state_dict)
        for name, module in self.named_modules():
            if isinstance(module, sLSTMCell):
                found.update(module.own_layout(state_dict, f"{prefix}{name}."))
        return found

    def reset_parameters(self) -> None:
        for block in self.blocks:
            block.reset_parameters()
        if isinstance(self.post_blocks_norm, LayerNorm):
            self.post_blocks_norm.reset_parameters()


def _block(config: xLSTMBlockStackConfig, index: int) -> xLSTMBlock:
    """The block at position `index`, with a config of its own."""
    block = deepcopy(config.slstm_block if config.block_map[index] else config.mlstm_block)
    assert block is not None  # checked by the config
    block._block_idx = index
    return sLSTMBlock(block) if isinstance(block, sLSTMBlockConfig) else mLSTMBlock(block)
