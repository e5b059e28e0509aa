"""The package `fla`: the Triton kernels of simple GLA, linear attention with the forget gate alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from xlstm_cuda import reference

from ..calls import Call, Claim, peer
from ..ops import Outputs, Tensors

OPEN = 1e4  # an input gate whose sigmoid is 1 and whose logsigmoid is 0, both exactly


def simple_gla(t: Tensors) -> Call:
    """Tokens before heads, which is its layout and not timed; logsigmoid(f), which its user computes too, is."""
    from fla.ops.simple_gla import chunk_simple_gla

    own = {name: _swapped(t[name]).requires_grad_(t[name].requires_grad) for name in ("q", "k", "v", "f")}

    def run() -> Outputs:
        h, _ = chunk_simple_gla(own["q"], own["k"], own["v"], g=logsigmoid(own["f"]))
        return (h.transpose(1, 2),)

    return Call(run, own, dict.fromkeys(own, _swapped))


def _swapped(x: Tensor) -> Tensor:
    """Heads before tokens to tokens before heads, or back."""
    return x.detach().transpose(1, 2).contiguous()


def _decayed_linear_attention(t: Tensors) -> Outputs:
    """h_t = Dqk**-0.5 C_t^T q_t with C_t = sigmoid(f_t) C_{t-1} + k_t v_t^T."""
    i = t["i"].detach().new_full(t["i"].shape, OPEN)
    h = reference.mlstm_chunkwise(t["q"], t["k"], t["v"], i, t["f"], input_gate="sigmoid", normalize=False)
    assert isinstance(h, Tensor)
    return (h,)


DECAYED = Claim(
    "another function: no input gate, stabiliser, normaliser", _decayed_linear_attention, ("q", "k", "v", "f")
)

IMPLEMENTATIONS = (
    peer(*("fla-simple_gla", {"mlstm": simple_gla}, "fla", "triton"), devices=("cuda",), claims={"mlstm": DECAYED}),
)
