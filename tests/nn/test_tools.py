"""Tools that see modules from outside: torch.fx, torch.func, Opacus, NestedTensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

from xlstm_cuda import lstm, lstm_step, mlstm, mlstm_step, models, slstm, slstm_step
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

RNNS = [xnn.LSTM, xnn.sLSTM, xnn.mLSTM]
rnns = pytest.mark.parametrize("cls", RNNS, ids=lambda cls: cls.__name__)
pytestmark = pytest.mark.usefixtures("fresh_seed")

lstm_in_graphs = lstm
torch.fx.wrap("lstm_in_graphs")


def stack_config(cls: Any = xnn.xLSTMBlockStackConfig, **fields: Any) -> Any:
    return cls.from_ratio("1:1", 2, embedding_dim=16, **fields)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: xnn.LSTM(16, 8),
    "sLSTM": lambda: xnn.sLSTM(16, 8, 2, bidirectional=True),
    "mLSTM": lambda: xnn.mLSTM(16, 8, batch_first=True),
    "mLSTM layer": lambda: xnn.mLSTMLayer(xnn.mLSTMLayerConfig(embedding_dim=16)),
    "sLSTM layer": lambda: xnn.sLSTMLayer(xnn.sLSTMLayerConfig(embedding_dim=16)),
    "mLSTM block": lambda: xnn.mLSTMBlock(xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(embedding_dim=16))),
    "sLSTM block": lambda: xnn.sLSTMBlock(xnn.sLSTMBlockConfig(xnn.sLSTMLayerConfig(embedding_dim=16))),
    "stack": lambda: xnn.xLSTMBlockStack(stack_config()),
    "language model": lambda: models.xLSTMLMModel(stack_config(models.xLSTMLMModelConfig, vocab_size=9)),
    "large": lambda: models.xLSTMLarge(
        models.xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=2, vocab_size=9)
    ),
}
modules = pytest.mark.parametrize("name", MODULES)


class Around(nn.Module):
    """A module in another one, called twice, the second time with the state of the first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([inner])
        self.options = () if isinstance(inner, tuple(RNNS)) else (True,)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.parts[0](x, None, *self.options)
        z, _ = self.parts[0](x, state, *self.options)
        return torch.cat([y, z.relu()])


@modules
def test_modules_are_leaves_for_fx(name: str) -> None:
    model = Around(MODULES[name]()).eval()
    x = torch.randint(9, (2, 5)) if name in ("language model", "large") else torch.randn(2, 5, 16)
    graph = torch.fx.symbolic_trace(model)
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    assert [node.target for node in calls] == ["parts.0", "parts.0"]
    assert torch.equal(graph(x), model(x))
    with pytest.raises(TypeError, match="for torch.fx the module is a leaf, one node of a graph: trace a module"):
        torch.fx.symbolic_trace(model.parts[0])


def test_fx_sees_what_torchs_lstm_shows() -> None:
    class Model(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn, self.head = rnn, nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, (h, _) = self.rnn(x)
            return self.head(y) + self.head(h)

    ours, theirs = (torch.fx.symbolic_trace(Model(cls(3, 8))) for cls in (xnn.LSTM, nn.LSTM))
    steps = [[(node.op, str(node.target)) for node in graph.graph.nodes] for graph in (ours, theirs)]
    assert steps[0] == steps[1] and ("call_module", "rnn") in steps[0]


@pytest.mark.parametrize("function", [mlstm, mlstm_step, slstm, slstm_step, lstm, lstm_step])
def test_functions_say_how_fx_records_them(function: Callable[..., Any]) -> None:
    op = function.__name__
    more = {"mlstm": 4, "mlstm_step": 5, "slstm": 1, "slstm_step": 3, "lstm": 1, "lstm_step": 3}[op]

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x, *[x] * more)

    with pytest.raises(TypeError, match=rf"^{op}: . is a torch.fx.Proxy: .* with torch.fx.wrap\('{op}'\) at its top"):
        torch.fx.symbolic_trace(Model())


def test_a_wrapped_function_is_recorded() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, R: Tensor) -> Tensor:
            return lstm_in_graphs(x, R).sum(1)

    x, R = torch.randn(2, 3, 4, 2, 5), torch.randn(4, 2, 5, 5)
    assert torch.equal(torch.fx.symbolic_trace(Model())(x, R), lstm(x, R).sum(1))


# A layer, two directions in two layers, and a projection.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two": {"bidirectional": True, "num_layers": 2},
    "p": {"proj_size": 4},
}


@rnns
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_per_sample_gradients(cls: Any, options: dict[str, Any]) -> None:
    rnn, x = cls(4, 8, dtype=torch.float64, **options), torch.randn(5, 3, 4, dtype=torch.float64)
    parameters = dict(rnn.named_parameters())

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(rnn, parameters, (row[:, None],))[0].square().sum()

    per_sample = vmap(grad(loss), (None, 1))(parameters, x)
    for row in range(3):
        exact = torch.autograd.grad(loss(parameters, x[:, row]), list(parameters.values()))
        for name, expected in zip(parameters, exact, strict=True):
            assert_close_relative(per_sample[name][row], expected, 1e-10, name)
    tangent = {name: torch.ones_like(value) for name, value in parameters.items()}
    value, slope = jvp(lambda p: loss(p, x[:, 0]), (parameters,), (tangent,))
    gradient = grad(loss)(parameters, x[:, 0])
    assert_close_relative(value, loss(parameters, x[:, 0]), 1e-10, "loss")
    assert_close_relative(slope, sum(g.sum() for g in gradient.values()), 1e-9, "slope")


@rnns
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_ensembles(cls: Any, options: dict[str, Any]) -> None:
    """Weights with a batch of their own, and states that have one."""
    models = [cls(4, 8, dtype=torch.float64, **options) for _ in range(3)]
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)
    states = [model(x)[1] for model in models]
    stacked = type(states[0])(*map(torch.stack, zip(*states, strict=True)))

    def call(parameters: Any, buffers: Any, state: Any) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (x, state))[0]

    found = vmap(call)(parameters, buffers, stacked)
    for y, model, state in zip(found, models, states, strict=True):
        assert_close_relative(y, model(x, state)[0], 1e-10, "output")


@pytest.mark.parametrize("name", ["mLSTM block", "sLSTM block", "language model", "large"])
def test_ensembles_of_models(name: str) -> None:
    """Outputs, states that go on, and gradients."""
    models = [MODULES[name]().double() for _ in range(2)]
    x = torch.randint(9, (2, 5)) if name in ("language model", "large") else torch.randn(2, 5, 16, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)

    def call(parameters: Any, buffers: Any, state: Any = None) -> Any:
        return functional_call(models[0], (parameters, buffers), (x, state, True))

    def loss(parameters: Any, buffers: Any) -> Tensor:
        return call(parameters, buffers)[0].square().sum()

    _, states = vmap(call)(parameters, buffers)
    found, _ = vmap(call)(parameters, buffers, states)
    gradients = vmap(grad(loss))(parameters, buffers)
    for index, model in enumerate(models):
        y, state = model(x, None, True)
        assert_close_relative(found[index], model(x, state, True)[0], 1e-10, "output")
        exact = torch.autograd.grad(y.square().sum(), list(model.parameters()), materialize_grads=True)
        for (key, _), expected in zip(model.named_parameters(), exact, strict=True):
            assert_close_relative(gradients[key][index], expected, 1e-9, key)


@rnns
@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_opacus(cls: Any, mode: str) -> None:
    """Per-sample gradients. Opacus wants a module with parameters to return one tensor."""
    opacus = pytest.importorskip("opacus")

    class Outputs(cls):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0]

    model = nn.Sequential(Outputs(4, 8, batch_first=True), nn.Linear(8, 2)).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    wrapped = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="sum", force_functorch=mode == "functorch")
    wrapped(x).square().sum().backward()
    for row in range(3):
        exact = torch.autograd.grad(model(x[row : row + 1]).square().sum(), list(model.parameters()))
        for parameter, expected in zip(wrapped.parameters(), exact, strict=True):
            assert_close_relative(parameter.grad_sample[row], expected, 1e-10, "gradient")


@rnns
def test_expanded_weights_are_refused(cls: Any) -> None:
    """They know the modules of torch alone. Frozen weights are not of their kind."""
    rnn = cls(4, 8, batch_first=True)
    rnn.weight_ih_l0.requires_grad_(False)
    model = call_for_per_sample_grads(rnn, batch_size=3)
    with pytest.raises(RuntimeError, match=rf"^{cls.__name__}: call_for_per_sample_grads of torch .*vmap.*Opacus"):
        model(torch.randn(3, 5, 4))


@rnns
def test_nested_rows_have_to_be_jagged(cls: Any) -> None:
    rows = [torch.randn(n, 4) for n in (3, 5, 1)]
    rnn = cls(4, 8, batch_first=True)
    strided = torch.nested.nested_tensor(rows, layout=torch.strided)
    with pytest.raises(TypeError, match=r"must have the layout torch.jagged, got torch.strided: .*as_nested_tensor"):
        rnn(strided)
    y, _ = rnn(torch.nested.as_nested_tensor(list(strided.unbind()), layout=torch.jagged))
    for row, ours in zip(rows, y.unbind(), strict=True):
        assert_close_relative(ours, rnn(row)[0], 1e-5, "row")


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"LSTM", "sLSTM", "mLSTM"}))
def test_nested_input_of_modules(name: str) -> None:
    rows = [torch.randint(9, (n,)) if name in ("language model", "large") else torch.randn(n, 16) for n in (3, 5)]
    with pytest.raises(TypeError, match="got a NestedTensor: "):
        MODULES[name]()(torch.nested.nested_tensor(rows, layout=torch.jagged))
