"""Functions that implementations compute in the place of the mLSTM with its exact gradients."""

from __future__ import annotations

from torch import Tensor

from xlstm_cuda import reference

from .calls import Claim
from .ops import Outputs, Tensors

OPEN = 1e4  # an input gate whose sigmoid is 1 and whose logsigmoid is 0, both exactly


def _with_constant_denominator(t: Tensors) -> Outputs:
    h = reference.mlstm_chunkwise(**t, norm_grad=False)
    assert isinstance(h, Tensor)
    return (h,)


def _decayed_linear_attention(t: Tensors) -> Outputs:
    """h_t = Dqk**-0.5 C_t^T q_t with C_t = sigmoid(f_t) C_{t-1} + k_t v_t^T."""
    i = t["i"].detach().new_full(t["i"].shape, OPEN)
    h = reference.mlstm_chunkwise(t["q"], t["k"], t["v"], i, t["f"], input_gate="sigmoid", normalize=False)
    assert isinstance(h, Tensor)
    return (h,)


def _causal_attention(t: Tensors) -> Outputs:
    """softmax(Dqk**-0.5 Q K^T) V, each token over itself and those before it."""
    q, k, v = (t[name] for name in ("q", "k", "v"))
    later = q.new_ones(q.shape[2], q.shape[2], dtype=bool).triu(1)
    scores = (q.shape[-1] ** -0.5 * q @ k.mT).masked_fill(later, float("-inf"))
    return (scores.softmax(-1) @ v,)


WITHOUT_NORM_GRAD = Claim(
    "without the normaliser's gradient",
    _with_constant_denominator,
    ("q", "k", "v", "i", "f"),
    only_gradients=True,
)
DECAYED = Claim(
    "another function: no input gate, stabiliser, normaliser", _decayed_linear_attention, ("q", "k", "v", "f")
)
ATTENTION = Claim("another function: softmax attention", _causal_attention, ("q", "k", "v"))
