"""Layers, blocks and stack: recurrence, checkpoints, a re-statement of the paper, tracing, configs."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from tests.support.machine import traced
from tests.support.rounding import assert_near_float64
from xlstm_cuda import functional
from xlstm_cuda import nn as xnn
from xlstm_cuda.nn.conv import CausalConv1d
from xlstm_cuda.nn.linear_headwise import LinearHeadwise
from xlstm_cuda.testing import assert_close_relative

DIM = 24
pytestmark = pytest.mark.usefixtures("module_backend")


def mlstm_config(**fields: Any) -> xnn.mLSTMLayerConfig:
    return xnn.mLSTMLayerConfig(**{"num_heads": 2, "embedding_dim": DIM, **fields})


def slstm_config(**fields: Any) -> xnn.sLSTMLayerConfig:
    return xnn.sLSTMLayerConfig(**{"num_heads": 2, "embedding_dim": DIM, **fields})


def stack_config(**fields: Any) -> xnn.xLSTMBlockStackConfig:
    blocks = {
        "mlstm_block": xnn.mLSTMBlockConfig(mlstm=xnn.mLSTMLayerConfig(num_heads=2)),
        "slstm_block": xnn.sLSTMBlockConfig(slstm=xnn.sLSTMLayerConfig(num_heads=2)),
    }
    return xnn.xLSTMBlockStackConfig(**{**blocks, "num_blocks": 3, "embedding_dim": DIM, "slstm_at": [1], **fields})


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlstm layer": lambda: xnn.mLSTMLayer(mlstm_config()),
    "mlstm layer, bias, kernel 1": lambda: xnn.mLSTMLayer(mlstm_config(bias=True, conv1d_kernel_size=1)),
    "slstm layer": lambda: xnn.sLSTMLayer(slstm_config()),
    "slstm layer, no conv": lambda: xnn.sLSTMLayer(slstm_config(conv1d_kernel_size=0, group_norm_weight=False)),
    "mlstm block": lambda: xnn.mLSTMBlock(xnn.mLSTMBlockConfig(mlstm=mlstm_config())),
    "slstm block": lambda: xnn.sLSTMBlock(xnn.sLSTMBlockConfig(slstm=slstm_config())),
    "stack": lambda: xnn.xLSTMBlockStack(stack_config()),
    "stack, no norm": lambda: xnn.xLSTMBlockStack(stack_config(add_post_blocks_norm=False)),
}
every_module = pytest.mark.parametrize("name", MODULES)


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The module with every parameter moved away from its initial value: zeros hide mistakes."""
    torch.manual_seed(0)
    module = MODULES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return module.to(dtype)


def inputs(seqlen: int, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seqlen)
    return torch.randn(batch, seqlen, DIM, dtype=torch.float64, generator=generator).to(dtype)


def steps(module: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    outputs = [x[:, :0]]
    for t in range(x.shape[1]):
        y, state = module.step(x[:, t : t + 1], state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def assert_states_close(actual: Any, expected: Any, tolerance: float) -> None:
    assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert_close_relative(a, b, tolerance)


@every_module
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
@pytest.mark.parametrize(("seqlen", "split"), [(1, 1), (23, 9), (70, 66)])
def test_prefill_and_steps(name: str, seqlen: int, split: int, dtype: torch.dtype, tolerance: float) -> None:
    module, x = build(name, dtype), inputs(seqlen, dtype)
    with torch.no_grad():
        expected, final = module(x, return_state=True)
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
        first, state = module(x[:, :split], return_state=True)
        by_token, by_token_state = steps(module, x)
        rest, rest_state = steps(module, x[:, split:], state)
        again, again_state = module(x[:, split:], state, True)
    assert expected.dtype == dtype and expected.shape == x.shape
    for y, following in [
        (by_token, by_token_state),
        (torch.cat([first, rest], 1), rest_state),
        (torch.cat([first, again], 1), again_state),
    ]:
        assert_close_relative(y, expected, tolerance)
        assert_states_close(following, final, tolerance)


@every_module
def test_no_token(name: str) -> None:
    module, x = build(name), inputs(6)
    y, state = module(x[:, :0], return_state=True)
    assert y.shape == (2, 0, DIM)
    torch.testing.assert_close(module(x, state), module(x), rtol=0, atol=0)
    state = module(x, return_state=True)[1]
    assert_states_close(module(x[:, :0], state, True)[1], state, 0)


@every_module
def test_gradients_through_the_state(name: str) -> None:
    """Two segments give the gradients of the whole, and so do single steps."""
    x, weight = inputs(9), inputs(9).flip(1)
    grads = []
    for run in ("whole", "segments", "steps"):
        module = build(name)
        if run == "whole":
            y = module(x)
        elif run == "segments":
            first, state = module(x[:, :4], return_state=True)
            y = torch.cat([first, module(x[:, 4:], state)], 1)
        else:
            y = steps(module, x)[0]
        (y * weight).sum().backward()
        grads.append({key: parameter.grad for key, parameter in module.named_parameters()})
    for other in grads[1:]:
        for key, grad in grads[0].items():
            assert grad is not None and grad.abs().sum() > 0, key
            torch.testing.assert_close(other[key], grad, rtol=1e-8, atol=1e-10, msg=key)


def convolved(x: Tensor, conv: nn.Conv1d) -> Tensor:
    padded = F.pad(x.mT, (conv.kernel_size[0] - 1, 0))
    return F.silu(F.conv1d(padded, conv.weight, conv.bias, groups=x.shape[-1])).mT


def normalised(h: Tensor, weight: Tensor) -> Tensor:
    """h (B, H, D), each head normalised -> (B, H D)."""
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return h.flatten(1) * (1 + weight)


def blockwise(x: Tensor, weight: Tensor) -> Tensor:
    return x @ torch.block_diag(*weight).mT


def paper_mlstm(layer: Any, x: Tensor) -> Tensor:
    """Figure 11 and equations 19 to 27 without stabiliser; eps counts in the stabilised scale exp(m)."""
    p = dict(layer.named_parameters())
    heads, eps = layer.config.num_heads, 1e-6
    u, z = (x @ p["proj_up.weight"].mT).chunk(2, -1)
    conv = convolved(u, layer.conv1d.conv)
    q, k, v = (blockwise(a, p[f"{n}_proj.weight"]) for a, n in ((conv, "q"), (conv, "k"), (u, "v")))
    gates = torch.cat([q, k, v], -1)
    i, f = (gates @ p[f"mlstm_cell.{n}gate.weight"].mT + p[f"mlstm_cell.{n}gate.bias"] for n in "if")  # (B, S, H)
    q, k, v = (a.unflatten(-1, (heads, -1)) for a in (q, k, v))
    q = q / q.shape[-1] ** 0.5
    C = n = m = torch.zeros((), dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        forget, write = torch.sigmoid(f[:, t])[..., None], torch.exp(i[:, t])[..., None]
        m = torch.maximum(F.logsigmoid(f[:, t]) + m, i[:, t])
        C = forget[..., None] * C + write[..., None] * k[:, t, :, :, None] * v[:, t, :, None, :]
        n = forget * n + write * k[:, t]
        denominator = (n * q[:, t]).sum(-1).abs().clamp(min=1) + eps * torch.exp(m)
        h = torch.einsum("bhij,bhi->bhj", C, q[:, t]) / denominator[..., None]
        h = normalised(h, p["mlstm_cell.outnorm.weight"]) + p["learnable_skip"] * conv[:, t]
        outputs.append((h * F.silu(z[:, t])) @ p["proj_down.weight"].mT)
    return torch.stack(outputs, 1)


def paper_slstm(layer: Any, x: Tensor) -> Tensor:
    """Figure 10 and equations 8 to 14 without stabiliser, with the exchanged names of the public code."""
    p = dict(layer.named_parameters())
    heads, dim = layer.config.num_heads, x.shape[-1] // layer.config.num_heads
    conv = convolved(x, layer.conv1d.conv)
    parts = [(conv, "fgate"), (conv, "igate"), (x, "zgate"), (x, "ogate")]  # of i, f, z, o
    wx = [blockwise(a, p[f"{name}.weight"]) for a, name in parts]
    kernel = p["slstm_cell._recurrent_kernel_"].view(heads, dim, 4, dim)
    bias = p["slstm_cell._bias_"].view(heads, 4, dim)
    c = n = torch.zeros((), dtype=x.dtype)
    h = torch.zeros(x.shape[0], heads, dim, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        i, f, z, o = (
            wx[g][:, t].view(-1, heads, dim)
            + torch.stack([h[:, j] @ kernel[j, :, g] for j in range(heads)], 1)
            + bias[:, g]
            for g in range(4)
        )
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        outputs.append(normalised(h, p["group_norm.weight"]))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(("name", "paper"), [("mlstm layer", paper_mlstm), ("slstm layer", paper_slstm)])
def test_layers_of_the_paper(name: str, paper: Callable[[Any, Tensor], Tensor]) -> None:
    layer, x = build(name), inputs(31)
    torch.testing.assert_close(layer(x), paper(layer, x), rtol=1e-10, atol=1e-10)


def test_blocks_of_the_paper() -> None:
    block: Any = build("slstm block")
    x = inputs(5)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), 1 + weight)

    y = x + block.xlstm(norm(x, block.xlstm_norm.weight))
    gate, up = (norm(y, block.ffn_norm.weight) @ block.ffn.proj_up.weight.mT).chunk(2, -1)
    expected = y + (F.gelu(gate) * up) @ block.ffn.proj_down.weight.mT
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


MLSTM_BLOCK = {
    "xlstm_norm.weight": (24,),
    "xlstm.learnable_skip": (64,),
    "xlstm.proj_up.weight": (128, 24),
    "xlstm.q_proj.weight": (16, 4, 4),
    "xlstm.k_proj.weight": (16, 4, 4),
    "xlstm.v_proj.weight": (16, 4, 4),
    "xlstm.conv1d.conv.weight": (64, 1, 4),
    "xlstm.conv1d.conv.bias": (64,),
    "xlstm.mlstm_cell.igate.weight": (2, 192),
    "xlstm.mlstm_cell.igate.bias": (2,),
    "xlstm.mlstm_cell.fgate.weight": (2, 192),
    "xlstm.mlstm_cell.fgate.bias": (2,),
    "xlstm.mlstm_cell.outnorm.weight": (64,),
    "xlstm.proj_down.weight": (24, 64),
}
SLSTM_BLOCK = {
    "xlstm_norm.weight": (24,),
    "xlstm.conv1d.conv.weight": (24, 1, 4),
    "xlstm.conv1d.conv.bias": (24,),
    "xlstm.fgate.weight": (2, 12, 12),
    "xlstm.igate.weight": (2, 12, 12),
    "xlstm.zgate.weight": (2, 12, 12),
    "xlstm.ogate.weight": (2, 12, 12),
    "xlstm.slstm_cell._recurrent_kernel_": (2, 12, 48),
    "xlstm.slstm_cell._bias_": (96,),
    "xlstm.group_norm.weight": (24,),
    "ffn_norm.weight": (24,),
    "ffn.proj_up.weight": (128, 24),
    "ffn.proj_down.weight": (24, 64),
}


def test_state_dict_keys_and_shapes() -> None:
    expected: dict[str, tuple[int, ...]] = {"post_blocks_norm.weight": (24,)}
    for index, block in enumerate((MLSTM_BLOCK, SLSTM_BLOCK, MLSTM_BLOCK)):
        expected |= {f"blocks.{index}.{key}": shape for key, shape in block.items()}
    assert {key: tuple(value.shape) for key, value in build("stack").state_dict().items()} == expected


@pytest.mark.parametrize("assign", [False, True])
def test_both_layouts_of_the_recurrent_kernel(assign: bool) -> None:
    layer, x = build("slstm layer"), inputs(7)
    cuda = layer.state_dict()
    heads, gates, dim = 2, 4, 12
    kernel, bias = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"
    vanilla = dict(cuda)
    # (H, in, gate, out) -> (H, gate, out, in);  (H, gate, D) -> (gate, H, D)
    vanilla[kernel] = cuda[kernel].reshape(heads, dim, gates, dim).permute(0, 2, 3, 1).reshape(heads, gates * dim, dim)
    vanilla[bias] = cuda[bias].reshape(heads, gates, dim).permute(1, 0, 2).reshape(-1)
    given = {key: value.clone() for key, value in vanilla.items()}
    for state_dict in (cuda, vanilla):
        other = xnn.sLSTMLayer(slstm_config()).double()
        other.load_state_dict(state_dict, assign=assign)
        torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
        assert all(torch.equal(value, cuda[key]) for key, value in other.state_dict().items())
    assert all(torch.equal(vanilla[key], given[key]) for key in given), "the given state_dict was changed"


def test_wrong_kernel_shape_is_refused() -> None:
    layer = build("slstm layer")
    state_dict = layer.state_dict()
    state_dict["slstm_cell._recurrent_kernel_"] = torch.zeros(2, 12, 12)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(state_dict)


@every_module
def test_copies(name: str) -> None:
    module, x = build(name), inputs(4)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    expected, state = module(x, return_state=True)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    assert_states_close(pickle.loads(pickle.dumps(state)), state, 0)


@traced
@pytest.mark.parametrize("name", ["mlstm block", "slstm block"])
def test_compile(name: str) -> None:
    module, x = build(name), inputs(3)
    expected, state = module(x, return_state=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    y, following = compiled(x, None, True)
    torch.testing.assert_close(y, expected)
    assert_states_close(following, state, 1e-10)
    y.sum().backward()
    grads = {key: parameter.grad.clone() for key, parameter in module.named_parameters()}
    module.zero_grad()
    expected.sum().backward()
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(grads[key], parameter.grad, msg=key)

    step = torch.compile(module.step, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(step(x[:, :1], state)[0], module.step(x[:, :1], state)[0])


@traced
def test_export() -> None:
    module, x = build("stack"), inputs(3)
    state = module(x, return_state=True)[1]
    with torch.no_grad():
        program = torch.export.export(module, (x, state, True))
        saved = io.BytesIO()
        torch.export.save(program, saved)
        saved.seek(0)
        y, following = torch.export.load(saved).module()(x, state, True)
        expected, expected_state = module(x, state, True)
    torch.testing.assert_close(y, expected)
    assert_states_close(following, expected_state, 1e-10)


@traced
def test_export_any_length() -> None:
    module = build("stack")
    seqlen = torch.export.Dim("seqlen", min=2)
    with torch.no_grad():
        program = torch.export.export(module, (inputs(5),), dynamic_shapes={"x": {1: seqlen}})
        for length in (2, 5, 131):
            torch.testing.assert_close(program.module()(inputs(length)), module(inputs(length)))


@pytest.mark.parametrize("name", ["mlstm layer", "slstm layer"])
def test_autocast_keeps_gates_and_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = build(name, torch.float32), inputs(33, torch.float32)
    seen: list[torch.dtype] = []
    mlstm = functional.mlstm

    def spy(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, **options: Any) -> Any:
        seen.extend([q.dtype, i.dtype, f.dtype])
        assert q.transpose(1, 2).is_contiguous(), "q was copied"
        return mlstm(q, k, v, i, f, **options)

    monkeypatch.setattr(functional, "mlstm", spy)
    with torch.autocast(x.device.type, torch.bfloat16):
        y, state = module(x, return_state=True)
    assert {leaf.dtype for leaf in state.cell} == {torch.float32}
    assert seen == ([torch.bfloat16, torch.float32, torch.float32] if name == "mlstm layer" else [])
    assert_near_float64({"y": y}, module, lambda wide: {"y": wide(x.double())}, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters(dtype: torch.dtype) -> None:
    module, x = build("stack", dtype), inputs(33, dtype)
    y, state = module(x, return_state=True)
    assert y.dtype == dtype
    assert {leaf.dtype for block in state for leaf in block.cell} == {torch.float32}
    assert_near_float64({"y": y}, module, lambda wide: {"y": wide(x.double())}, dtype)


@pytest.mark.parametrize(("features", "heads"), [(256, 64), (64, 16), (60, 20), (30, 2), (200, 1), (24, 24), (132, 33)])
def test_linear_headwise(features: int, heads: int) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    linear = LinearHeadwise(features, heads, bias=True).double()
    for seqlen in (1, 3):
        x = torch.randn(2, seqlen, features, dtype=torch.float64, generator=generator)
        expected = blockwise(x, linear.weight) + linear.bias
        torch.testing.assert_close(linear(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
@pytest.mark.parametrize("seqlen", [1, 2, 9])
def test_convolution(kernel_size: int, seqlen: int) -> None:
    conv, x = CausalConv1d(DIM, kernel_size).double(), inputs(seqlen)
    y, state = conv(x)
    torch.testing.assert_close(F.silu(y), convolved(x, conv.conv), rtol=1e-12, atol=1e-12)
    assert torch.equal(state, F.pad(x, (0, 0, kernel_size - 1, 0))[:, seqlen:])


def test_initial_values() -> None:
    config = stack_config(num_blocks=5, slstm_at=[0, 2, 4], embedding_dim=64)
    stack: Any = xnn.xLSTMBlockStack(config)
    forget = [stack.blocks[j].xlstm.slstm_cell._bias_.view(2, 4, 32) for j in (0, 2, 4)]
    for depth, bias in zip((0.0, 0.5, 1.0), forget, strict=True):
        expected = 5 - 12 * (torch.arange(32) / 31) ** (0.3 + 1.3 * depth)
        torch.testing.assert_close(bias[:, 1], expected.expand(2, 32), rtol=1e-5, atol=1e-5)
        assert bias[:, [0, 2, 3]].abs().max() == 0
    assert stack.blocks[0].xlstm.slstm_cell._recurrent_kernel_.abs().max() == 0
    mlstm = stack.blocks[1].xlstm
    assert mlstm.mlstm_cell.fgate.bias.tolist() == [3.0, 6.0]
    assert mlstm.mlstm_cell.fgate.weight.abs().max() == 0 == mlstm.mlstm_cell.igate.weight.abs().max()
    assert mlstm.proj_up.weight.std().item() == pytest.approx((2 / (5 * 64)) ** 0.5, rel=0.1)
    assert mlstm.proj_down.weight.std().item() == pytest.approx(2 / 5 / 64**0.5, rel=0.1)
    assert mlstm.q_proj.weight.std().item() == pytest.approx((2 / (5 * 64)) ** 0.5, rel=0.2)
    before = {key: value.clone() for key, value in stack.state_dict().items()}
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(7.0)
    stack.reset_parameters()
    for key, value in stack.state_dict().items():
        assert value.mean() < 6.5 and value.shape == before[key].shape, key


@pytest.mark.parametrize("name", ["standard", "small_init", "zeros"])
def test_bias_init(name: str) -> None:
    layer = xnn.sLSTMLayer(slstm_config(bias_init=name, recurrent_weight_init="standard"))
    bias = layer.slstm_cell._bias_.view(2, 4, 12)
    bound = DIM**-0.5
    assert 0.5 * bound < layer.slstm_cell._recurrent_kernel_.abs().max() <= bound
    if name == "standard":
        assert 0.5 * bound < bias.abs().max() <= bound
    else:
        assert bias[:, [0, 2, 3]].abs().max() == 0
        expected = torch.linspace(3, 6, 12) if name == "small_init" else torch.zeros(12)
        torch.testing.assert_close(bias[:, 1], expected.expand(2, 12))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xnn.mLSTMLayer(xnn.mLSTMLayerConfig()), "embedding_dim must be positive"),
        (lambda: xnn.mLSTMLayer(mlstm_config(num_heads=5)), "num_heads must divide the inner width 64"),
        (lambda: xnn.mLSTMLayer(mlstm_config(num_heads=0)), "num_heads must be positive"),
        (lambda: xnn.mLSTMLayer(mlstm_config(qkv_proj_blocksize=7)), "qkv_proj_blocksize must divide"),
        (lambda: xnn.mLSTMLayer(mlstm_config(conv1d_kernel_size=0)), "conv1d_kernel_size must be positive"),
        (lambda: xnn.sLSTMLayer(slstm_config(num_heads=5)), "num_heads must divide embedding_dim 24, got 5"),
        (lambda: xnn.sLSTMLayer(slstm_config(conv1d_kernel_size=-1)), "conv1d_kernel_size must be >= 0"),
        (lambda: slstm_config(bias_init="ones"), "bias_init must be one of powerlaw_blockdependent.*got 'ones'"),
        (lambda: slstm_config(recurrent_weight_init="ones"), "recurrent_weight_init must be one of"),
        (lambda: slstm_config(function="lstm"), "function must be 'slstm', got 'lstm'"),
        (lambda: slstm_config(gradient_recurrent_cut=True), "gradient_recurrent_cut must be False"),
        (lambda: xnn.FeedForwardConfig(act_fn="tanh"), "act_fn must be one of gelu.*got 'tanh'"),
        (lambda: xnn.FeedForwardConfig(ff_type="moe"), "ff_type must be 'ffn_gated'"),
        (lambda: stack_config(embedding_dim=25), "num_heads must divide embedding_dim 25"),
        (lambda: stack_config(slstm_at=[3]), "positions from 0 to 2, got 3"),
        (lambda: stack_config(slstm_at=[-1]), "positions from 0 to 2, got -1"),
        (lambda: stack_config(slstm_at="none"), "slstm_at must be a list of positions or 'all', got 'none'"),
        (lambda: stack_config(slstm_block=None), "slstm_block is needed"),
        (lambda: stack_config(mlstm_block=None, slstm_block=None), "slstm_block is needed"),
        (lambda: stack_config(embedding_dim=0), "embedding_dim must be positive"),
        (lambda: stack_config(num_blocks=-1), "num_blocks must be >= 0"),
    ],
)
def test_config_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_module
def test_input_errors(name: str) -> None:
    module: Any = build(name)
    for wrong in (inputs(3)[0], inputs(3)[..., :-1]):
        with pytest.raises(ValueError, match="x must have shape"):
            module(wrong)
    for seqlen in (0, 17):
        with pytest.raises(ValueError, match="step takes 1 to 16 tokens"):
            module.step(inputs(seqlen))
    if "no conv" not in name and "kernel 1" not in name:
        with pytest.raises(ValueError, match="conv state must have shape"):
            module(inputs(3), module(inputs(3, batch=3), return_state=True)[1])


def test_stack_state_of_another_depth() -> None:
    stack: Any = build("stack")
    state = stack(inputs(3), return_state=True)[1]
    for run in (stack, stack.step):
        with pytest.raises(ValueError, match="state must hold 3 block states, got 2"):
            run(inputs(1), state[:2])


def test_stack_leaves_the_given_configs_alone() -> None:
    block = xnn.mLSTMBlockConfig(mlstm=xnn.mLSTMLayerConfig(num_heads=2))
    small = stack_config(mlstm_block=block, embedding_dim=16)
    large = stack_config(mlstm_block=block, embedding_dim=32)
    assert block.mlstm.embedding_dim == -1
    assert small.mlstm_block is not None and small.mlstm_block.mlstm.embedding_dim == 16
    assert large.mlstm_block is not None and large.mlstm_block.mlstm.embedding_dim == 32
    assert stack_config(slstm_at="all").block_map == [1, 1, 1] == stack_config(mlstm_block=None, slstm_at=[]).block_map


def test_dropout() -> None:
    stack: Any = xnn.xLSTMBlockStack(stack_config(dropout=0.5))
    x = inputs(5, torch.float32)
    assert stack.blocks[0].xlstm.dropout.p == stack.blocks[1].xlstm.dropout.p == 0.5
    assert not torch.equal(stack(x), stack(x))
    stack.eval()
    assert torch.equal(stack(x), stack(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slstm_at": 1}, "slstm_at must be a list of positions or 'all', got 1"),
        ({"slstm_at": [1.0]}, r"slstm_at must be a list of positions or 'all', got \[1.0\]"),
        (
            {"mlstm_block": xnn.mLSTMLayerConfig()},
            "mlstm_block must be .*nn.blocks.mLSTMBlockConfig or None, got .*mLSTMLayerConfig",
        ),
        (
            {"slstm_block": xnn.mLSTMBlockConfig()},
            "slstm_block must be .*nn.blocks.sLSTMBlockConfig or None, got .*mLSTMBlockConfig",
        ),
    ],
)
def test_stack_config_of_the_wrong_kind(fields: dict[str, Any], message: str) -> None:
    good = {"mlstm_block": xnn.mLSTMBlockConfig(), "slstm_block": xnn.sLSTMBlockConfig(), "num_blocks": 2}
    with pytest.raises(ValueError, match=message):
        xnn.xLSTMBlockStackConfig(**{**good, **fields})
