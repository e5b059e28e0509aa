"""A Transformer with as many weights, on torch's scaled_dot_product_attention: what users would train otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from .. import models
from ..calls import Builder, Call, Claim, peer
from ..ops import Outputs, Tensors

CONTEXT = 2048  # tokens in the cache of a decode step
Cache = tuple[Tensor, Tensor]  # keys and values (B, H, S, D)


class Block(nn.Module):
    """Causal attention, then two linear maps with a GELU between them, each after a norm and on a residual stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, models.HEADS, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        if cache is not None:
            for held, new in zip(cache, (k, v), strict=True):
                held[:, :, -1:] = new
            k, v = cache
        h = scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """ids (B, S) -> logits (B, S, V). No positions: they cost nothing."""

    def __init__(self, vocabulary: int, width: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor, caches: list[Cache] | None = None, only_last: bool = False) -> Tensor:
        x = self.embedding(ids)
        for index, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[index])
        logits: Tensor = self.lm_head(self.norm(x[:, -1:] if only_last else x))
        return logits


def of_equal_size(weights: int, vocabulary: int, width: int, blocks: int) -> Transformer:
    """With as many elements in matrices as that, the head among them, give or take 64 of inner width."""
    in_block = (weights - width * vocabulary) / blocks
    inner = max(64, round((in_block - 4 * width**2) / (2 * width * 64)) * 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(vocabulary, width, inner, blocks)


def _beside_lm(t: Tensors) -> Transformer:
    s = models.lm_shape(t)
    return of_equal_size(models.matrices(models.lm, s), models.LM_VOCABULARY, s["D"], s["M"] + s["N"])


def _beside_large(t: Tensors) -> Transformer:
    s = models.large_shape(t)
    return of_equal_size(models.matrices(models.large, s), models.LARGE_VOCABULARY, s["D"], s["L"])


def logits(model: Transformer, t: Tensors) -> Callable[[], Outputs]:
    return lambda: (model(t["ids"]),)


def prefill(model: Transformer, t: Tensors) -> Callable[[], Outputs]:
    return lambda: (model(t["ids"], only_last=True),)


def step(model: Transformer, t: Tensors) -> Callable[[], Outputs]:
    """One more token after CONTEXT others, each time the same one: the cache does not grow while it is timed."""
    held = caches(model, t)
    return lambda: (model(t["ids"], held),)


def caches(model: Transformer, t: Tensors) -> list[Cache]:
    generator = torch.Generator().manual_seed(2)
    B, D, like = len(t["ids"]), model.embedding.embedding_dim // models.HEADS, model.lm_head.weight
    drawn = torch.randn(len(model.blocks), 2, B, models.HEADS, CONTEXT + 1, D, generator=generator).to(like)
    return [(keys, values) for keys, values in drawn]


def _built(model_of: Callable[[Tensors], Transformer], prepare: models.Prepare) -> Builder:
    def build(t: Tensors) -> Call:
        like = t["lm_head.weight"]
        model = model_of(t).to(like).eval().requires_grad_(like.requires_grad)
        return Call(prepare(model, t), models.leaves_of(model))

    return build


BUILDERS: dict[str, Builder] = {
    "lm": _built(_beside_lm, logits),
    "large_prefill": _built(_beside_large, prefill),
    "large_step": _built(_beside_large, step),
}
NOTE = "another function: a Transformer with as many weights"


def _claim(builder: Builder) -> Claim:
    """Checked against itself in float64; its weights are none of the op's."""
    return Claim(NOTE, lambda t: builder(t).run(), ())


IMPLEMENTATIONS = (peer("transformer", BUILDERS, claims={op: _claim(builder) for op, builder in BUILDERS.items()}),)
