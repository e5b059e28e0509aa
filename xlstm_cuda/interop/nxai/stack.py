"""The modules around the cells of the public `xlstm` package: `forward` takes and returns the states that `step` does.

The state of a stack, and of a model, is a dict "block_0", "block_1", ... of the layers' states, each a dict of
conv_state and mlstm_state or slstm_state (cells.py); None is the empty state. `forward` and `step` may follow each
other in any order. A `forward` without states is theirs, but for the mLSTM layer, which computes children together
where nothing hooks or replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from torch import Tensor, nn
from xlstm.blocks.mlstm.block import mLSTMBlock
from xlstm.blocks.mlstm.layer import mLSTMLayer
from xlstm.blocks.slstm.block import sLSTMBlock
from xlstm.blocks.xlstm_block import xLSTMBlock
from xlstm.components.feedforward import GatedFeedForward, get_act_fn
from xlstm.xlstm_block_stack import xLSTMBlockStack
from xlstm.xlstm_lm_model import xLSTMLMModel

from ... import _autocast, functional
from ..._children import is_ordinary, is_plain, only_forward
from ...nn.feedforward import gated
from ...nn.linear import mapped
from ...nn.linear_headwise import for_kernels
from .cells import PatchedCausalConv1d, PatchedLinearHeadwise, PatchedMLSTMCell, PatchedMultiHeadLayerNorm
from .states import check_stack_state, output_and_state

LayerState: TypeAlias = dict[str, Any]
StackState: TypeAlias = dict[str, LayerState]


class PatchedMLSTMLayer(mLSTMLayer):
    def forward(
        self,
        x: Tensor,
        mlstm_state: tuple[Tensor, Tensor, Tensor] | None = None,
        conv_state: tuple[Tensor] | None = None,
        return_last_state: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, LayerState]:
        """x (B, S, D) -> (B, S, D), with return_last_state also the state after the last token."""
        with_states = mlstm_state is not None or conv_state is not None or return_last_state
        inner, z = mapped(self.proj_up, x).chunk(2, dim=-1)
        conv, conv_state = self._convolved(inner, conv_state, with_states)
        q, k = self._queries_and_keys(conv)
        h, mlstm_state = self._cell_and_gate(q, k, self.v_proj(inner), conv, z, mlstm_state, with_states)
        y: Tensor = self.dropout(mapped(self.proj_down, h))
        return (y, {"mlstm_state": mlstm_state, "conv_state": conv_state}) if return_last_state else y

    def _convolved(self, x: Tensor, state: tuple[Tensor] | None, with_states: bool) -> tuple[Tensor, Any]:
        options: dict[str, Any] = {"conv_state": state, "return_last_state": True} if with_states else {}
        joined = only_forward(PatchedCausalConv1d, self.conv1d) and only_forward(nn.SiLU, self.conv_act_fn)
        if joined:
            options["activation"] = "silu"
        result = self.conv1d(x, **options)
        conv, state = result if with_states else (result, None)
        return conv if joined else self.conv_act_fn(conv), state

    def _queries_and_keys(self, conv: Tensor) -> Sequence[Tensor]:
        """Two maps of the same features, in one pass where nothing else is to be done."""
        maps = self.q_proj, self.k_proj
        if not (is_plain(PatchedLinearHeadwise, *maps) and for_kernels(conv, *maps)):
            return [child(conv) for child in maps]
        weights, biases = [child.weight for child in maps], [child.bias for child in maps]
        return cast(tuple[Tensor, ...], functional.headwise_linear(conv, weights, biases))

    def _cell_and_gate(
        self, q: Tensor, k: Tensor, v: Tensor, conv: Tensor, z: Tensor, state: Any, with_states: bool
    ) -> tuple[Tensor, Any]:
        """What goes into the down-projection, and the state."""
        cell, skip = self.mlstm_cell, self.learnable_skip
        if only_forward(PatchedMLSTMCell, cell) and self._is_gated_at_once(conv, z):
            h, state = cell.before_norm(q, k, v, state)
            if h.dtype == conv.dtype:
                return cell.outnorm.gated(h, gate=z, skip=conv, skip_weight=skip), state
            h = cell.outnorm(h).transpose(1, 2).flatten(2)
        elif with_states:
            h, state = output_and_state(cell, cell(q=q, k=k, v=v, mlstm_state=state, return_last_state=True))
        else:
            h = cell(q=q, k=k, v=v)
        return (h + skip * conv) * self.ogate_act_fn(z), state

    def _is_gated_at_once(self, conv: Tensor, z: Tensor) -> bool:
        """Whether norm, skip and gate are theirs, of one dtype, or the projection rounds to it."""
        norm, skip = self.mlstm_cell.outnorm, self.learnable_skip
        plain = is_plain(PatchedMultiHeadLayerNorm, norm) and only_forward(nn.SiLU, self.ogate_act_fn)
        if not (plain and is_ordinary(skip) and conv.dtype == z.dtype):
            return False
        rounded = _autocast.enabled(z.device.type) and is_plain(nn.Linear, self.proj_down)
        return rounded or all(x is None or x.dtype == z.dtype for x in (norm.weight, norm.bias, skip))


class _Block(nn.Module):
    xlstm_norm: nn.Module
    xlstm: nn.Module  # its sLSTMLayer knows states already
    ffn_norm: nn.Module | None
    ffn: nn.Module | None

    def forward(self, x: Tensor, return_last_state: bool = False, **kwargs: Any) -> Tensor | tuple[Tensor, LayerState]:
        """x (B, S, D) -> (B, S, D), with return_last_state also the layer's state after the last token.

        kwargs: the layer's state, conv_state and mlstm_state or slstm_state.
        """
        if not return_last_state:
            y: Tensor = super().forward(x, **kwargs)
            return y
        y, after = output_and_state(self.xlstm, self.xlstm(self.xlstm_norm(x), return_last_state=True, **kwargs))
        x = x + y
        if self.ffn is not None and self.ffn_norm is not None:
            x = x + self.ffn(self.ffn_norm(x))
        return x, after


class PatchedXLSTMBlock(_Block, xLSTMBlock):
    pass


class PatchedMLSTMBlock(_Block, mLSTMBlock):
    pass


class PatchedSLSTMBlock(_Block, sLSTMBlock):
    pass


class PatchedGatedFeedForward(GatedFeedForward):
    """Can be pickled, also with an activation that is a lambda in their table."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y: Tensor = self.dropout(mapped(self.proj_down, gated(mapped(self.proj_up, x), act_fn=self.act_fn)))
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "act_fn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.act_fn = get_act_fn(self.config.act_fn)


class PatchedXLSTMBlockStack(xLSTMBlockStack):
    def forward(
        self, x: Tensor, state: StackState | None = None, return_last_state: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, StackState]:
        """x (B, S, D) -> (B, S, D), with return_last_state also the state after the last token."""
        if state is None and not return_last_state:
            y: Tensor = super().forward(x, **kwargs)
            return y
        check_stack_state(state, self.blocks)
        after: StackState = {}
        for index, block in enumerate(self.blocks):
            name = f"block_{index}"
            result = block(x, return_last_state=True, **(state or {}).get(name, {}))
            x, after[name] = output_and_state(block, result)
        x = self.post_blocks_norm(x)
        return (x, after) if return_last_state else x

    def step(self, x: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """One token: x (B, 1, D). Theirs overwrites the given state, this one leaves it alone."""
        check_stack_state(state, self.blocks)
        y: tuple[Tensor, StackState] = super().step(x, dict(state or {}))
        return y


class PatchedXLSTMLMModel(xLSTMLMModel):
    def forward(
        self, idx: Tensor, state: StackState | None = None, return_last_state: bool = False
    ) -> Tensor | tuple[Tensor, StackState]:
        """ids (B, S) -> logits (B, S, V), with return_last_state also the state after the last token, for `step`."""
        if state is None and not return_last_state:
            logits: Tensor = super().forward(idx)
            return logits
        x = self.emb_dropout(self.token_embedding(idx))
        x, after = self.xlstm_block_stack(x, state=state, return_last_state=True)
        logits = mapped(self.lm_head, x)
        return (logits, after) if return_last_state else logits


PATCHED: dict[type, type] = {
    mLSTMLayer: PatchedMLSTMLayer,
    GatedFeedForward: PatchedGatedFeedForward,
    xLSTMBlock: PatchedXLSTMBlock,
    mLSTMBlock: PatchedMLSTMBlock,
    sLSTMBlock: PatchedSLSTMBlock,
    xLSTMBlockStack: PatchedXLSTMBlockStack,
    xLSTMLMModel: PatchedXLSTMLMModel,
}
