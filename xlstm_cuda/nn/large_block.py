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
    fused = layer.config.weight_mode == "fused"
    norms, gates, maps = _children(block, fused)
    plain = is_plain(classes.norm, *norms) and is_plain(classes.multihead_norm, layer.multihead_norm)
    if not (plain and is_plain(classes.gate, *gates) and is_plain(nn.Linear, *maps)):
        return None
    epsilons = {norm.eps for norm in (*norms, layer.multihead_norm)}
    biased = any(child.bias is not None for child in (*norms, layer.multihead_norm, *maps))
    if biased or len(epsilons) != 1 or any(gate.bias is None for gate in gates):
        return None
    weights = _weights(norms, gates, maps, layer.multihead_norm, fused)
    if not takes_large_block_step(x, weights, state):
        return None
    options: dict[str, Any] = {"norm_eps": epsilons.pop(), "eps": eps, "cap": layer.config.gate_soft_cap}
    return large_block_step(x, weights, state, input_gate=input_gate, **options)


def _children(block: Any, fused: bool) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Norms over the width, maps of the gates, and the other maps in the order in which they are used."""
    layer, ffn = block.mlstm_layer, block.ffn
    norms = block.norm_mlstm, block.norm_ffn
    if fused:
        return norms, (layer.ifgate_preact,), (layer.qkv_opreact, layer.out_proj, ffn.proj_up_gate_z, ffn.proj_down)
    gates = layer.igate_preact, layer.fgate_preact
    projections = layer.q, layer.k, layer.v, layer.ogate_preact
    return norms, gates, (*projections, layer.out_proj, ffn.proj_up_gate, ffn.proj_up, ffn.proj_down)


def _weights(norms: Any, gates: Any, maps: Any, multihead_norm: Any, fused: bool) -> tuple[Tensor | None, ...]:
    """In the order of `large_block_step`."""
    w = [child.weight for child in maps]
    gate = [parameter for child in gates for parameter in (child.weight, child.bias)]
    if fused:
        qkvo, out_proj, up, down = w
        projections, gate, ups = (qkvo, None, None, None), [*gate, None, None], (up, None)
    else:
        *projections, out_proj, up_gate, up, down = w  # type: ignore[assignment]
        ups = (up_gate, up)
    before = norms[0].weight, *projections, *gate, multihead_norm.weight, out_proj
    return (*before, norms[1].weight, *ups, down)
