"""multihead_norm_gate: from its arguments to the ops."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from xlstm_cuda import _autocast, _checks, _onnx, reference
from xlstm_cuda._autograd import MultiheadNormGate
from xlstm_cuda._backend import in_onnx_graph, resolve
from xlstm_cuda.functional._calls import computed, exportable


class NormOptions(NamedTuple):
    """As the ops take them, in their order (csrc/core/norm.h)."""

    rms: bool
    sigmoid: bool
    eps: float
    weight_offset: float

    def plain(
        self,
        h: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        gate: Tensor | None,
        skip: Tensor | None,
        skip_weight: Tensor | None,
    ) -> tuple[Tensor, ...]:
        y = reference.multihead_norm_gate(
            *(h, weight, bias),
            gate=gate,
            gate_activation="sigmoid" if self.sigmoid else "silu",
            skip=skip,
            skip_weight=skip_weight,
            norm="rms" if self.rms else "layer",
            eps=self.eps,
            weight_offset=self.weight_offset,
        )
        return (y,)


def multihead_norm_gate(
    h: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    gate_activation: str = "silu",
    skip: Tensor | None = None,
    skip_weight: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    weight_offset: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Norm over each head of a cell's outputs, then weight, skip and output gate, in one pass.

        n = (h - mean(h)) / sqrt(var(h) + eps)        "layer", the mean of squares over D and not over D - 1
        n = h / sqrt(mean(h^2) + eps)                 "rms"
        y = (n (weight_offset + weight) + bias + skip_weight skip) act(gate)

    What is None is left out: without weight that is n itself, without skip_weight the skip as it is.

    Args:
        h: outputs of a cell (B, S, H, D), dtype T, each head normalised by itself over D.
        weight, bias: (H D,) or None.
        gate: (B, S, H D), dtype T, or None.
        gate_activation: "silu", act(g) = g sigmoid(g), or "sigmoid".
        skip: (B, S, H D), dtype T, or None.
        skip_weight: (H D,) or None; it needs skip.
        norm: "layer" or "rms".
        eps: finite and not negative.
        weight_offset: added to weight; 1 for weights that are kept as their difference from one.
        backend: see help(xlstm_cuda.functional).

    Returns:
        y (B, S, H D) of dtype T, contiguous.

    All of it is computed in A and rounded once. Autocast leaves it as it is: y has the dtype of h. Saved for backward:
    the inputs. Inf and NaN of a row stay in it, but for the gradients of the weights.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    op = "multihead_norm_gate"
    given = {"weight": weight, "bias": bias, "gate": gate, "skip": skip, "skip_weight": skip_weight}
    _checks.tensors(op, h=h, **{name: x for name, x in given.items() if x is not None})
    _checks.one_of(op, "gate_activation", gate_activation, ("silu", "sigmoid"))
    _checks.one_of(op, "norm", norm, ("layer", "rms"))
    _checks.multihead_norm_gate(h, weight, bias, gate, skip, skip_weight, eps, weight_offset)
    namespace = resolve(op, backend, h.device, "multihead_norm_gate_fwd")
    if namespace is None:
        if in_onnx_graph(backend):
            h = _onnx.dense(h)
        with _autocast.disabled(h.device.type):
            return reference.multihead_norm_gate(
                *(h, weight, bias),
                gate=gate,
                gate_activation=gate_activation,
                skip=skip,
                skip_weight=skip_weight,
                norm=norm,
                eps=eps,
                weight_offset=weight_offset,
            )
    options = NormOptions(norm == "rms", gate_activation == "sigmoid", float(eps), float(weight_offset))
    (y,) = _normed(namespace, options, (h, weight, bias, gate, skip, skip_weight))
    return y


_normed = exportable("multihead_norm_gate_fwd", NormOptions, partial(computed, MultiheadNormGate))
