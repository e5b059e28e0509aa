"""Modules and functions in graphs for ONNX, which onnxruntime computes for lengths and batches they were not made with.

An export takes seconds, so that each of these graphs holds much. The numbers of the recurrences, with all options, are
compared in tests/functional/test_onnx_forms.py. All modules, one by one: the slow tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from tests.support.onnx_graphs import Graph
from xlstm_cuda import MLSTMState, backend, causal_conv1d, causal_conv1d_step, mlstm, mlstm_step, models
from xlstm_cuda import nn as xnn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("fresh_seed")
BATCH, TOKENS, FEW = Dim("batch"), Dim("tokens"), Dim("tokens", max=16)
RNNS: list[Any] = [xnn.LSTM, xnn.sLSTM, xnn.mLSTM]


class Calls(nn.Module):
    """A function, or a method of a module, as a module of its own."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, module

    def forward(self, *args: Any) -> Any:
        return self.function(*args) if self.inner is None else self.function(self.inner, *args)


def everywhere(tree: Any, dims: dict[int, Any]) -> Any:
    return pytree.tree_map(lambda _: dims, tree)


def random_like(state: Any) -> Any:
    """Another state of these shapes; its normalisers are far from 0."""
    return pytree.tree_map(lambda s: 1 + torch.rand_like(s), state)


class Three(nn.Module):
    """One after the other, each from its state: LSTM in both directions, sLSTM with heads, mLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.a = xnn.LSTM(5, 8, bidirectional=True)
        self.b = xnn.sLSTM(16, 8, num_heads=2)
        self.c = xnn.mLSTM(8, 8)

    def forward(self, x: Tensor, states: Any = (None, None, None)) -> tuple[Tensor, Any]:
        after = []
        for rnn, state in zip((self.a, self.b, self.c), states, strict=True):
            x, state = rnn(x, state)
            after.append(state)
        return x, tuple(after)


def test_rnns() -> None:
    """Made with one token of one row, computed for others: nothing is unrolled or decided by the sizes."""
    model = Three()
    states = random_like(model(torch.randn(1, 1, 5))[1])
    shapes = {0: TOKENS, 1: BATCH}, everywhere(states, {1: BATCH})
    graph = Graph(model, (torch.randn(1, 1, 5), states), shapes)
    operators = graph.operators()
    assert [operators.count(name) for name in ("LSTM", "Scan", "Loop", "If")] == [1, 2, 0, 0]
    for tokens, batch in ((5, 3), (1, 1), (64, 2), (65, 1), (130, 2)):
        x = torch.randn(tokens, batch, 5)
        graph.check(x, random_like(model(x)[1]))


@pytest.mark.slow
def test_a_language_model_with_resets() -> None:
    config = models.xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=16, vocab_size=9)
    model = models.xLSTMLMModel(config)

    def draw(batch: int, tokens: int) -> tuple[Any, ...]:
        ids = torch.randint(9, (batch, tokens))
        return ids, model(ids, None, True)[1], torch.rand(batch, tokens) < 0.1

    module = Calls(lambda inner, ids, state, reset: inner(ids, state, True, reset=reset), model)
    tokens = {0: BATCH, 1: TOKENS}
    with torch.no_grad():
        example = draw(1, 2)
        graph = Graph(module, example, ((tokens, everywhere(example[1], {0: BATCH}), tokens),))
        for sizes in ((3, 7), (1, 1), (2, 65)):
            graph.check(*draw(*sizes))


def test_streaming() -> None:
    """A step graph, fed with its own states: what the model says of the whole text."""
    config = models.xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=1, vocab_size=9)
    model = models.xLSTMLarge(config).requires_grad_(False)
    ids = torch.randint(9, (3, 6))
    _, state = model.step(ids[:, :1])
    module = Calls(lambda inner, ids, state: inner.step(ids, state), model)
    graph = Graph(module, (ids[:, :1], state), (({0: BATCH}, everywhere(state, {0: BATCH})),))
    state, logits = pytree.tree_map(torch.zeros_like, state), []
    for token in ids.split(1, 1):
        y, *after = graph.check(token, state)
        logits.append(y)
        state = pytree.tree_unflatten(after, pytree.tree_structure(state))
    torch.testing.assert_close(torch.cat(logits, 1), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_reference_is_exported_unrolled() -> None:
    counts = []
    for tokens in (1, 2):
        with backend("reference"):
            graph = Graph(xnn.sLSTM(3, 4), (torch.randn(tokens, 2, 3),))
        graph.check(torch.randn(tokens, 2, 3))
        assert not {"Scan", "LSTM"} & set(graph.operators())
        counts.append(len(graph.operators()))
    assert counts[0] < counts[1]


def _refused(name: str) -> tuple[Callable[..., Any], tuple[Any, ...], str]:
    """A call, its tensors, and what it says."""
    q, i, x, w = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4), torch.randn(1, 4, 3), torch.randn(3, 2)
    one, gate, bounds = q[:, :, 0], i[..., 0], torch.tensor([0, 2, 4], dtype=torch.int32)
    state = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3), torch.randn(1, 2)
    step, out = (one, one, one, gate, gate, *state), copy.deepcopy(state)

    def to_out(*a: Tensor) -> Any:
        return mlstm_step(*a[:5], MLSTMState(*a[5:8]), out=MLSTMState(*a[8:]))

    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
        "mlstm": (lambda *a: mlstm(*a[:5], cu_seqlens=a[5]), (q, q, q, i, i, bounds), "mlstm: cu_seqlens"),
        "conv": (lambda *a: causal_conv1d(*a[:2], cu_seqlens=a[2]), (x, w, bounds), "causal_conv1d: cu_seqlens"),
        "inplace": (lambda *a: mlstm_step(*a[:5], MLSTMState(*a[5:]), inplace=True), step, "mlstm_step: inplace=True"),
        "out": (to_out, (*step, *out), "mlstm_step: out"),
        "conv step": (
            lambda x, w, state: causal_conv1d_step(x, w, None, state, inplace=True),
            (x[:, 0], w, x[:, :1].clone()),
            "causal_conv1d_step: inplace=True",
        ),
    }
    return calls[name]


@pytest.mark.parametrize("name", ["mlstm", "conv", "inplace", "out", "conv step"])
def test_what_has_no_graph_says_so(name: str) -> None:
    function, args, message = _refused(name)
    with pytest.raises(Exception, match=f"{message} cannot be exported to ONNX: "):
        torch.onnx.export(Calls(function).eval(), args, dynamo=True, verbose=False)
    function(*args)  # as before


def test_programs_of_torch_export_have_no_graph() -> None:
    rnn, x = xnn.sLSTM(4, 8).eval().requires_grad_(False), torch.randn(3, 2, 4)
    program = torch.export.export(rnn, (x,))
    with pytest.raises(Exception, match="hand the module itself to torch.onnx.export, or call torch.export under"):
        torch.onnx.export(program, dynamo=True, verbose=False)
    assert torch.equal(program.module()(x)[0], rnn(x)[0])


# Slow: each module by itself, made with sizes of 1.


def _modules() -> dict[str, nn.Module]:
    large: dict[str, Any] = {"embedding_dim": 16, "num_heads": 2, "num_blocks": 2, "vocab_size": 9}
    fused = {"weight_mode": "fused", "mode": "inference", "chunkwise_kernel": "siging", "use_bias": True}
    return {
        "mLSTM layer": xnn.mLSTMLayer(xnn.mLSTMLayerConfig(embedding_dim=16)),
        "sLSTM layer": xnn.sLSTMLayer(xnn.sLSTMLayerConfig(embedding_dim=16, conv1d_kernel_size=0)),
        "mLSTM block": xnn.mLSTMBlock(xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(embedding_dim=16, bias=True))),
        "sLSTM block": xnn.sLSTMBlock(xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(embedding_dim=16))),
        "stack": xnn.xLSTMBlockStack(xnn.xLSTMBlockStackConfig.from_ratio("1:1", 2, embedding_dim=16)),
        "large": models.xLSTMLarge(models.xLSTMLargeConfig(**large)),
        "fused": models.xLSTMLarge(models.xLSTMLargeConfig(**large, **fused)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "reset", "step"])
@pytest.mark.parametrize(
    "name", ["mLSTM layer", "sLSTM layer", "mLSTM block", "sLSTM block", "stack", "large", "fused"]
)
@torch.no_grad()
def test_modules(name: str, how: str) -> None:
    model = _modules()[name]

    def draw(batch: int, tokens: int) -> tuple[Any, ...]:
        ids = name in ("large", "fused")
        x = torch.randint(9, (batch, tokens)) if ids else torch.randn(batch, tokens, 16)
        if how == "whole":
            return (x,)
        state = model(x, None, True)[1]
        return (x, state) if how == "step" else (x, state, torch.rand(batch, tokens) < 0.1)

    calls: dict[str, Callable[..., Any]] = {
        "whole": lambda inner, x: inner(x),
        "reset": lambda inner, x, state, reset: inner(x, state, True, reset=reset),
        "step": lambda inner, x, state: inner.step(x, state),
    }
    example = draw(1, 1)
    shapes: list[Any] = [{0: BATCH, 1: FEW if how == "step" else TOKENS}]
    shapes += [everywhere(part, {0: BATCH}) for part in example[1:2]] + shapes * (how == "reset")
    graph = Graph(Calls(calls[how], model), example, (tuple(shapes),))
    for sizes in ((3, 5), (1, 1), (2, 16)) if how == "step" else ((3, 5), (1, 1), (2, 64), (1, 65)):
        graph.check(*draw(*sizes))


@pytest.mark.slow
@pytest.mark.parametrize("cls", RNNS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("example", [(1, 1), (70, 2)])
def test_rnns_one_by_one(cls: Any, example: tuple[int, int]) -> None:
    for options in ({"batch_first": True, "proj_size": 4, "bidirectional": True}, {"num_heads": 2, "num_layers": 2}):
        rnn = cls(4, 8, **options).requires_grad_(False)
        state = random_like(rnn(torch.randn(*example, 4))[1])
        sides = (BATCH, TOKENS) if "batch_first" in options else (TOKENS, BATCH)
        shapes = dict(enumerate(sides)), type(state)(*({1: BATCH} for _ in state))
        graph = Graph(rnn, (torch.randn(*example, 4), state), shapes)
        for sizes in ((3, 5), (1, 1), (2, 65), (130, 2)):
            x = torch.randn(*sizes, 4)
            graph.check(x, random_like(rnn(x)[1]))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"input_gate": "sigmoid", "chunk_size": 16}], ids=["exp", "sigmoid"])
def test_mlstm_with_extreme_gates(options: dict[str, Any]) -> None:
    """-inf and inf in gates and in the stabiliser, a reset here and there."""

    def draw(batch: int, tokens: int) -> tuple[Tensor, ...]:
        q, k, v = torch.randn(3, batch, 2, tokens, 5).unbind()
        i, f = 2 * torch.randn(2, batch, 2, tokens)
        i, f = i.masked_fill(torch.rand_like(i) < 0.1, -torch.inf), f.masked_fill(torch.rand_like(f) < 0.05, -torch.inf)
        f = f.masked_fill(torch.rand_like(f) < 0.05, torch.inf)
        m = (
            torch.zeros(batch, 2) if options else torch.full((batch, 2), -torch.inf)
        )  # a sigmoid's is returned as it came
        return q, k, v, i, f, torch.randn(batch, 2, 5, 5), torch.randn(batch, 2, 5), m, torch.rand(batch, tokens) < 0.1

    def call(*args: Tensor) -> Any:
        state = MLSTMState(*args[5:8])
        return mlstm(*args[:5], initial_state=state, return_state=True, reset=args[8], eps=1e-2, **options)

    rows = [{0: BATCH, 2: TOKENS}] * 5 + [{0: BATCH}] * 3 + [{0: BATCH, 1: TOKENS}]
    graph = Graph(Calls(call), draw(1, 1), (tuple(rows),))
    for sizes in ((1, 1), (2, 16), (3, 17), (2, 64), (1, 129)):
        assert all(y.isfinite().all() for y in graph.check(*draw(*sizes))[:3])
