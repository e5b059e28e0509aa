"""gated_activation and soft_cap: from their arguments to the ops."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from xlstm_cuda import _autocast, _checks, reference
from xlstm_cuda._autograd import GatedActivation, SoftCap
from xlstm_cuda._backend import resolve
from xlstm_cuda._ops import ACTIVATIONS
from xlstm_cuda.functional._calls import computed, exportable
from xlstm_cuda.functional._tokens import as_tokens


def gated_activation(
    x: Tensor, gate: Tensor | None = None, *, activation: str = "silu", backend: str | None = None
) -> Tensor:
    """The gate of a gated feed-forward network, in one pass: y = act(gate) x.

        "silu"         act(g) = g sigmoid(g)
        "gelu"         g P(g), P the distribution function of the normal distribution
        "gelu_tanh"    g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2
        "sigmoid"
        "relu"         max(g, 0)
        "relu^2"       max(g, 0)^2

    Args:
        x: (..., F), dtype T; without a gate (..., 2 F), and then its first half is the gate.
        gate: as x, or None.
        activation: one of those above.
        backend: see help(xlstm_cuda.functional).

    Returns:
        y (..., F) of dtype T, contiguous.

    All of it is computed in A and rounded once. Autocast leaves it as it is: y has the dtype of x. Saved for backward:
    the inputs. Inf and NaN stay in their elements; a gate of -inf gives 0 and slope 0 where torch's own silu and gelu
    give NaN, one of inf slope 1.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    op = "gated_activation"
    _checks.tensors(op, x=x, **({} if gate is None else {"gate": gate}))
    _checks.one_of(op, "activation", activation, tuple(ACTIVATIONS))
    _checks.gated_activation(x, gate)
    namespace = resolve(op, backend, x.device, "gated_activation_fwd")
    if namespace is None:
        with _autocast.disabled(x.device.type):
            return reference.gated_activation(x, gate, activation=activation)
    options = GatedOptions(ACTIVATIONS[activation])
    (y,) = _gated(namespace, options, (as_tokens(x), None if gate is None else as_tokens(gate)))
    return y.view(*x.shape[:-1], y.shape[-1])


def soft_cap(x: Tensor, cap: float, *, backend: str | None = None) -> Tensor:
    """cap tanh(x / cap): between -cap and cap, and nearly x where that is small beside cap.

    Args:
        x: any shape, dtype T.
        cap: a positive number that A can hold.
        backend: see help(xlstm_cuda.functional).

    Returns:
        The same shape and dtype, contiguous.

    It is computed in A and rounded once. The slope 1 / cosh(x / cap)^2 keeps its digits where tanh is nearly 1.
    Autocast leaves it as it is. Saved for backward: x.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    op = "soft_cap"
    _checks.tensors(op, x=x)
    _checks.soft_cap(x, cap)
    namespace = resolve(op, backend, x.device, "soft_cap_fwd")
    if namespace is None:
        with _autocast.disabled(x.device.type):
            return reference.soft_cap(x, cap)
    (y,) = _capped(namespace, CapOptions(float(cap)), (as_tokens(x),))
    return y.view(x.shape)


# Below the arguments.


class GatedOptions(NamedTuple):
    """What the ops take after their tensors."""

    activation: int  # of ACTIVATIONS

    def plain(self, x: Tensor, gate: Tensor | None) -> tuple[Tensor, ...]:
        (name,) = (name for name, number in ACTIVATIONS.items() if number == self.activation)
        return (reference.gated_activation(x, gate, activation=name),)


class CapOptions(NamedTuple):
    """What the ops take after their tensor."""

    cap: float

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return (reference.soft_cap(x, self.cap),)


_gated = exportable("gated_activation_fwd", GatedOptions, partial(computed, GatedActivation))
_capped = exportable("soft_cap_fwd", CapOptions, partial(computed, SoftCap))
