"""Whole models as ops: the language models, and xLSTMLarge's prefill, decoding and generation.

The tensors of an op are token ids, and the parameters under the names of their state dict, which the public xLSTM code
and transformers share. Of a decode step also the state: state.<block>.C, .n and .m.

Widths are as in the papers: an mLSTM block of width D has an inner width of 2 D, xLSTMLarge queries of half its width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xlstm_cuda import MLSTMState, functional, models
from xlstm_cuda import nn as xnn

from .op import Op, Outputs, Shape, Tensors

LM_VOCABULARY, LARGE_VOCABULARY = 512, 8192  # small: what is compared is the blocks, and not the head
HEADS = 4
CHECKED = {"B": 2, "S": 80, "T": 8}  # the reference keeps every state of the mLSTM, for each token and block


def slstm_positions(M: int, N: int) -> list[int]:
    """Of N sLSTM blocks among M + N: the second one, and as far apart as they can be."""
    return [min(1 + i * (M + N) // N, M + i) for i in range(N)]


def lm_config(shape: Shape, blocks: Any = xnn, config: Any = models, **cell: Any) -> Any:
    """Of xLSTMLMModel, M mLSTM and N sLSTM blocks of width D; by the classes of `blocks` and `config`.

    cell: options of the sLSTM layer.
    """
    M, N = shape["M"], shape["N"]
    mlstm = blocks.mLSTMBlockConfig(mlstm=blocks.mLSTMLayerConfig(num_heads=HEADS))
    slstm = blocks.sLSTMBlockConfig(
        slstm=blocks.sLSTMLayerConfig(num_heads=HEADS, **cell), feedforward=blocks.FeedForwardConfig()
    )
    return config.xLSTMLMModelConfig(
        vocab_size=LM_VOCABULARY,
        embedding_dim=shape["D"],
        num_blocks=M + N,
        context_length=shape["S"],
        mlstm_block=mlstm if M else None,
        slstm_block=slstm if N else None,
        slstm_at=slstm_positions(M, N),
    )


def large_sizes(shape: Shape) -> dict[str, Any]:
    """Of xLSTMLargeConfig, L blocks of width D."""
    sizes = {"embedding_dim": shape["D"], "num_blocks": shape["L"]}
    return {**sizes, "num_heads": HEADS, "vocab_size": LARGE_VOCABULARY}


def lm(shape: Shape) -> models.xLSTMLMModel:
    return models.xLSTMLMModel(lm_config(shape))


def large(shape: Shape) -> models.xLSTMLarge:
    return models.xLSTMLarge(models.xLSTMLargeConfig(**large_sizes(shape)))


def lm_shape(t: Tensors) -> Shape:
    """What the tensors are of."""
    N = sum(name.endswith("slstm_cell._bias_") for name in t)
    blocks, (B, S) = _blocks("xlstm_block_stack.blocks.", t), t["ids"].shape
    return {"B": B, "S": S, "D": t["token_embedding.weight"].shape[1], "M": blocks - N, "N": N}


def large_shape(t: Tensors) -> Shape:
    """What the tensors are of."""
    B, S = t["ids"].shape
    return {"B": B, "S": S, "D": t["embedding.weight"].shape[1], "L": _blocks("backbone.blocks.", t)}


def _blocks(prefix: str, t: Tensors) -> int:
    return 1 + max(int(name.removeprefix(prefix).partition(".")[0]) for name in t if name.startswith(prefix))


def with_parameters(model: nn.Module, t: Tensors) -> nn.Module:
    """The model with these tensors for parameters: their memory, and gradients where they require them."""
    for name, _ in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(t[name], t[name].requires_grad))
    return model.eval()


def leaves_of(model: nn.Module) -> dict[str, Tensor]:
    """What gradients are taken for."""
    return {name: x for name, x in model.named_parameters() if x.requires_grad}


def state_of(t: Tensors) -> tuple[MLSTMState, ...]:
    """Of all blocks, before a decode step."""
    blocks = range(large_shape(t)["L"])
    return tuple(MLSTMState(*(t[f"state.{i}.{part}"] for part in MLSTMState._fields)) for i in blocks)


Prepare = Callable[[Any, Tensors], Callable[[], Outputs]]  # of a model and an op's tensors, what to call


def logits(model: Any, t: Tensors) -> Callable[[], Outputs]:
    return lambda: (model(t["ids"]),)


def prefill(model: Any, t: Tensors) -> Callable[[], Outputs]:
    """Logits of the last token."""
    return lambda: (model.prefill(t["ids"])[0],)


def step(model: Any, t: Tensors) -> Callable[[], Outputs]:
    state = state_of(t)
    return lambda: (model.step(t["ids"], state)[0],)


def generate(model: Any, t: Tensors) -> Callable[[], Outputs]:
    """The new tokens, greedily chosen."""
    prompt, new = t["ids"].shape[1], int(t["new"])
    return lambda: (model.generate(t["ids"], new, temperature=0)[:, prompt:],)


# Inputs


def _draw(model: Callable[[Shape], nn.Module], shape: Shape, dtype: torch.dtype, device: str, S: int) -> Tensors:
    """Initial parameters, moved away from zeros that would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        initial = dict(model(shape).named_parameters())
    parameters = {
        name: (x.detach() + 0.02 * torch.randn(x.shape, generator=generator)).to(device, dtype)
        for name, x in initial.items()
    }
    ids = torch.randint(LM_VOCABULARY, (shape["B"], S), generator=generator)
    return {"ids": ids.to(device), **parameters}


def _draw_sequence(model: Callable[[Shape], nn.Module], shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    return _draw(model, shape, dtype, device, shape["S"])


def _draw_step(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    drawn, generator = _draw(large, shape, dtype, device, 1), torch.Generator().manual_seed(1)
    B, D, wide = shape["B"], shape["D"] // HEADS, torch.promote_types(dtype, torch.float32)
    for block in range(shape["L"]):
        for part, tail in (("C", (D // 2, D)), ("n", (D // 2,)), ("m", ())):
            x = torch.randn(B, HEADS, *tail, generator=generator)
            drawn[f"state.{block}.{part}"] = x.to(device, wide)
    return drawn


def _draw_generate(shape: Shape, dtype: torch.dtype, device: str) -> Tensors:
    return {**_draw_sequence(large, shape, dtype, device), "new": torch.tensor(shape["T"])}


# References


def _oracle(function: Callable[[Any, Tensors], Outputs], model: Callable[[], nn.Module], t: Tensors) -> Outputs:
    with functional.backend("reference"):
        return function(with_parameters(model(), t), t)


def _lm_oracle(t: Tensors) -> Outputs:
    """Differentiable by the tensors."""
    parameters = {name: x for name, x in t.items() if name != "ids"}
    with functional.backend("reference"):
        return (functional_call(lm(lm_shape(t)).to(torch.float64), parameters, (t["ids"],)),)


def _large_oracle(prepare: Prepare, t: Tensors) -> Outputs:
    with functional.backend("reference"):
        return prepare(with_parameters(large(large_shape(t)), t), t)()


# Work and traffic


@cache
def _matrices(model: Callable[[Shape], nn.Module], *shape: tuple[str, int]) -> int:
    with torch.device("meta"):
        parameters = dict(model(dict(shape)).named_parameters())
    return sum(x.numel() for name, x in parameters.items() if x.ndim > 1 and "embedding" not in name)


def matrices(model: Callable[[Shape], nn.Module], s: Shape) -> int:
    """Elements of the weights that multiply every token."""
    return _matrices(model, *(s | {"B": 1, "S": 1}).items())


def _cell_flops(Dqk: int, Dv: int) -> int:
    return HEADS * 4 * Dqk * (Dv + 1)


def _lm_flops(s: Shape) -> int:
    inner = 2 * s["D"] // HEADS
    return s["B"] * s["S"] * (2 * matrices(lm, s) + s["M"] * _cell_flops(inner, inner))


def _lm_traffic(s: Shape, T: int, A: int) -> int:
    return T * (matrices(lm, s) + s["B"] * s["S"] * (s["D"] + LM_VOCABULARY))


def _large_flops(tokens: int, s: Shape) -> int:
    D = s["D"] // HEADS
    return tokens * (2 * matrices(large, s) + s["L"] * _cell_flops(D // 2, D))


def _prefill_flops(s: Shape) -> int:
    """The head is of the last token alone."""
    tokens = s["B"] * s["S"]
    return _large_flops(tokens, s) - 2 * (tokens - s["B"]) * s["D"] * LARGE_VOCABULARY


def _prefill_traffic(s: Shape, T: int, A: int) -> int:
    return T * (matrices(large, s) + s["B"] * (s["S"] * s["D"] + LARGE_VOCABULARY))


def _step_traffic(s: Shape, T: int, A: int) -> int:
    """The weights once, and the states read and written."""
    D = s["D"] // HEADS
    state = HEADS * (D // 2 * (D + 1) + 1)
    return T * (matrices(large, s) + s["B"] * (s["D"] + LARGE_VOCABULARY)) + 2 * A * s["B"] * s["L"] * state


def _generate_flops(s: Shape) -> int:
    return _prefill_flops(s) + _large_flops(s["B"] * (s["T"] - 1), s)


def _generate_traffic(s: Shape, T: int, A: int) -> int:
    return _prefill_traffic(s, T, A) + (s["T"] - 1) * _step_traffic(s, T, A)


def _sequence_tokens(s: Shape) -> int:
    return s["B"] * s["S"]


def _large_op(name: str, keys: tuple[str, ...], mode: str, prepare: Prepare, **more: Any) -> Op:
    return Op(
        name,
        keys,
        (mode,),
        oracle=partial(_large_oracle, prepare),
        depth=lambda s: 1 + s["L"],
        checked=CHECKED,
        **more,
    )


MODEL_OPS = (
    Op(
        "lm",
        ("B", "S", "D", "M", "N"),
        ("fwd", "fwdbwd"),
        draw=partial(_draw_sequence, lm),
        oracle=_lm_oracle,
        outputs=("logits",),
        flops=_lm_flops,
        traffic=_lm_traffic,
        tokens=lambda s: s["B"] * s["S"],
        depth=lambda s: 1 + s["M"] + s["N"],
        may_be_zero=("M", "N"),
        checked=CHECKED,
    ),
    _large_op(
        *("large_prefill", ("B", "S", "D", "L"), "fwd", prefill),
        draw=partial(_draw_sequence, large),
        outputs=("logits",),
        flops=_prefill_flops,
        traffic=_prefill_traffic,
        tokens=lambda s: s["B"] * s["S"],
    ),
    _large_op(
        *("large_step", ("B", "D", "L"), "step", step),
        draw=_draw_step,
        outputs=("logits",),
        flops=lambda s: _large_flops(s["B"], s),
        traffic=_step_traffic,
        tokens=lambda s: s["B"],
    ),
    _large_op(
        *("large_generate", ("B", "S", "T", "D", "L"), "fwd", generate),
        draw=_draw_generate,
        outputs=("ids",),
        flops=_generate_flops,
        traffic=_generate_traffic,
        tokens=lambda s: s["B"] * s["T"],
    ),
)
