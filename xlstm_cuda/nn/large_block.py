"""One decode step of a block of xLSTM 7B, where all of its children are plain: one op, for many small ones.

The blocks of `xlstm_cuda.models`, of the package `xlstm` and of transformers have children of the same names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from .._children import is_plain, only_forward
from .._states import MLSTMState
from ..functional._large_block import large_block_step, takes_large_block_step


class BlockClasses(NamedTuple):
    """Of a block's children: only what `forward` of these does is computed."""

    layer: type[nn.Module]
    feed_forward: type[nn.Module]
    norm: type[nn.Module]
    multihead_norm: type[nn.Module]
    gate: type[nn.Module]


def block_step(
    block: Any, classes: BlockClasses, x: Tensor, state: MLSTMState, *, eps: float, input_gate: str
) -> tuple[Tensor, MLSTMState] | None:
    """x (B, S, D) and a state -> what the block makes of them; None: the block has to be called part by part."""
    layer, ffn = block.mlstm_layer, block.ffn
    if not (only_forward(classes.layer, layer) and only_forward(classes.feed_forward, ffn)):
        return None
    found = _children(block, layer, ffn, fused=layer.config.weight_mode == "fused")
    norms, multihead_norm = (found.norm_mlstm, found.norm_ffn), found.multihead_norm
    maps = *found.projections, found.out_proj, *found.up, found.down
    plain = is_plain(classes.norm, *norms) and is_plain(classes.multihead_norm, multihead_norm)
    if not (plain and is_plain(classes.gate, *found.gates) and is_plain(nn.Linear, *maps)):
        return None
    without_bias = *norms, multihead_norm, *maps
    if any(child._parameters.get("bias") is not None for child in without_bias):
        return None
    if any(gate._parameters.get("bias") is None for gate in found.gates):
        return None
    if not norms[0].eps == norms[1].eps == multihead_norm.eps:
        return None
    weights = found.weights()
    if not takes_large_block_step(x, weights, state):
        return None
    options: dict[str, Any] = {"norm_eps": multihead_norm.eps, "eps": eps, "cap": layer.config.gate_soft_cap}
    return large_block_step(x, weights, state, input_gate=input_gate, **options)


class _Children(NamedTuple):
    norm_mlstm: Any
    projections: list[Any]
    gates: list[Any]
    multihead_norm: Any
    out_proj: Any
    norm_ffn: Any
    up: list[Any]
    down: Any

    def weights(self) -> tuple[Tensor | None, ...]:
        """In the order of `large_block_step`."""
        gates = [gate._parameters[name] for gate in self.gates for name in ("weight", "bias")]
        norm_mlstm, multihead_norm, out_proj, norm_ffn, down = (
            child._parameters["weight"]
            for child in (self.norm_mlstm, self.multihead_norm, self.out_proj, self.norm_ffn, self.down)
        )
        up, projections = ([child._parameters["weight"] for child in c] for c in (self.up, self.projections))
        if len(gates) == 2:  # fused
            projections, gates, up = [*projections, None, None, None], [*gates, None, None], [*up, None]
        return norm_mlstm, *projections, *gates, multihead_norm, out_proj, norm_ffn, *up, down


def _children(block: Any, layer: Any, ffn: Any, fused: bool) -> _Children:
    """Past nn.Module.__getattr__, which takes as long as all that is asked of the children."""
    of_block, of_layer, of_ffn = block._modules, layer._modules, ffn._modules
    projections, gates, up = ["qkv_opreact"], ["ifgate_preact"], ["proj_up_gate_z"]
    if not fused:
        projections, gates = ["q", "k", "v", "ogate_preact"], ["igate_preact", "fgate_preact"]
        up = ["proj_up_gate", "proj_up"]
    return _Children(
        of_block["norm_mlstm"],
        [of_layer[name] for name in projections],
        [of_layer[name] for name in gates],
        of_layer["multihead_norm"],
        of_layer["out_proj"],
        of_block["norm_ffn"],
        [of_ffn[name] for name in up],
        of_ffn["proj_down"],
    )
