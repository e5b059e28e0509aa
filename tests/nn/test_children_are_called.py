"""Layers call their children, as soon as a call could do more than the layer itself would: in forward and in step.

Hooks fire, adapters act, quantised and offloaded weights work; on plain children the layers keep computing several maps
at once.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune
from torch.utils import _pytree as pytree

from tests.support.rounding import assert_near_float64
from tests.support.tiny_models import VOCAB, Int8Linear, RecurrentLM, blocks_lm, tokens
from xlstm_cuda import functional
from xlstm_cuda import nn as xnn
from xlstm_cuda._children import is_plain
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.models.large.norms import LargeMultiHeadLayerNorm
from xlstm_cuda.nn.conv import CausalConv1d
from xlstm_cuda.nn.gates import GateLinear
from xlstm_cuda.nn.linear_headwise import LinearHeadwise
from xlstm_cuda.nn.mlstm_layer import mLSTMCell
from xlstm_cuda.nn.norms import MultiHeadLayerNorm
from xlstm_cuda.testing import assert_close_relative

DIM = 16
LINEAR = (nn.Linear, LinearHeadwise, nn.Conv1d)


def mlstm_layer(**fields: Any) -> nn.Module:
    return xnn.mLSTMLayer(xnn.mLSTMLayerConfig(num_heads=2, embedding_dim=DIM, **fields))


def slstm_layer(**fields: Any) -> nn.Module:
    return xnn.sLSTMLayer(xnn.sLSTMLayerConfig(num_heads=2, embedding_dim=DIM, **fields))


def stack() -> nn.Module:
    return xnn.xLSTMBlockStack(xnn.xLSTMBlockStackConfig.from_ratio("1:1", 2, embedding_dim=DIM))


def large(weight_mode: str) -> nn.Module:
    return xLSTMLarge(
        xLSTMLargeConfig(embedding_dim=DIM, num_heads=2, num_blocks=2, vocab_size=VOCAB, weight_mode=weight_mode)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlstm layer": mlstm_layer,
    "mlstm layer, bias, kernel 1": lambda: mlstm_layer(bias=True, conv1d_kernel_size=1),
    "slstm layer": slstm_layer,
    "slstm layer, no conv": lambda: slstm_layer(conv1d_kernel_size=0),
    "stack": stack,
    "lm": blocks_lm,
    "large": lambda: large("single"),
    "large, fused": lambda: large("fused"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """The model with every parameter moved away from its initial value: zeros hide mistakes."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.to(dtype).eval()


def inputs(model: nn.Module, length: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        return tokens(2, length)
    return torch.randn(2, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def run_reset(model: Any, x: Tensor) -> Any:
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[0, 1::3] = reset[1, 2] = True
    _, state = model(x[:, :2], return_state=True)
    return model(x, state, True, reset=reset)


def run_steps(model: Any, x: Tensor, lengths: list[int]) -> Any:
    outputs, state = [], None
    for part in x.split(lengths, 1):
        y, state = model.step(part, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


RUNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "forward": lambda model, x: model(x, return_state=True),
    "reset": run_reset,
    "tokens": lambda model, x: run_steps(model, x[:, :2], [1, 1]),
    "steps": lambda model, x: run_steps(model, x, [1, 3, 5]),
}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Outputs and states: float64 rounds sums of some hundred terms differently in another order."""
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    for a, e in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert_close_relative(a, e, tolerance)


def below(model: nn.Module) -> dict[str, nn.Module]:
    """Every module but the root and the containers, whose forward nobody calls."""
    return {name: m for name, m in model.named_modules() if name and not isinstance(m, nn.ModuleList)}


# Whoever waits for a call


def on_forward(module: nn.Module, seen: Callable[[], None]) -> None:
    module.register_forward_hook(lambda *_: seen())


def on_forward_pre(module: nn.Module, seen: Callable[[], None]) -> None:
    module.register_forward_pre_hook(lambda *_: seen())


def on_instance(module: Any, seen: Callable[[], None]) -> None:
    forward = module.forward

    @functools.wraps(forward)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        seen()
        return forward(*args, **kwargs)

    module.forward = replaced


WATCHED = {"hook": on_forward, "pre-hook": on_forward_pre, "forward of the instance": on_instance}


@every_run
@every_model
@pytest.mark.parametrize("watch", WATCHED.values(), ids=WATCHED)
def test_every_module_is_called(name: str, run: Callable[[Any, Tensor], Any], watch: Callable[..., None]) -> None:
    model, seen = build(name), set()
    for path, module in below(model).items():
        watch(module, functools.partial(seen.add, path))
    run(model, inputs(model))
    assert set(below(model)) == seen


@every_model
def test_global_hooks_see_every_module(name: str) -> None:
    model, seen = build(name), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(inputs(model))
    finally:
        handle.remove()
    assert not [path for path, module in below(model).items() if module not in seen]


@every_model
def test_backward_hooks_see_the_gradients(name: str) -> None:
    model, seen = build(name), {}
    for path, module in below(model).items():
        if isinstance(module, LINEAR):
            module.register_full_backward_hook(lambda m, into, out, path=path: seen.update({path: out[0]}))
    x = inputs(model)
    sum_of(model(x.requires_grad_(x.is_floating_point()))).backward()
    assert {path for path, module in below(model).items() if isinstance(module, LINEAR)} == set(seen)
    assert all(gradient.abs().max() > 0 for gradient in seen.values())


def sum_of(results: Any) -> Tensor:
    """A number that depends on every element, each with another weight."""
    leaves = pytree.tree_leaves(results)
    return torch.stack([(x * torch.arange(1, x.numel() + 1).view(x.shape).cos()).sum() for x in leaves]).sum()


# The same results


def called(model: nn.Module) -> Any:
    """A copy whose children are all called."""
    model = copy.deepcopy(model)
    for module in below(model).values():
        module.register_forward_hook(lambda *_: None)
    return model


@every_run
@every_model
def test_called_children_give_the_same(name: str, run: Callable[[Any, Tensor], Any]) -> None:
    model = build(name)
    x, results, grads = inputs(model), [], []
    for candidate in (called(model), model):
        results.append(run(candidate, x))
        grads.append(torch.autograd.grad(sum_of(results[-1]), list(candidate.parameters()), allow_unused=True))
    assert_same(*results)
    assert_same(*(tuple(torch.zeros(()) if g is None else g for g in of_model) for of_model in grads))


@pytest.mark.parametrize("length", [0, 1, 40])
@pytest.mark.parametrize("kernel_size", [1, 2, 4])
@pytest.mark.parametrize("with_reset", [False, True])
def test_called_convolution(kernel_size: int, length: int, with_reset: bool, fresh_seed: int) -> None:
    conv = CausalConv1d(5, kernel_size).double()
    x = torch.randn(3, length, 5, dtype=torch.float64)
    state = torch.randn(3, kernel_size - 1, 5, dtype=torch.float64)
    reset = torch.rand(3, length) < 0.3 if with_reset else None
    for given in (state, None):
        assert_same(called(conv)(x, given, reset=reset), conv(x, given, reset=reset), 1e-14)
    if with_reset and length > 1:  # after a reset nothing of what lies before it is seen, NaN neither
        reset[:, 1] = True
        y, _ = called(conv)(x.index_fill(1, torch.tensor([0]), torch.nan), state, reset=reset)
        assert y[:, 1:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_called_gates_are_float32(dtype: torch.dtype) -> None:
    """Also those of half precision weights, and under autocast."""
    exact = build("mlstm layer")
    for model, autocast in ((called(exact).to(dtype), False), (called(exact).float(), True)):
        with torch.autocast("cpu", dtype, enabled=autocast):
            q, k, v = (torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(j)).to(dtype) for j in range(3))
            gates = model.mlstm_cell._gates(q, k, v)
        expected = copy.deepcopy(model).double().mlstm_cell._gates(q.double(), k.double(), v.double())
        for gate, e in zip(gates, expected, strict=True):
            assert gate.dtype == torch.float32
            assert_close_relative(gate, e.float(), 192 * torch.finfo(torch.float32).eps)  # so many products


# Adapters


class Adapted(nn.Module):
    """What a low-rank adapter is to the module around it: something of another class that adds to the base's output."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.delta = base, copy.deepcopy(base)
        with torch.no_grad():
            for parameter in self.delta.parameters():
                parameter.normal_(std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.delta(x)
        return y

    def merged(self) -> nn.Module:
        with torch.no_grad():
            for parameter, delta in zip(self.base.parameters(), self.delta.parameters(), strict=True):
                parameter += delta
        return self.base


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@every_run
@every_model
def test_adapters_act_and_merge(name: str, run: Callable[[Any, Tensor], Any]) -> None:
    plain = build(name)
    x = inputs(plain)
    before = pytree.tree_leaves(run(plain, x))
    for path, module in below(plain).items():
        if isinstance(module, LINEAR):
            model = copy.deepcopy(plain)
            adapter = Adapted(model.get_submodule(path))
            replace(model, path, adapter)
            with_adapter = run(model, x)
            after = pytree.tree_leaves(with_adapter)
            assert not all(map(torch.equal, after, before)), path
            replace(model, path, adapter.merged())
            assert_same(with_adapter, run(model, x))


def test_adapters_without_a_weight_under_autocast() -> None:
    model = build("lm", torch.float32)
    adapted = copy.deepcopy(model)
    for path, module in below(adapted).items():
        if isinstance(module, GateLinear | nn.Conv1d):
            replace(adapted, path, Adapted(module))
    merged = copy.deepcopy(adapted)
    for path, module in below(merged).items():
        if isinstance(module, Adapted):
            replace(merged, path, module.merged())
    x = inputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = adapted(x)
    assert_near_float64({"y": y}, merged, lambda wide: {"y": wide(x)}, torch.bfloat16)


@every_run
@pytest.mark.parametrize("name", ["mlstm layer", "mlstm layer, bias, kernel 1", "stack", "lm", "large", "large, fused"])
def test_peft(name: str, run: Callable[[Any, Tensor], Any]) -> None:
    """LoRA on every linear map, or on every gate, acts as it does when it is merged."""
    peft = pytest.importorskip("peft")
    model = build(name)
    x = inputs(model)
    linear = [path for path, module in below(model).items() if isinstance(module, nn.Linear)]
    for targets in (linear, [path for path in linear if isinstance(model.get_submodule(path), GateLinear)]):
        config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        results = run(adapted.base_model.model, x)
        assert (results[0] - run(model, x)[0]).abs().max() > 0
        assert_same(run(adapted.merge_and_unload(), x), results, 1e-11)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd:UserWarning")
@every_run
def test_peft_on_the_convolution(run: Callable[[Any, Tensor], Any]) -> None:
    peft = pytest.importorskip("peft")
    model = build("stack")
    x, before = inputs(model), run(model, inputs(model))
    convs = [path for path, module in below(model).items() if isinstance(module, nn.Conv1d)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=convs, r=64, init_lora_weights=False))
    assert (run(adapted.base_model.model, x)[0] - before[0]).abs().max() > 0
    with adapted.disable_adapter():
        assert_same(run(adapted.base_model.model, x), before)


# Quantised


@every_run
@every_model
def test_int8_weights(name: str, run: Callable[[Any, Tensor], Any]) -> None:
    """As with the weights that they stand for, computed as ever."""
    model = build(name)
    quantised = copy.deepcopy(model)
    for path, module in below(model).items():
        if isinstance(module, nn.Linear):
            replacement = Int8Linear(module)
            replace(quantised, path, replacement)
            module.weight.data = replacement.weight * replacement.scale
    with torch.no_grad():
        assert_same(run(quantised, inputs(model)), run(model, inputs(model)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.quantize_per_tensor:UserWarning")
@every_run
@every_model
def test_quantize_dynamic(name: str, run: Callable[[Any, Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every quantised map is called, and what those of the gates return is what the mLSTM gets."""
    quantization = pytest.importorskip("torch.ao.quantization")
    from torch.ao.nn.quantized.dynamic import Linear as Quantised

    if set(torch.backends.quantized.supported_engines) <= {"none"}:
        pytest.skip("no engine for quantised maps")
    model = quantization.quantize_dynamic(build(name, torch.float32), {nn.Linear}, dtype=torch.qint8)
    for path, module in below(model).items():
        if isinstance(module, GateLinear):  # which quantize_dynamic leaves alone, being of another class
            plain = nn.Linear(module.in_features, module.out_features)
            plain.load_state_dict(module.state_dict())
            plain.qconfig = quantization.default_dynamic_qconfig
            replace(model, path, Quantised.from_float(plain))
    quantised = [path for path, module in below(model).items() if isinstance(module, Quantised)]
    x, given, seen = inputs(model, dtype=torch.float32), [], set()
    returned: dict[str, list[Tensor]] = {"i": [], "f": []}
    for path, module in below(model).items():
        on_forward(module, functools.partial(seen.add, path))
        if path in quantised and path.endswith(("igate", "fgate")):
            gate = returned[path.rpartition(".")[2][0]]
            module.register_forward_hook(lambda m, args, y, gate=gate: gate.append(y))
    for op in ("mlstm", "mlstm_step"):
        monkeypatch.setattr(functional, op, spy(getattr(functional, op), given))
    with torch.no_grad():
        y, _ = run(model, x)
    assert y.isfinite().all() and {path for path in below(model) if not path.endswith("._packed_params")} == seen
    assert bool(quantised) != name.startswith("slstm")  # which holds no torch.nn.Linear
    for gate, outputs in returned.items():
        assert not outputs or len(outputs) == len(given)
        for y, used in zip(outputs, given, strict=False):
            assert torch.equal(used[gate].reshape(y.mT.shape), y.mT)


def by_torchao(model: nn.Module) -> dict[str, Tensor]:
    """int8 weights of a Tensor subclass in the modules that are there. Returns the numbers that they stand for."""
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return {path: m.weight.dequantize() for path, m in below(model).items() if isinstance(m, nn.Linear)}


def by_bitsandbytes(model: nn.Module) -> dict[str, Tensor]:
    """4-bit weights in modules of another class."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    numbers = {}
    for path, linear in below(model).items():
        if isinstance(linear, nn.Linear):
            options = {"bias": linear.bias is not None, "compute_dtype": torch.float32}
            replacement = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, **options)
            replacement.load_state_dict(linear.state_dict())
            replace(model, path, replacement.to("cpu"))  # which quantises
            numbers[path] = bitsandbytes.functional.dequantize_4bit(replacement.weight, replacement.weight.quant_state)
    return numbers


@every_run
@pytest.mark.parametrize("name", ["mlstm layer", "lm", "large", "large, fused"])
@pytest.mark.parametrize("quantise", [by_torchao, by_bitsandbytes])
def test_quantised_by(quantise: Callable[[nn.Module], dict[str, Tensor]], name: str, run: Any) -> None:
    """As with the weights that they stand for: what differs is nothing beside what quantising changed."""
    model = build(name, torch.float32).requires_grad_(False)
    quantised, x = copy.deepcopy(model), inputs(model, dtype=torch.float32)
    before = run(model, x)[0]
    for path, weight in quantise(quantised).items():
        model.get_submodule(path).weight.data = weight
    expected = run(model, x)[0]
    assert (run(quantised, x)[0] - expected).norm() < 0.01 * (expected - before).norm()


def spy(op: Callable[..., Any], given: list[dict[str, Tensor]]) -> Callable[..., Any]:
    @functools.wraps(op)
    def spied(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, *args: Any, **options: Any) -> Any:
        given.append({"i": i, "f": f})
        return op(q, k, v, i, f, *args, **options)

    return spied


# Offloaded


def offload(model: nn.Module) -> None:
    """Every weight on "meta", but for the time that the forward of its own module takes."""
    for module in model.modules():
        stored = dict(module.named_parameters(recurse=False))
        if stored:
            module.forward = loading(module, module.forward, stored)


def loading(module: nn.Module, forward: Callable[..., Any], stored: dict[str, nn.Parameter]) -> Callable[..., Any]:
    absent = {name: nn.Parameter(parameter.to("meta")) for name, parameter in stored.items()}
    module._parameters.update(absent)

    @functools.wraps(forward)
    def loaded(*args: Any, **kwargs: Any) -> Any:
        module._parameters.update(stored)
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(absent)

    return loaded


@every_run
@every_model
def test_offloaded(name: str, run: Callable[[Any, Tensor], Any]) -> None:
    model = build(name)
    offloaded = copy.deepcopy(model)
    offload(offloaded)
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert_same(run(offloaded, inputs(model)), run(model, inputs(model)))


@every_run
@every_model
def test_offloaded_by_accelerate(name: str, run: Callable[[Any, Tensor], Any]) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build(name)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    with torch.no_grad():
        assert_same(run(offloaded, inputs(model)), run(model, inputs(model)))


@pytest.mark.parametrize("name", ["lm", "large", "large, fused"])
def test_generation_from_offloaded_models(name: str) -> None:
    model = build(name)
    expected = model.generate(inputs(model), 5, temperature=0)
    offload(model)
    assert torch.equal(model.generate(inputs(model), 5, temperature=0), expected)


def test_recurrent_modules_are_called_and_can_be_offloaded() -> None:
    torch.manual_seed(0)
    model, seen = RecurrentLM().double(), set()
    expected = model(tokens())
    for path, module in below(model).items():
        on_forward(module, functools.partial(seen.add, path))
    offload(model)
    assert_same(model(tokens()), expected, 0)
    assert seen == set(below(model))


# Plain children


@contextmanager
def never_called(monkeypatch: pytest.MonkeyPatch, *kinds: type[nn.Module]) -> Iterator[None]:
    def refuse(self: nn.Module, *_: Any, **__: Any) -> Tensor:
        raise AssertionError(f"{type(self).__name__} was called")

    with monkeypatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "forward", refuse)
        yield


FUSED: dict[str, tuple[type[nn.Module], ...]] = {
    "mlstm layer": (GateLinear, nn.Conv1d, mLSTMCell, MultiHeadLayerNorm),
    "slstm layer": (LinearHeadwise, nn.Conv1d),
    "large": (GateLinear, LargeMultiHeadLayerNorm),
}
every_fused = pytest.mark.parametrize("name", FUSED)
every_layer = pytest.mark.parametrize("name", ["mlstm layer", "slstm layer"])  # graphs of whole models take long


@every_run
@every_fused
def test_plain_children_are_computed_together(
    name: str, run: Callable[[Any, Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    with never_called(monkeypatch, *FUSED[name]):
        expected = run(model, inputs(model))
        run(build(name, torch.bfloat16), inputs(model, dtype=torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            run(build(name, torch.float32), inputs(model, dtype=torch.float32))
        with pytest.raises(AssertionError, match="was called"):
            run(called(model), inputs(model))
        parameters = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        assert_same(torch.func.functional_call(model, parameters, (inputs(model),)), model(inputs(model)))
        if run is not run_reset:
            shapes = [leaf.shape for leaf in pytree.tree_leaves(run(model.to("meta"), inputs(model).to("meta")))]
            assert shapes == [leaf.shape for leaf in pytree.tree_leaves(expected)]


@pytest.fixture
def compiler() -> Iterator[None]:
    """Without what other tests compiled, and nothing is left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@every_layer
def test_plain_children_are_computed_together_in_graphs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name).requires_grad_(False)
    x = inputs(model)
    expected = model(x)
    with never_called(monkeypatch, *FUSED[name]):
        assert_same(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
        assert_same(torch.export.export(model, (x,), strict=False).module()(x), expected)
        assert_same(torch.export.export(model, (x,), strict=True).module()(x), expected)


@pytest.mark.usefixtures("compiler")
@every_layer
def test_compiled_layers_call_hooked_children(name: str) -> None:
    model, seen = build(name), []
    for path, module in below(model).items():
        on_forward(module, functools.partial(seen.append, path))
    compiled = torch.compile(model, backend="aot_eager")
    assert_same(compiled(inputs(model), return_state=True), build(name)(inputs(model), return_state=True))
    assert set(below(model)) == set(seen)


class Tagged(Tensor):
    pass


def tagged(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape).as_subclass(Tagged))


def weight_norm(linear: nn.Linear) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(linear)


SPOILED: dict[str, Callable[[Any], Any]] = {
    "another class": lambda linear: nn.Linear(4, 4),
    "parametrized": weight_norm,
    "pruned": lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    "weight of another class": lambda linear: setattr(
        linear, "weight", nn.Parameter(torch.ones(4, 4).as_subclass(Tagged))
    ),
    "bias of another class": lambda linear: setattr(linear, "bias", nn.Parameter(torch.ones(4).as_subclass(Tagged))),
    "no parameter": lambda linear: linear._parameters.pop("weight"),
    "hook": lambda linear: linear.register_forward_hook(print),
    "pre-hook": lambda linear: linear.register_forward_pre_hook(print),
    "backward hook": lambda linear: linear.register_full_backward_hook(print),
    "backward pre-hook": lambda linear: linear.register_full_backward_pre_hook(print),
    "forward of the instance": lambda linear: setattr(linear, "forward", print),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_is_not_plain(spoil: Callable[[Any], Any]) -> None:
    first, second = GateLinear(4, 4), GateLinear(4, 4)
    assert is_plain(GateLinear, first, second) and not is_plain(nn.Linear, first)
    changed = spoil(second)
    second = changed if isinstance(changed, nn.Module) else second
    assert not is_plain(GateLinear, first, second) and is_plain(GateLinear, first)


def test_plain_again_without_hook_or_parametrization() -> None:
    gate = GateLinear(4, 4)
    handle = gate.register_forward_hook(print)
    assert not is_plain(GateLinear, gate)
    handle.remove()
    weight_norm(gate)
    parametrize.remove_parametrizations(gate, "weight")
    assert is_plain(GateLinear, gate)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_gates_get_no_input_in_eight_bits(dtype: torch.dtype, autocast: bool) -> None:
    """A gate's weight of 8 bits, which it widens itself, says nothing of its input."""

    class Gate(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, features).to(dtype), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return x @ self.weight.to(x.dtype).mT

    layer: Any = mlstm_layer()
    layer.mlstm_cell.igate = Gate(layer.mlstm_cell.igate.in_features)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert layer(torch.randn(2, 5, DIM)).isfinite().all()


class Wrapped(nn.Module):
    """A block of a user's own, which knows nothing of steps."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, state: Any, return_state: bool, *, reset: Tensor | None = None) -> Any:
        return self.block(x, state, return_state, reset=reset)


def test_a_block_need_not_know_steps() -> None:
    module: Any = stack()
    x = torch.randn(2, 5, DIM)
    expected = module(x)
    module.blocks[0] = Wrapped(module.blocks[0])
    assert torch.equal(module(x), expected)
