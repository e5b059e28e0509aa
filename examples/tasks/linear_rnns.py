"""Mamba-2 and Gated DeltaNet as backbones, from their equations in plain PyTorch: to compare with, not for speed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 64


class LinearRNN(nn.Module):
    """Pre-norm residual blocks around layers (B, S, D) -> (B, S, D), and a norm at the end."""

    def __init__(self, dim: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in layers)
        self.norm = nn.RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        y: Tensor = self.norm(x)
        return y


def mamba2(dim: int, blocks: int, heads: int) -> nn.Module:
    """Blocks of Mamba-2 have no feed-forward network."""
    return LinearRNN(dim, [Mamba2(dim, heads) for _ in range(blocks)])


def gated_deltanet(dim: int, blocks: int, heads: int, negative: bool = False) -> nn.Module:
    """Each layer is followed by a feed-forward network. negative: of the eigenvalues, see GatedDeltaNet."""
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [GatedDeltaNet(dim, heads, negative), SwiGLU(dim)]
    return LinearRNN(dim, layers)


class Mamba2(nn.Module):
    """h_t = a_t h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t, with a_t = exp(-dt_t A) (arXiv 2405.21060, section 7).

    One group: all heads share B and C, of `state` features each. x, B and C go through a convolution and SiLU.
    """

    def __init__(self, dim: int, heads: int, state: int = 32, expand: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = [expand * dim, expand * dim + 2 * state, heads]
        self.parts = [expand * dim, state, state]
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = CausalConv(self.sizes[1])
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(heads, 1e-3, 0.1)))
        self.D = nn.Parameter(torch.ones(heads, 1))
        self.norm = nn.RMSNorm(expand * dim)
        self.out_proj = nn.Linear(expand * dim, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        z, xBC, dt = self.in_proj(u).split(self.sizes, -1)
        x, B, C = self.conv(xBC).split(self.parts, -1)
        x, dt = x.unflatten(-1, (self.heads, -1)), F.softplus(dt + self.dt_bias)
        y = decayed_attention(C[:, :, None], B[:, :, None], x * dt[..., None], -dt * self.A_log.exp())
        y = (y + self.D * x).flatten(2)
        result: Tensor = self.out_proj(self.norm(y * F.silu(z)))
        return result


class GatedDeltaNet(nn.Module):
    """S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T, o_t = S_t q_t (arXiv 2412.06464, equation 10).

    q and k have length 1. b is between 0 and 1; negative: between 0 and 2, so that I - b k k^T has an eigenvalue
    between -1 and 1 (arXiv 2411.12537, section 4). v has twice the features of k.
    """

    def __init__(self, dim: int, heads: int, negative: bool = False) -> None:
        super().__init__()
        self.heads, self.largest = heads, 2.0 if negative else 1.0
        self.sizes = [dim, dim, 2 * dim, heads, heads, 2 * dim]
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv = CausalConv(4 * dim)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(heads, 1e-3, 0.1)))
        self.norm = nn.RMSNorm(2 * dim // heads)
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, a, b, gate = self.in_proj(x).split(self.sizes, -1)
        qkv = self.conv(torch.cat([q, k, v], -1)).split(self.sizes[:3], -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv)
        log_decay = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        o = delta_rule(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, log_decay, self.largest * torch.sigmoid(b))
        result: Tensor = self.out_proj(self.norm(o).flatten(2) * F.silu(gate))
        return result


class SwiGLU(nn.Module):
    """Two thirds of four times the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = 8 * dim // 3
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, -1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class CausalConv(nn.Module):
    """Depthwise, four tokens wide, then SiLU."""

    def __init__(self, features: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, features, width, groups=features)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(F.pad(x.mT, (self.width - 1, 0))).mT)


def decayed_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """y_t = h_t q_t with h_t = exp(log_decay_t) h_{t-1} + v_t k_t^T, chunk by chunk.

    q, k (B, S, H or 1, N), v (B, S, H, P), log_decay (B, S, H) at most 0.
    """
    outputs, h = [], v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3])
    for part in range(0, v.shape[1], CHUNK):
        Q, K, V, decay = (x[:, part : part + CHUNK] for x in (q, k, v, log_decay))
        Q, K = (x.expand(-1, -1, v.shape[2], -1) for x in (Q, K))
        since = decay.cumsum(1)  # from the beginning of the chunk
        between = since[:, :, None] - since[:, None]  # (B, T, T, H), over the tokens after the second one
        causal = torch.ones(between.shape[1:3], dtype=torch.bool, device=v.device).tril()
        weights = between.masked_fill(~causal[:, :, None], -torch.inf).exp()
        scores = torch.einsum("bthn,bshn->btsh", Q, K) * weights
        before = torch.einsum("bhpn,bthn->bthp", h, Q) * since.exp()[..., None]
        outputs.append(torch.einsum("btsh,bshp->bthp", scores, V) + before)
        kept = (since[:, -1:] - since).exp()[..., None]
        h = h * since[:, -1, :, None, None].exp() + torch.einsum("bthp,bthn->bhpn", V * kept, K)
    return torch.cat(outputs, 1)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, rate: Tensor) -> Tensor:
    """o_t = S_t q_t with S_t = exp(log_decay_t) S_{t-1} (I - rate_t k_t k_t^T) + rate_t v_t k_t^T, token by token.

    q, k (B, S, H, N), v (B, S, H, P), log_decay and rate (B, S, H).
    """
    outputs, state = [], v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3])
    decay = log_decay.exp()[..., None, None]
    for t in range(v.shape[1]):
        state = decay[:, t] * state
        wrong = v[:, t] - (state @ k[:, t, :, :, None]).squeeze(-1)
        state = state + (rate[:, t, :, None] * wrong)[..., None] * k[:, t, :, None]
        outputs.append((state @ q[:, t, :, :, None]).squeeze(-1))
    return torch.stack(outputs, 1)


def log_uniform(count: int, low: float, high: float) -> Tensor:
    return torch.empty(count).uniform_(math.log(low), math.log(high)).exp()


def inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


BACKBONES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "Mamba-2": mamba2,
    "Gated DeltaNet": gated_deltanet,
    "Gated DeltaNet[-1,1]": lambda dim, blocks, heads: gated_deltanet(dim, blocks, heads, True),
}
