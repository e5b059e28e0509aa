"""Checks of the states that patched modules of the public `xlstm` package are given, and give to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from xlstm.blocks.mlstm.layer import mLSTMLayer
from xlstm.blocks.slstm.layer import sLSTMLayer


def output_and_state(module: nn.Module, result: Any) -> tuple[Tensor, Any]:
    """result, what `module` returned for return_last_state=True.

    Raises TypeError unless it is a pair: a class of the user's own need not know of states, and a tensor of two rows
    can be unpacked as well as a pair.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        own, got = type(module).__name__, type(result).__name__
        what = "take states and return (output, state) for return_last_state=True"
        raise TypeError(f"{own} is a class of your own, which patch leaves alone: its forward must {what}, got {got}")
    return result


def check_stack_state(state: Any, blocks: Sequence[Any]) -> None:
    """Raises unless state is None, empty, or holds the state of each block's layer, of its own kind."""
    if state is None:
        return
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a dict of the blocks' states, block_0 and so on, got {type(state).__name__}")
    names = [f"block_{index}" for index in range(len(blocks))]
    if state and set(state) != set(names):
        raise ValueError(
            f"state must hold {len(names)} blocks, {names[0]} to {names[-1]}, got {', '.join(map(str, state))}"
        )
    for name, block in zip(names, blocks, strict=True):
        of_block, kind = state.get(name, {}), _kind(getattr(block, "xlstm", None))
        if not isinstance(of_block, Mapping):
            raise TypeError(f"state[{name!r}] must be a dict, got {type(of_block).__name__}")
        if kind is not None and not set(of_block) <= {"conv_state", kind}:
            raise ValueError(f"state[{name!r}] must hold conv_state and {kind}, got {', '.join(map(str, of_block))}")


def _kind(layer: Any) -> str | None:
    if isinstance(layer, mLSTMLayer):
        return "mlstm_state"
    return "slstm_state" if isinstance(layer, sLSTMLayer) else None


def shapes(tensors: Any) -> str:
    """For messages: what was given in the place of a tensor or several."""
    if isinstance(tensors, Tensor):
        return str(tuple(tensors.shape))
    if isinstance(tensors, (tuple, list)):
        return "(" + ", ".join(map(shapes, tensors)) + ")"
    return type(tensors).__name__
