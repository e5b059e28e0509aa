"""nn.LSTM against torch.nn.LSTM; nn.sLSTM and nn.mLSTM against a restatement with the reference."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from xlstm_cuda import LSTMState, MLSTMState, SLSTMState, reference
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative, relative_error

INPUTS, HIDDEN, S, B = 5, 6, 7, 4
LENGTHS = torch.tensor([3, 7, 1, 5])
MODULES = [xnn.LSTM, xnn.sLSTM, xnn.mLSTM]
modules = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
KINDS = ("batched", "unbatched", "packed", "packed, sorted")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(module: Any, *args: Any, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(seed)
    return module(*args, dtype=dtype, **options)


def build_input(kind: str, batch_first: bool, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """A leaf, and what is made of it for the module."""
    if kind == "unbatched":
        x = draw(S, INPUTS, dtype=dtype).requires_grad_()
        return x, x
    x = draw(*((B, S) if batch_first else (S, B)), INPUTS, dtype=dtype).requires_grad_()
    if kind == "batched":
        return x, x
    lengths = LENGTHS.sort(descending=True)[0] if kind == "packed, sorted" else LENGTHS
    return x, pack_padded_sequence(x, lengths, batch_first, enforce_sorted=kind == "packed, sorted")


def state_for(module: Any, batch: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """A random state, n > 0, as leaves."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    heads, dim, hidden = getattr(module, "num_heads", 1), HIDDEN // getattr(module, "num_heads", 1), (HIDDEN,)
    shapes: list[tuple[int, ...]] = [(module.proj_size or HIDDEN,), hidden, hidden, hidden]
    if isinstance(module, xnn.mLSTM):
        shapes = [(heads, dim, dim), (heads, dim), (heads,)]
    elif not isinstance(module, xnn.sLSTM):
        shapes = shapes[:2]
    parts = [draw(layers, *batch, *shape, seed=j, dtype=dtype) for j, shape in enumerate(shapes)]
    if isinstance(module, xnn.sLSTM):
        parts[2] = parts[2].abs() + 0.5
    return tuple(part.requires_grad_() for part in parts)


def results(module: Any, input: Any, hx: Any, sources: list[Tensor]) -> list[Tensor]:
    """Output, state, and the gradients of a random linear loss of both."""
    output, state = module(input, hx)
    values = [output.data if isinstance(output, PackedSequence) else output, *state]
    weights = [draw(*v.shape, seed=100 + j, dtype=v.dtype) for j, v in enumerate(values)]
    return values + list(torch.autograd.grad(values, [*sources, *module.parameters()], weights, True))


def assert_same(actual: list[Tensor], expected: list[Tensor], tol: float) -> None:
    for j, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype
        assert_close_relative(a, e, tol, f"result {j}")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("given", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_lstm_is_torchs(
    batch_first: bool, bidirectional: bool, layers: int, bias: bool, proj_size: int, kind: str, given: bool
) -> None:
    """Initial values, outputs, states, every gradient; state_dicts in both directions."""
    options = (INPUTS, HIDDEN, layers, bias, batch_first, 0.0, bidirectional, proj_size)
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        theirs, ours = make(nn.LSTM, *options, dtype=dtype), make(xnn.LSTM, *options, dtype=dtype)
        x, input = build_input(kind, batch_first, dtype)
        hx = state_for(theirs, () if kind == "unbatched" else (B,), dtype) if given else None
        sources = [x, *(hx or ())]
        expected = results(theirs, input, hx, sources)
        actual = results(ours, input, hx, sources)
        assert_same(actual, expected, tol)
        assert actual[0].is_contiguous()
        if isinstance(input, PackedSequence):
            for index, same in zip(ours(input, hx)[0][1:], theirs(input, hx)[0][1:], strict=True):
                assert (index is None and same is None) or torch.equal(index, same)
    loaded = make(xnn.LSTM, *options, seed=1, dtype=dtype)
    loaded.load_state_dict(theirs.state_dict())
    assert_same(results(loaded, input, hx, sources), expected, tol)
    theirs.load_state_dict(make(xnn.LSTM, *options, seed=1).state_dict())
    assert not torch.equal(theirs.weight_hh_l0, loaded.weight_hh_l0)


def test_lstm_trains_as_torchs() -> None:
    """Step for step in float64: 30 steps make some hundred times more of its rounding, which is 2e-16."""
    losses: dict[Any, list[Tensor]] = {nn.LSTM: [], xnn.LSTM: []}
    x = draw(12, 8, INPUTS)
    target = x[..., :1].cumsum(0)
    for cls, curve in losses.items():
        body = make(cls, INPUTS, 16, 2, bidirectional=True)
        head = make(nn.Linear, 32, 1)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.mse_loss(head(body(x)[0]), target)
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
    ours, theirs = torch.stack(losses[xnn.LSTM]), torch.stack(losses[nn.LSTM])
    assert relative_error(theirs[1:], theirs[:-1]) > 1e-3, "the steps are too small to tell anything"
    assert_close_relative(ours, theirs, 1e-10)


def test_lstm_heads_are_blocks() -> None:
    """With several heads: torch.nn.LSTM with block-diagonal weight_hh and weight_hr."""
    for proj_size in (0, 4):
        ours = make(xnn.LSTM, INPUTS, HIDDEN, 2, bidirectional=True, proj_size=proj_size, num_heads=2)
        theirs = make(nn.LSTM, INPUTS, HIDDEN, 2, bidirectional=True, proj_size=proj_size)
        weights = dict(ours.state_dict())
        for name, w in weights.items():
            if "_hh_" in name and w.ndim == 2:
                weights[name] = torch.cat([torch.block_diag(*gate.chunk(2)) for gate in w.chunk(4)])
            if "_hr_" in name:
                weights[name] = torch.block_diag(*w.chunk(2))
        theirs.load_state_dict(weights)
        hx, x = state_for(theirs, (B,)), draw(S, B, INPUTS)
        (output, state), (expected, expected_state) = ours(x, hx), theirs(x, hx)
        assert_same([output, *state], [expected, *expected_state], 1e-10)


def plain_slstm(p: dict[str, Tensor], x: Tensor, hx: SLSTMState, heads: int) -> tuple[Tensor, SLSTMState]:
    """One layer, one direction, token by token: x (B, S, F); with weight_hr h is projected and fed back."""
    dim = HIDDEN // heads
    gates, identity = (4, heads, dim), torch.eye(dim, dtype=x.dtype).expand(heads, dim, dim)
    P = p["weight_hr_l0"].view(heads, -1, dim) if "weight_hr_l0" in p else identity
    R, p_h, outputs = p["weight_hh_l0"].view(*gates, -1), hx.h.view(len(x), heads, -1), []
    state = SLSTMState(*(torch.zeros(len(x), heads, dim, dtype=x.dtype),) * 4)
    state = SLSTMState(state.h, *(s.view(len(x), heads, dim) for s in hx[1:]))
    for token in x.unbind(1):
        raw = F.linear(token, p["weight_ih_l0"], p["bias_ih_l0"] + p["bias_hh_l0"]).view(-1, *gates)
        raw = raw + torch.einsum("ghdp,bhp->bghd", R, p_h)
        h, state = reference.slstm_step(raw, torch.zeros(4, heads, dim, dim, dtype=x.dtype), None, state)
        p_h = torch.einsum("bhd,hpd->bhp", h, P)
        outputs.append(p_h.flatten(1))
    return torch.stack(outputs, 1), SLSTMState(p_h.flatten(1), *(s.flatten(1) for s in state[1:]))


def plain_mlstm(p: dict[str, Tensor], x: Tensor, hx: MLSTMState, heads: int) -> tuple[Tensor, MLSTMState]:
    q, k, v, o = F.linear(x, p["weight_ih_l0"], p["bias_ih_l0"]).chunk(4, -1)
    i, f = F.linear(x, p["weight_if_l0"], p["bias_if_l0"]).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    h, state = reference.mlstm(
        q, k, v, i.transpose(1, 2), f.transpose(1, 2), initial_state=hx, return_state=True
    )  # fmt: skip
    y = o.sigmoid() * h.transpose(1, 2).flatten(2)
    return (y @ p["weight_hr_l0"].T if "weight_hr_l0" in p else y), state


@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("module", [xnn.sLSTM, xnn.mLSTM], ids=lambda module: module.__name__)
def test_cells_against_the_reference(module: Any, heads: int, proj_size: int) -> None:
    plain: Any = plain_slstm if module is xnn.sLSTM else plain_mlstm
    ours = make(module, INPUTS, HIDDEN, batch_first=True, proj_size=proj_size, num_heads=heads)
    hx, x = ours.state_type(*state_for(ours, (B,))), draw(B, S, INPUTS).requires_grad_()

    class Plain(nn.Module):
        def forward(self, x: Tensor, hx: Any) -> tuple[Tensor, list[Tensor]]:
            output, state = plain(dict(ours.named_parameters()), x, type(hx)(*(s[0] for s in hx)), heads)
            return output, [s[None] for s in state]

    wrapped = Plain()
    wrapped.cell = ours
    assert_same(results(ours, x, hx, [x, *hx]), results(wrapped, x, hx, [x, *hx]), 1e-10)


@modules
@pytest.mark.parametrize("proj_size", [0, 4])
def test_directions_and_layers(module: Any, proj_size: int) -> None:
    """Two layers in both directions are four modules, the reversed ones on the flipped input."""
    whole = make(module, INPUTS, HIDDEN, 2, bidirectional=True, proj_size=proj_size, num_heads=2)
    hx, x = whole.state_type(*state_for(whole, (B,))), draw(S, B, INPUTS)
    y, finals = x, []
    for layer in range(2):
        outputs = []
        for direction, suffix in enumerate(["", "_reverse"]):
            part = make(module, y.shape[-1], HIDDEN, proj_size=proj_size, num_heads=2)
            part.load_state_dict(
                {n: whole.state_dict()[n.replace("_l0", f"_l{layer}{suffix}")] for n in part.state_dict()}
            )
            start = type(hx)(*(s[2 * layer + direction, None] for s in hx))
            output, final = part(y.flip(0) if direction else y, start)
            outputs.append(output.flip(0) if direction else output)
            finals.append(final)
        y = torch.cat(outputs, -1)
    output, state = whole(x, hx)
    assert_same([output, *state], [y, *(torch.cat(parts) for parts in zip(*finals, strict=True))], 1e-12)


@modules
@pytest.mark.parametrize("given", [False, True], ids=["", "hx"])
def test_packed_is_one_by_one(module: Any, given: bool) -> None:
    ours = make(module, INPUTS, HIDDEN, 2, bidirectional=True, proj_size=4, num_heads=2)
    rows = [draw(int(n), INPUTS, seed=int(n)).requires_grad_() for n in LENGTHS]
    hx = ours.state_type(*state_for(ours, (B,))) if given else None

    class OneByOne(nn.Module):
        def forward(self, rows: list[Tensor], hx: Any) -> tuple[Tensor, list[Tensor]]:
            starts = [None if hx is None else type(hx)(*(s[:, j] for s in hx)) for j in range(B)]
            pairs = [ours(x, start) for x, start in zip(rows, starts, strict=True)]
            packed = pack_sequence([output for output, _ in pairs], enforce_sorted=False)
            return packed.data, [torch.stack(parts, 1) for parts in zip(*(state for _, state in pairs), strict=True)]

    single = OneByOne()
    single.module = ours
    sources = [*rows, *(hx or ())]
    expected = results(single, rows, hx, sources)
    assert_same(results(ours, pack_sequence(rows, enforce_sorted=False), hx, sources), expected, 1e-12)


@modules
@pytest.mark.parametrize("proj_size", [0, 4])
def test_state_carries_on(module: Any, proj_size: int) -> None:
    """Two halves are the whole; no token changes nothing; no rows are allowed."""
    ours = make(module, INPUTS, HIDDEN, 2, proj_size=proj_size, num_heads=2)
    x = draw(S, B, INPUTS)
    expected, expected_state = ours(x)
    first, state = ours(x[:3])
    nothing, same = ours(x[:0], state)
    second, state = ours(x[3:], same)
    assert nothing.shape == (0, B, proj_size or HIDDEN)
    assert_same([torch.cat([first, second]), *state], [expected, *expected_state], 1e-12)
    assert type(state) is {xnn.LSTM: LSTMState, xnn.sLSTM: SLSTMState, xnn.mLSTM: MLSTMState}[module]
    assert ours(x[:, :0])[0].shape == (S, 0, proj_size or HIDDEN)


def test_initial_biases() -> None:
    slstm, mlstm = xnn.sLSTM(3, 8, num_heads=2), xnn.mLSTM(3, 8, num_heads=2)
    b = (slstm.bias_ih_l0 + slstm.bias_hh_l0).view(4, 2, 4)
    assert torch.equal(b[1], torch.linspace(3, 6, 4).expand(2, 4)) and not b[[0, 2, 3]].any()
    assert mlstm.bias_if_l0.tolist() == [0, 0, 3, 6] and not mlstm.bias_ih_l0.any()


def test_dropout_between_layers() -> None:
    with pytest.warns(UserWarning, match="dropout=0.5 comes after every layer but the last"):
        last = make(xnn.LSTM, HIDDEN, HIDDEN, batch_first=True, dropout=0.5)
    ours = make(xnn.LSTM, HIDDEN, HIDDEN, 2, batch_first=True, dropout=0.5)
    first = make(xnn.LSTM, HIDDEN, HIDDEN, batch_first=True)
    weights = ours.state_dict()
    first.load_state_dict({name: weights[name] for name in first.state_dict()})
    last.load_state_dict({name: weights[name.replace("l0", "l1")] for name in last.state_dict()})
    x = draw(B, S, HIDDEN)
    torch.manual_seed(3)
    actual = ours(x)[0]
    torch.manual_seed(3)
    assert torch.equal(actual, last(F.dropout(first(x)[0], 0.5))[0])
    assert torch.equal(ours.eval()(x)[0], last(first(x)[0])[0])
    assert xnn.LSTM(3, 4, 2, dropout=Fraction(1, 2)).dropout == 0.5  # any real number, those of NumPy too
    theirs, ours = (make(cls, HIDDEN, HIDDEN, 3, dropout=1.0) for cls in (nn.LSTM, xnn.LSTM))
    assert_close_relative(ours(x)[0], theirs(x)[0], 1e-12)


OPTIONS = {
    "hidden_size=6, num_heads=4": ({"num_heads": 4}, ValueError, "hidden_size must be divisible by num_heads"),
    "proj_size=3, num_heads=2": ({"num_heads": 2, "proj_size": 3}, ValueError, "proj_size must be divisible by"),
    "proj_size=6": ({"proj_size": 6}, ValueError, "proj_size must be smaller than hidden_size=6, got 6"),
    "proj_size=-1": ({"proj_size": -1}, ValueError, "proj_size must be at least 0, got -1"),
    "num_layers=0": ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
    "num_heads=0": ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
    "hidden_size=2.0": ({"hidden_size": 2.0}, TypeError, "hidden_size must be an int, got float"),
    "dropout=2": ({"dropout": 2}, ValueError, "dropout must be a number between 0 and 1, got 2"),
    "dropout=True": ({"dropout": True}, ValueError, "dropout must be a number between 0 and 1, got True"),
    "bias=None": ({"bias": None}, TypeError, "bias must be a bool, got NoneType"),
}


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS.values(), ids=OPTIONS.keys())
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^LSTM: {message}"):
        xnn.LSTM(**{"input_size": INPUTS, "hidden_size": HIDDEN, **options})


def test_mlstm_projects_all_heads() -> None:
    assert xnn.mLSTM(3, 6, num_heads=2, proj_size=5).weight_hr_l0.shape == (5, 6)
    with pytest.raises(ValueError, match="^mLSTM: hidden_size .* got hidden_size=6, num_heads=4"):
        xnn.mLSTM(3, 6, num_heads=4)


x, h = torch.zeros(S, B, INPUTS), torch.zeros(1, B, HIDDEN)
ROWS: dict[str, tuple[Any, Any, str]] = {
    "4-D": (x[None], None, "input must be 2-D, or 3-D for a batch, got 4-D"),
    "1-D": (x[0, 0], None, "input must be 2-D, or 3-D for a batch, got 1-D"),
    "features": (x[..., 1:], None, r"input must have input_size=5 features, got shape \(7, 4, 4\)"),
    "dtype": (x.double(), None, "input must have the dtype of the weights, torch.float32, got torch.float64"),
    "device": (x.to("meta"), None, "input must be on the device of the weights, cpu, got meta"),
    "state's device": (x, (h, h.to("meta")), "c of hx must be on the device of the input, cpu, got meta"),
    "no tensor": (x, (h, None), "c of hx must be a tensor, got NoneType"),
    "list": ([x], None, "input must be a Tensor or a PackedSequence, got list"),
    "one tensor": (x, h, r"hx must be a tuple \(h, c\) of tensors, got Tensor"),
    "one part": (x, (h,), r"hx must be a tuple \(h, c\), got 1 tensors"),
    "batch": (x, (h[:, 1:], h), r"h of hx must have shape \(1, 4, 6\), got \(1, 3, 6\)"),
    "cell": (x, (h, h[..., 1:]), r"c of hx must have shape \(1, 4, 6\), got \(1, 4, 5\)"),
    "unbatched": (x[:, 0], (h, h), r"h of hx must have shape \(1, 6\), got \(1, 4, 6\)"),
    "increasing": (PackedSequence(x[0], torch.tensor([1, 3])), None, "batch_sizes .* must not increase"),
    "too few": (PackedSequence(x[0], torch.tensor([2, 1])), None, "batch_sizes add up to 3 tokens, .* has 4"),
    "packed 3-D": (PackedSequence(x, torch.tensor([4, 3])), None, "the data of a PackedSequence must be 2-D"),
}  # fmt: skip


@pytest.mark.parametrize(("input", "hx", "message"), ROWS.values(), ids=ROWS.keys())
def test_wrong_inputs(input: Any, hx: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^LSTM: {message}"):
        xnn.LSTM(INPUTS, HIDDEN)(input, hx)


AS_TORCHS = ("4-D", "1-D", "features", "dtype", "device", "state's device", "batch", "cell", "unbatched", "increasing")


@pytest.mark.parametrize("name", AS_TORCHS)
def test_wrong_inputs_raise_as_torchs(name: str) -> None:
    """Code that catches torch.nn.LSTM's errors catches ours."""
    input, hx, _ = ROWS[name]
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        nn.LSTM(INPUTS, HIDDEN)(input, hx)
    with pytest.raises(theirs.type):
        xnn.LSTM(INPUTS, HIDDEN)(input, hx)


def test_attributes_and_repr() -> None:
    options = dict(itertools.chain(zip(("num_layers", "bias", "batch_first"), (2, False, True), strict=True)))
    for cls in MODULES:
        ours, theirs = cls(3, 8, **options, proj_size=4, bidirectional=True), nn.LSTM(3, 8, **options)
        assert all(getattr(ours, name) == getattr(theirs, name) for name in ("input_size", "hidden_size", *options))
        assert (ours.proj_size, ours.bidirectional, ours.dropout) == (4, True, 0.0)
        assert [len(w) for w in ours.all_weights] == [3] * 4
        assert ours.flatten_parameters() is None
        text = "3, 8, proj_size=4, num_layers=2, bias=False, batch_first=True, bidirectional=True"
        assert repr(ours) == f"{cls.__name__}({text})"
        assert repr(cls(3, 8, num_heads=2)) == f"{cls.__name__}(3, 8, num_heads=2)"
