"""xlstm_cuda.patch on block stacks and language models of the public `xlstm` package."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.nxai_models import CONFIGS, build, copy_weights, ids, randomise, refuse, without_compilation
from xlstm_cuda import PatchReport, patch, unpatch
from xlstm_cuda.testing import assert_close_relative, relative_error

xlstm = pytest.importorskip("xlstm")
from xlstm.blocks.slstm import cell as slstm_cell  # noqa: E402
from xlstm.components.conv import CausalConv1d, CausalConv1dConfig  # noqa: E402
from xlstm.components.linear_headwise import LinearHeadwiseExpand  # noqa: E402
from xlstm.components.ln import MultiHeadLayerNorm  # noqa: E402

from xlstm_cuda.interop.nxai.cells import PatchedMultiHeadLayerNorm  # noqa: E402

MIXED = "mixed"  # two mLSTM blocks around an sLSTM block


def model(name: str, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    built = xlstm.xLSTMLMModel(build(xlstm, xlstm, dropout=dropout, **CONFIGS[name]))
    built.reset_parameters()
    randomise(built)
    return built.eval()


def patched(name: str, dropout: float = 0.0) -> Any:
    built = model(name, dropout)
    patch(built)
    return built


def gradients(built: nn.Module, outputs: Tensor) -> dict[str, Tensor]:
    weight = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2), dtype=outputs.dtype)
    names, parameters = zip(*built.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((outputs * weight).sum(), parameters), strict=True))


def stepped(built: Any, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    logits = []
    for t in range(tokens.shape[1]):
        y, state = built.step(tokens[:, t : t + 1], state)
        logits.append(y)
    return torch.cat(logits, dim=1), state


def tensors(state: Any) -> list[Tensor]:
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [state]
    return [x for part in (state.values() if isinstance(state, dict) else state) for x in tensors(part)]


# Outputs and gradients


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_stay_and_come_back(name: str, training: bool) -> None:
    """In training with dropout: the same seed gives the same masks."""
    built = model(name, dropout=0.3).train(training)

    def run() -> Tensor:
        torch.manual_seed(4)
        return built(ids())

    expected = run()
    patch(built)
    assert_close_relative(run(), expected, 1e-5)
    assert not training or relative_error(built(ids()), expected) > 1e-2  # other masks do make a difference
    unpatch(built)
    assert torch.equal(run(), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients(name: str) -> None:
    """Up to their eps = 1e-6 in the normaliser: it counts for more where m starts at 0, as in their step and here, than
    in their parallel form, where m starts at -inf."""
    built = model(name).double()
    expected = gradients(built, built(ids()))
    patch(built)
    actual = gradients(built, built(ids()))
    for key, grad in expected.items():
        assert_close_relative(actual[key], grad, 1e-5, key)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps(name: str) -> None:
    with torch.no_grad():
        expected, their_state = stepped(model(name), ids())
        actual, state = stepped(patched(name), ids())
    assert_close_relative(actual, expected, 1e-5)
    for ours, theirs in zip(tensors(state), tensors(their_state), strict=True):
        assert_close_relative(ours, theirs, 1e-5)


@pytest.mark.parametrize("how", ["float32", "bfloat16", "autocast"])
def test_norms_maps_and_gates_are_ours(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q and k in one pass, norm, skip and gate in one; the children that have a hook are called."""
    built = patched("mlstm")
    built = built.bfloat16() if how == "bfloat16" else built
    with monkeypatch.context() as context, torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        refuse(context, LinearHeadwiseExpand, MultiHeadLayerNorm, PatchedMultiHeadLayerNorm, nn.SiLU)
        logits = built(ids())
        assert built(ids(), return_last_state=True)[0].equal(logits)
        for kind in (MultiHeadLayerNorm, nn.SiLU):
            child = next(module for module in built.modules() if isinstance(module, kind))
            handle = child.register_forward_hook(lambda *_: None)
            with pytest.raises(AssertionError, match="was called"):
                built(ids())
            handle.remove()


# What is changed, and what is not


def test_everything_else_stays() -> None:
    built = model(MIXED).train()
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1)
    calls: list[str] = []
    built.xlstm_block_stack.blocks[0].xlstm.mlstm_cell.fgate.register_forward_hook(lambda *_: calls.append("gate"))
    for index, block in enumerate(built.xlstm_block_stack.blocks):
        block.xlstm.register_forward_hook(lambda *_, index=index: calls.append(f"layer {index}"))
    before, values = dict(built.named_parameters()), copy.deepcopy(built.state_dict())
    groups = built.get_weight_decay_optim_group_param_names()

    patch(built)
    assert all(parameter is before[name] for name, parameter in built.named_parameters())
    assert list(built.state_dict()) == list(values)
    assert all(torch.equal(value, values[key]) for key, value in built.state_dict().items())
    assert [sorted(n) for n in built.get_weight_decay_optim_group_param_names()] == [sorted(n) for n in groups]
    assert all(module.training for module in built.modules())
    assert isinstance(built, xlstm.xLSTMLMModel)
    built(ids()).sum().backward()
    assert calls == ["gate", "layer 0", "layer 1", "layer 2"]
    optimizer.step()
    assert not any(torch.equal(parameter, values[name]) for name, parameter in built.named_parameters())
    model(MIXED).load_state_dict(built.state_dict())


def test_report() -> None:
    report = patch(built := model(MIXED))
    assert str(report).startswith("2 mLSTM cells, 1 sLSTM cell; 1 xLSTMLMModel, 1 xLSTMBlockStack, 2 mLSTMBlocks")
    assert ("xlstm_block_stack.blocks.1.xlstm.slstm_cell", "sLSTMCell_vanilla") in report.modules
    classes = {name: type(module) for name, module in model(MIXED).named_modules()}
    assert all(classes[name].__name__ == cls for name, cls in report.modules)

    assert patch(built) == PatchReport(()) and str(patch(built)) == "nothing new"
    assert patch(nn.ModuleList([built, model("slstm")])).modules[0] == ("1", "xLSTMLMModel")
    assert sorted(unpatch(built).modules) == sorted(report.modules)
    assert unpatch(built) == PatchReport(())
    assert {name: type(module) for name, module in built.named_modules()} == classes


def test_nothing_to_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Linear holds no module of xlstm or mlstm_kernels"):
        patch(nn.Linear(2, 3))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install xlstm"):
        patch(nn.Linear(2, 3))


@pytest.mark.parametrize("part", ["", ".blocks.0", ".blocks.0.xlstm", ".blocks.1", ".blocks.1.xlstm"])
def test_parts_of_a_model(part: str) -> None:
    module, x = model(MIXED).get_submodule("xlstm_block_stack" + part), torch.randn(2, 9, 48)
    expected = module(x)
    patch(module)
    assert_close_relative(module(x), expected, 1e-5)
    y, state = module(x[:, :5], return_last_state=True)
    given = state if part else {"state": state}
    assert_close_relative(torch.cat([y, module(x[:, 5:], **given)], dim=1), expected, 1e-5)
    assert_close_relative(module.step(x[:, 5:6], **given)[0], expected[:, 5:6], 1e-5)


class OwnCell(xlstm.blocks.mlstm.cell.mLSTMCell):
    """A user's cell, which knows nothing of states in forward."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        return 2 * super().forward(q, k, v)


def test_modules_of_subclasses_stay() -> None:
    built = model(MIXED)
    built.xlstm_block_stack.blocks[0].xlstm.mlstm_cell.__class__ = OwnCell
    expected = built(ids())
    assert "xlstm_block_stack.blocks.0.xlstm.mlstm_cell" not in dict(patch(built).modules)
    assert_close_relative(built(ids()), expected, 1e-5)


# States


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cut", [1, 2, 8, 20])
def test_prefill_then_steps_are_the_whole(name: str, cut: int) -> None:
    built = patched(name)
    with torch.no_grad():
        whole = built(ids())
        start, state = built(ids()[:, :cut], return_last_state=True)
        middle, state = built(ids()[:, cut : cut + 3], state, return_last_state=True)
        end, _ = stepped(built, ids()[:, cut + 3 :], state) if cut + 3 < 21 else (whole[:, :0], None)
    assert_close_relative(torch.cat([start, middle, end], dim=1), whole, 1e-5)


def test_theirs_has_no_states_in_forward() -> None:
    built = model(MIXED)
    with pytest.raises(TypeError, match="return_last_state"):
        built(ids(), return_last_state=True)
    with pytest.raises(TypeError):
        built.xlstm_block_stack(torch.randn(2, 9, 48), return_last_state=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_states_pass_between_patched_and_unpatched(name: str) -> None:
    """Also in the scale of C and n: theirs sums keys divided by sqrt(D)."""
    built, tokens = model(name), ids()
    with torch.no_grad():
        whole, _ = stepped(built, tokens)
        first, state = stepped(built, tokens[:, :6])
        patch(built)
        second, state = built(tokens[:, 6:12], state, return_last_state=True)
        third, state = stepped(built, tokens[:, 12:16], state)
        unpatch(built)
        fourth, _ = stepped(built, tokens[:, 16:], state)
    assert_close_relative(torch.cat([first, second, third, fourth], dim=1), whole, 1e-5)


def test_gradients_through_states() -> None:
    built = patched(MIXED).double()
    expected = gradients(built, built(ids()))
    start, state = built(ids()[:, :9], return_last_state=True)
    middle, state = stepped(built, ids()[:, 9:12], state)
    actual = gradients(built, torch.cat([start, middle, built(ids()[:, 12:], state)], dim=1))
    for key, grad in expected.items():
        assert_close_relative(actual[key], grad, 1e-9, key)


def test_steps_leave_a_given_state_alone() -> None:
    """Theirs overwrites it: a second continuation is wrong, and so is backward through two steps."""
    tokens = ids()
    for built, stays in ((model(MIXED), False), (patched(MIXED), True)):
        with torch.no_grad():
            _, state = stepped(built, tokens[:, :5])
            first, _ = built.step(tokens[:, 5:6], state)
            second, _ = built.step(tokens[:, 5:6], state)
        assert (relative_error(second, first) < 1e-6) == stays
    stepped(patched(MIXED), tokens[:, :3])[0].sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stepped(model(MIXED), tokens[:, :3])[0].sum().backward()


def test_any_length() -> None:
    """Theirs ends at context_length = 32 where there is an mLSTM block, except step by step."""
    tokens = torch.randint(29, (2, 45))
    built = model(MIXED)
    with pytest.raises(RuntimeError, match="must match the size"):
        built(tokens)
    with torch.no_grad():
        expected, _ = stepped(built, tokens)
        patch(built)
        assert_close_relative(built(tokens), expected, 1e-5)


def test_convolution_of_width_one() -> None:
    """Of which theirs returns nothing."""
    conv, x = CausalConv1d(CausalConv1dConfig(feature_dim=6, kernel_size=1)), torch.randn(2, 5, 6)
    assert conv(x).shape == (2, 0, 6)
    patch(conv)
    expected = x * conv.conv.weight[:, 0, 0] + conv.conv.bias
    assert_close_relative(conv(x), expected, 1e-6)
    _, state = conv(x[:, :3], return_last_state=True)
    assert_close_relative(conv.step(x[:, 3:4], state)[0], expected[:, 3:4], 1e-6)


# torch.compile, copies, precision


def test_compile() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):  # the sLSTM cell branches on values
        torch.compile(model("tied"), fullgraph=True, backend="eager")(ids())
    built = patched("tied")
    expected = gradients(built, built(ids()))
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    logits, state = compiled(ids(), return_last_state=True)
    for key, grad in gradients(built, logits).items():
        assert_close_relative(grad, expected[key], 1e-5, key)
    step = torch.compile(built.step, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_close_relative(step(ids()[:, :1], state)[0], built.step(ids()[:, :1], state)[0], 1e-5)


@pytest.mark.parametrize(("name", "error"), [("slstm", RecursionError), ("bias", pickle.PicklingError)])
def test_pickle_and_deepcopy(name: str, error: type[Exception]) -> None:
    """Theirs fails at the accessors of sLSTM cells, and at activations that are lambdas."""
    with pytest.raises(error):
        pickle.loads(pickle.dumps(model(name)))
    built = patched(name)
    for copied in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert torch.equal(copied(ids()), built(ids()))
        assert not set(map(id, copied.parameters())) & set(map(id, built.parameters()))
        unpatch(copied)
        assert_close_relative(copied(ids()), built(ids()), 1e-5)


def test_accessors_of_copies() -> None:
    """A deepcopy of theirs has a bare Parameter, in another layout, in the place of the accessor `recurrent_kernel`."""
    built = cell()
    assert isinstance(copy.deepcopy(built).recurrent_kernel, nn.Parameter)
    patch(built)
    for copied in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        copied.recurrent_kernel[:] = torch.ones(2, 8, 4, 8)
        assert copied._recurrent_kernel_.eq(1).all()
        assert not built._recurrent_kernel_.eq(1).any()


PROGRAM = """
import sys, torch, xlstm_cuda
from xlstm_cuda.testing import assert_close_relative
assert not {"xlstm", "mlstm_kernels"} & {name.partition(".")[0] for name in sys.modules}
model, tokens, expected = torch.load(sys.argv[1], weights_only=False)
assert not xlstm_cuda.patch(model).modules
assert_close_relative(model.double()(tokens), expected, 1e-12)  # threads may share the products otherwise
xlstm_cuda.unpatch(model)
assert_close_relative(model(tokens), expected, 1e-5)  # their eps, as above
"""


def test_saved_and_loaded_in_another_process(tmp_path: Path) -> None:
    """Which imports neither package before it needs it."""
    built = patched(MIXED)
    torch.save((built, ids(), copy.deepcopy(built).double()(ids())), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "model.pt"], check=True)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["mlstm", "slstm", "mixed"])
def test_bfloat16(name: str, autocast: bool) -> None:
    """No worse than theirs, and within what bfloat16 weights allow."""
    exact = model(name).double()(ids())
    built = model(name) if autocast else model(name).bfloat16()

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return relative_error(built(ids()), exact)

    theirs = error()
    patch(built)
    assert error() < max(1.25 * theirs, 0.02)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, state = built(ids(), return_last_state=True)
        logits, state = built.step(ids()[:, :1], state)
    assert logits.dtype == torch.bfloat16
    cells = [part for layer in state.values() for key, part in layer.items() if key != "conv_state"]
    assert {x.dtype for x in tensors(cells)} == {torch.float32}


def test_gates_stay_float32_under_autocast() -> None:
    built, seen = model("mlstm"), []
    built.xlstm_block_stack.blocks[0].xlstm.mlstm_cell.fgate.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.autocast("cpu", torch.bfloat16):
        built(ids())
        patch(built)
        built(ids())
    assert [gate.dtype for gate in seen] == [torch.bfloat16, torch.float32]


# The sLSTM cell by itself


def cell(backend: str = "vanilla", **options: Any) -> Any:
    """Built without compiling their CUDA kernels."""
    config = slstm_cell.sLSTMCellConfig(hidden_size=16, num_heads=2, backend=backend, **options)
    built = slstm_cell.sLSTMCell(config, skip_backend_init=True)
    randomise(built)
    return built


def test_states_of_bfloat16_cells() -> None:
    """Theirs rounds c, n and m to bfloat16 at every token."""
    built = cell()
    with torch.no_grad():
        built._bias_.view(4, 16)[1] = 6.0
    x = torch.randn(2, 1000, 64).bfloat16()
    exact = copy.deepcopy(built).double()(x.double())[0]
    built = built.bfloat16()
    theirs = relative_error(built(x)[0], exact)
    patch(built)
    ours = relative_error(built(x)[0], exact)
    assert ours < 4e-3
    assert theirs > 0.05


@pytest.mark.parametrize("input_shape", ["BSGNH", "SBGNH"])
@pytest.mark.parametrize("output_shape", ["BNSH", "SBH", "BSH", "SBNH"])
@pytest.mark.parametrize("function", ["slstm", "lstm"])
def test_cell_options(function: str, input_shape: str, output_shape: str) -> None:
    built = cell(function=function, input_shape=input_shape, output_shape=output_shape)
    x = torch.randn(3, 5, 64)
    y, state = built(x)
    expected, expected_state = built(x, state)
    patch(built)
    for actual, reference in zip((*built(x, state), *built(x)), (expected, expected_state, y, state), strict=True):
        assert_close_relative(actual, reference, 1e-5)


def test_cell_step_returns_the_next_state() -> None:
    built, x = cell(), torch.randn(3, 1, 64)
    _, state = built(torch.randn(3, 4, 64))
    expected = built(x, state)
    assert built.step(x, state)[1] is state  # theirs gives back the state it was given
    patch(built)
    for actual, reference in zip(built.step(x, state), expected, strict=True):
        assert_close_relative(actual, reference, 1e-5)


def test_cell_lengths() -> None:
    built, x = cell(), torch.randn(2, 7, 64)
    patch(built)
    _, state = built(x, lengths=torch.tensor([7, 4]))
    assert_close_relative(state[:, 1:], built(x[1:, :4])[1], 1e-5)


@pytest.mark.parametrize("name", ["slstm", "mixed"])
def test_cuda_cells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with backend="cuda", of which only the compilation of their kernels is left out: the layout is theirs."""
    source = patched(name).double()
    without_compilation(monkeypatch)
    twin = xlstm.xLSTMLMModel(build(xlstm, xlstm, backend="cuda", **CONFIGS[name])).double()
    copy_weights(source, twin)
    assert "sLSTMCell_cuda" in {cls for _, cls in patch(twin).modules}
    actual = twin(ids())
    assert_close_relative(actual, source(ids()), 1e-12)
    assert torch.equal(pickle.loads(pickle.dumps(twin))(ids()), actual)  # without what stands for compiled kernels


def test_gradients_of_cuda_cells() -> None:
    source, twin = cell().double(), cell("cuda").double()
    copy_weights(source, twin)
    patch(twin)
    x = torch.randn(3, 5, 64, dtype=torch.float64)
    expected, actual = gradients(source, source(x)[0]), gradients(twin, twin(x)[0])
    kernel, bias = expected["_recurrent_kernel_"], expected["_bias_"]
    assert_close_relative(actual["_recurrent_kernel_"], kernel.transpose(1, 2), 1e-9)
    assert_close_relative(actual["_bias_"], bias.view(4, 2, 8).transpose(0, 1).flatten(), 1e-9)


@pytest.mark.parametrize("option", [{"gradient_recurrent_cut": True}, {"gradient_recurrent_clipval": 1.0}])
def test_cuda_cells_with_other_gradients_are_refused(option: dict[str, Any]) -> None:
    """And nothing is patched. Vanilla cells ignore these options, patched or not."""
    built = nn.ModuleDict({"first": cell(), "second": cell("cuda", **option)})
    with pytest.raises(ValueError, match="second cuts or clips recurrent gradients"):
        patch(built)
    assert type(built["first"]) is slstm_cell.sLSTMCell_vanilla
    patch(cell(**option))
