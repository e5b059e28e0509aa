"""nn.LSTM, sLSTM and mLSTM: resets, jagged input, learned initial states and dropped weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

INPUTS, HIDDEN, S, B = 5, 6, 9, 4
LENGTHS = [9, 4, 6, 1]
modules = pytest.mark.parametrize("module", [xnn.LSTM, xnn.sLSTM, xnn.mLSTM], ids=lambda module: module.__name__)
bound = 1e-10  # in float64


def make(module: Any, layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    return module(INPUTS, HIDDEN, layers, num_heads=2, dtype=torch.float64, **options)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cuts() -> Tensor:
    """(B, S): at the first token, in the middle, next to each other, and in what is padding where LENGTHS hold."""
    reset = torch.zeros(B, S, dtype=torch.bool)
    for row, tokens in enumerate(([0, 3, 4], [2], [], [1, 5])):
        reset[row, tokens] = True
    return reset


def random_state(module: Any, rows: int = B) -> Any:
    """One that has seen tokens, with gradients."""
    _, state = module(draw(3, rows, INPUTS).movedim(0, 1 if module.batch_first else 0))
    return type(state)(*(s.detach().requires_grad_() for s in state))


def of_row(state: Any, row: int) -> Any:
    return type(state)(*(s[:, row] for s in state))


def document_by_document(module: Any, x: Tensor, reset: Tensor, state: Any) -> tuple[Tensor, Any]:
    """One row (S, F): each document by itself. A state enters the first one, and backwards the last one."""
    begins = sorted({0, *reset.nonzero().flatten().tolist()})
    ends = [*begins[1:], len(x)]
    empty = type(state)(*(torch.zeros_like(s) for s in state))
    outputs, finals = [], []
    directions = 2 if module.bidirectional else 1
    for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        first = index == 0 and not bool(reset[0])
        last = index == len(begins) - 1
        parts = []
        for given, none in zip(state, empty, strict=True):
            rows = [given if first else none, given if last else none][:directions]
            mixed = torch.stack([rows[j % directions][j] for j in range(len(given))])
            parts.append(mixed)
        y, final = module(x[begin:end], type(state)(*parts))
        outputs.append(y)
        finals.append(final)
    ends_of = [finals[-1], finals[0]][:directions]
    final = type(state)(
        *(
            torch.stack([ends_of[j % directions][part][j] for j in range(len(state[part]))])
            for part in range(len(state))
        )
    )
    return torch.cat(outputs), final


def row_by_row(module: Any, x: Tensor, reset: Tensor, state: Any, lengths: list[int]) -> tuple[list[Tensor], list[Any]]:
    pairs = [document_by_document(module, x[b, :n], reset[b, :n], of_row(state, b)) for b, n in enumerate(lengths)]
    return [y for y, _ in pairs], [final for _, final in pairs]


def check(module: Any, actual: list[Tensor], expected: list[Tensor], sources: list[Tensor]) -> None:
    """Values and gradients of everything."""
    for a, e in zip(actual, expected, strict=True):
        assert_close_relative(a, e, bound)
    sources = [*sources, *module.parameters()]
    weights = [torch.randn_like(e) for e in expected]
    found = [torch.autograd.grad(values, sources, weights) for values in (actual, expected)]
    for a, e in zip(*found, strict=True):
        assert_close_relative(a, e, bound)


@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("bidirectional", [False, True])
@modules
def test_reset_is_document_by_document(module: Any, bidirectional: bool, proj_size: int) -> None:
    # one layer: those above read both directions of what lies below, across a document's end nothing
    ours = make(module, bidirectional=bidirectional, proj_size=proj_size, layers=1, batch_first=True)
    x, state = draw(B, S, INPUTS).requires_grad_(), random_state(ours)
    y, final = ours(x, state, reset=cuts())
    rows, finals = row_by_row(ours, x, cuts(), state, [S] * B)
    expected = [torch.stack(rows), *(torch.stack(parts, 1) for parts in zip(*finals, strict=True))]
    check(ours, [y, *final], expected, [x, *state])


@modules
def test_reset_of_all_layers(module: Any) -> None:
    ours = make(module, bidirectional=True)
    x = draw(S, B, INPUTS).requires_grad_()
    y, _ = ours(x, reset=cuts().T)
    empty = type(random_state(ours))(*(torch.zeros_like(s) for s in random_state(ours)))
    rows, _ = row_by_row(ours, x.transpose(0, 1), cuts(), empty, [S] * B)
    check(ours, [y], [torch.stack(rows, 1)], [x])


@modules
def test_reset_unbatched(module: Any) -> None:
    ours, x, reset = make(module), draw(S, INPUTS), cuts()[0]
    assert torch.equal(ours(x, reset=reset)[0], ours(x[:, None], reset=reset[:, None])[0][:, 0])


@pytest.mark.parametrize("proj_size", [0, 4])
@modules
def test_reset_of_packed_rows(module: Any, proj_size: int) -> None:
    ours = make(module, bidirectional=True, proj_size=proj_size, layers=1, batch_first=True)
    x, state = draw(B, S, INPUTS).requires_grad_(), random_state(ours)
    packed, reset = (
        pack_padded_sequence(s, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
        for s in (x, cuts())
    )  # fmt: skip
    y, final = ours(packed, state, reset=reset)
    rows, finals = row_by_row(ours, x, cuts(), state, LENGTHS)
    expected = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False).data
    check(ours, [y.data, *final], [expected, *(torch.stack(p, 1) for p in zip(*finals, strict=True))], [x, *state])


def jagged(rows: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@pytest.mark.parametrize("proj_size", [0, 4])
@modules
def test_jagged_is_row_by_row(module: Any, proj_size: int) -> None:
    """Rows without tokens too, which hand their state on, and a residual connection around the module."""
    ours = make(module, bidirectional=True, proj_size=proj_size, layers=1)
    lengths = [4, 0, 9, 1]
    x, state, reset = draw(B, S, INPUTS).requires_grad_(), random_state(ours), cuts()
    input = jagged([x[b, :n] for b, n in enumerate(lengths)])
    y, final = ours(input, state, reset=jagged([reset[b, :n] for b, n in enumerate(lengths)]))
    (y + nn.Linear(INPUTS, y.shape[-1], dtype=torch.float64)(input)).values().sum().backward(retain_graph=True)
    full = [b for b, n in enumerate(lengths) if n]
    pairs = {b: document_by_document(ours, x[b, : lengths[b]], reset[b, : lengths[b]], of_row(state, b)) for b in full}
    finals = [pairs[b][1] if b in pairs else of_row(state, b) for b in range(B)]
    expected = [torch.cat([pairs[b][0] for b in full]), *(torch.stack(p, 1) for p in zip(*finals, strict=True))]
    check(ours, [y.values(), *final], expected, [x, *state])


def test_jagged_with_holes() -> None:
    ours, x = make(xnn.LSTM), draw(2, 6, INPUTS)
    holes = torch.nested.narrow(x, 1, torch.tensor([1, 0]), torch.tensor([3, 5]), layout=torch.jagged)
    for y, row in zip(ours(holes)[0].unbind(), (x[0, 1:4], x[1, :5]), strict=True):
        assert_close_relative(y, ours(row)[0], bound)


@modules
def test_learned_initial_state(module: Any) -> None:
    """One for each layer and direction, shared by all rows; as if it was given. At first 0."""
    ours = make(module, bidirectional=True, learn_initial_state=True)
    plain = make(module, bidirectional=True)
    learned = {name: p for name, p in ours.named_parameters() if name.startswith("initial_")}
    assert set(ours.state_dict()) - set(plain.state_dict()) == set(learned) and len(learned) >= 2
    assert not any(p.any() for p in learned.values())
    for p in learned.values():
        nn.init.normal_(p)
    state = []
    for part in ours.state_type._fields:
        start = learned.get(f"initial_{part}")
        shape = random_state(plain)._asdict()[part].shape
        state.append(torch.ones(shape, dtype=torch.float64) if start is None else start[:, None].expand(shape))
    x = draw(S, B, INPUTS)
    actual, expected = ours(x), ours(x, ours.state_type(*state))
    check(ours, [actual[0], *actual[1]], [expected[0], *expected[1]], [])
    assert_close_relative(ours(x[:, 1])[0], actual[0][:, 1], bound)
    assert "learn_initial_state=True" in repr(ours)
    ours.reset_parameters()
    assert not any(p.any() for p in learned.values()) and ours.weight_ih_l0.any()


@modules
def test_dropped_weights(module: Any) -> None:
    """Weight dropout (AWD-LSTM, arXiv 1708.02182) is a parametrization: one mask per call, none in eval()."""
    ours = make(module, layers=1, batch_first=True)
    name = "weight_if_l0" if module is xnn.mLSTM else "weight_hh_l0"
    weight = getattr(ours, name).detach().clone()
    x = draw(B, S, INPUTS)
    expected = ours(x)[0]
    parametrize.register_parametrization(ours, name, nn.Dropout(0.5))
    assert_close_relative(ours.eval()(x)[0], expected, bound)
    torch.manual_seed(0)
    dropped = ours.train()(x)[0]
    torch.manual_seed(0)
    mask = nn.functional.dropout(torch.ones_like(weight), 0.5)
    other = make(module, layers=1, batch_first=True)
    with torch.no_grad():
        getattr(other, name).copy_(weight * mask)
    assert_close_relative(dropped, other(x)[0], bound)
    dropped.sum().backward()
    assert torch.equal(ours.parametrizations[name].original.grad != 0, mask != 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: r.T, ValueError, r"reset must have shape \(9, 4\), got \(4, 9\)"),
        (lambda r: r.float(), TypeError, "reset must have dtype torch.bool, got torch.float32"),
        (lambda r: r.tolist(), TypeError, "reset must be a tensor, as the input is, got list"),
        (lambda r: pack_padded_sequence(r, torch.full((B,), S)), TypeError, "got PackedSequence"),
        (lambda r: jagged(list(r.T)), TypeError, "reset must be a jagged NestedTensor where the input is one, and now"),
    ],
)
def test_wrong_resets(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^LSTM: .*{message}"):
        make(xnn.LSTM)(draw(S, B, INPUTS), reset=change(cuts().T))


@modules
def test_reset_without_tokens(module: Any) -> None:
    ours = make(module, bidirectional=True)
    y, _ = ours(draw(0, B, INPUTS), reset=torch.zeros(0, B, dtype=torch.bool))
    assert y.shape[:2] == (0, B)


@pytest.mark.parametrize("module", [xnn.LSTM, xnn.sLSTM])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projected_state(module: Any, bidirectional: bool) -> None:
    """torch.vmap over resets or states alone; and NaN in a state ends at a reset before the first token."""
    ours = make(module, 1, proj_size=4, bidirectional=bidirectional)
    x, state = draw(S, B, INPUTS), tuple(s.detach() for s in random_state(ours))
    resets = torch.stack([cuts().T, cuts().flip(0).T])
    found = torch.func.vmap(lambda r: ours(x, state, reset=r)[0])(resets)
    assert_close_relative(found, torch.stack([ours(x, state, reset=r)[0] for r in resets]), bound)
    several = tuple(torch.stack([s, s.flip(1)]) for s in state)
    found = torch.func.vmap(lambda *hx: ours(x, hx)[0])(*several)
    assert_close_relative(found, torch.stack([ours(x, hx)[0] for hx in zip(*several, strict=True)]), bound)
    begins = torch.zeros(S, B, dtype=torch.bool)
    begins[0] = True
    nan = tuple(s.clone().index_fill_(0, torch.tensor([0]), torch.nan) for s in state)
    assert_close_relative(ours(x, nan, reset=begins)[0], ours(x, state, reset=begins)[0], bound)


def test_wrong_resets_of_rows() -> None:
    ours, x, reset = make(xnn.LSTM), draw(B, S, INPUTS), cuts()
    packed: PackedSequence = pack_padded_sequence(x, torch.tensor([9, 6, 4, 1]), batch_first=True)
    other = pack_padded_sequence(reset, torch.tensor([9, 6, 3, 2]), batch_first=True)
    with pytest.raises(ValueError, match="^LSTM: reset must have the lengths of the input's rows"):
        ours(packed, reset=other)
    shuffled = PackedSequence(packed.data, packed.batch_sizes, torch.arange(B).flip(0), torch.arange(B).flip(0))
    flags = pack_padded_sequence(reset, torch.tensor([9, 6, 4, 1]), batch_first=True)
    with pytest.raises(ValueError, match="^LSTM: reset must have the lengths of the input's rows, in their order"):
        ours(shuffled, reset=flags)
    with pytest.raises(TypeError, match="^LSTM: reset must be a PackedSequence, as the input is, got Tensor"):
        ours(packed, reset=reset)
    with pytest.raises(ValueError, match="^LSTM: reset must have the lengths of the input's rows"):
        ours(jagged(list(x)), reset=jagged([row[1:] for row in reset]))
    with pytest.raises(ValueError, match="^LSTM: reset leads to the empty state, not to a learned one"):
        make(xnn.LSTM, learn_initial_state=True)(x, reset=cuts())
