"""What people do with a torch.nn.LSTM in their models, done with ours: for LSTM everything comes out the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative, relative_error

INPUTS, HIDDEN, VOCAB, TAGS = 5, 8, 11, 3
LENGTH = 1e-5
BOTH = [nn.LSTM, xnn.LSTM]
cells = pytest.mark.parametrize("cell", [xnn.LSTM, xnn.sLSTM, xnn.mLSTM], ids=lambda cell: cell.__name__)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(cell: Any, *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return cell(*args, **options)


class Tagger(nn.Module):
    """A tag per token, and a class per row from the last outputs of both directions."""

    def __init__(self, cell: Any, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, INPUTS, padding_idx=0)
        self.rnn = cell(INPUTS, HIDDEN, num_layers=2, dropout=dropout, batch_first=True, bidirectional=True)
        width = 2 * self.rnn.hidden_size
        self.tags, self.classes = nn.Linear(width, TAGS), nn.Linear(width, TAGS)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (ids != 0).sum(1)
        self.rnn.flatten_parameters()
        rows = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs = pad_packed_sequence(self.rnn(rows)[0], batch_first=True, total_length=ids.shape[1])[0]
        forward = outputs[torch.arange(len(ids)), lengths - 1, : self.rnn.hidden_size]
        backward = outputs[:, 0, self.rnn.hidden_size :]
        return self.tags(outputs), self.classes(torch.cat([forward, backward], 1))


def sentences() -> Tensor:
    ids = torch.randint(1, VOCAB, (6, 9), generator=torch.Generator().manual_seed(0))
    return ids.masked_fill(torch.arange(9) >= torch.tensor([9, 4, 1, 7, 9, 2])[:, None], 0)


def losses(model: Tagger, ids: Tensor) -> Tensor:
    """Tags and classes that depend on what came before."""
    tags, classes = model(ids)
    real = ids != 0
    expected = ids.cumsum(1) % TAGS
    return F.cross_entropy(tags[real], expected[real]) + F.cross_entropy(classes, expected[:, -1])


def test_replaced_in_a_model() -> None:
    """The same seeds, state_dict, outputs and gradients."""
    theirs, ours = make(Tagger, nn.LSTM), make(Tagger, xnn.LSTM)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q), name
    for _ in range(2):
        for a, e in zip(ours(sentences()), theirs(sentences()), strict=True):
            assert_close_relative(a, e, 1e-5)
        gradients = [
            torch.autograd.grad(losses(model, sentences()), list(model.parameters())) for model in (ours, theirs)
        ]
        for a, e in zip(*gradients, strict=True):
            assert_close_relative(a, e, 1e-5)
        theirs.apply(initialise)  # and again with weights that are loaded
        ours.load_state_dict(theirs.state_dict())


@cells
def test_any_cell_learns_in_its_place(cell: Any) -> None:
    """In float64 a step against the clipped gradient lowers the loss by what the gradient says, dropout included.

    A central difference over steps of length LENGTH is off by multiples of LENGTH^2 = 1e-10 and eps / LENGTH = 2e-11.
    The seed is fixed: the mLSTM's max(|n q|, 1) has a kink, which random steps would cross now and then.
    """
    model, ids = make(Tagger, cell, dropout=0.1).double(), sentences()

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same elements are dropped
        return losses(model, ids)

    loss().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    clipped = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert norm > 0.01 and all(p.grad.any() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=(lr := LENGTH / 0.01))
    optimizer.step()
    below = loss().detach()
    optimizer.param_groups[0]["lr"] = -2 * lr
    optimizer.step()
    assert_close_relative((loss() - below) / (2 * lr), norm * clipped, 1e-6)


def initialise(module: nn.Module) -> None:
    """As in many training scripts: by name, orthogonal recurrent weights, forget bias 1."""
    if not isinstance(module, (nn.LSTM, xnn.LSTM, xnn.sLSTM)):
        return
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "weight_ih" in name:
            nn.init.xavier_uniform_(parameter.data)
        elif "weight_hh" in name:
            nn.init.orthogonal_(parameter.data)
        elif "bias" in name:
            parameter.data.zero_()
            n = parameter.size(0)
            parameter.data[n // 4 : n // 2].fill_(1)


@cells
def test_names_and_attributes(cell: Any) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 4}
    for bias in (True, False):
        theirs, ours = (make(c, INPUTS, HIDDEN, bias=bias, **options) for c in (nn.LSTM, cell))
        for name in ("input_size", "hidden_size", "batch_first", "dropout", "bias", *options):
            assert getattr(ours, name) == getattr(theirs, name), name
        names, weights = sum(ours._all_weights, []), sum(ours.all_weights, [])
        assert names == [name for name, _ in ours.named_parameters()]
        assert all(w is getattr(ours, name) for w, name in zip(weights, names, strict=True))
        if cell is xnn.LSTM:
            assert ours._all_weights == theirs._all_weights


@pytest.mark.parametrize(("cell", "parts"), [(nn.LSTM, 2), (xnn.LSTM, 2), (xnn.sLSTM, 4)])
def test_forget_bias_reaches_the_forget_gate(cell: Any, parts: int) -> None:
    """The second quarter of a bias is the forget gate's, for the sLSTM too: a large one keeps the memory."""
    rnn, x = make(cell, INPUTS, HIDDEN), draw(20, 3, INPUTS)
    state = tuple(torch.full((1, 3, HIDDEN), value) for value in (0.5, 0.5, 1.0, 0.0)[:parts])

    def memory() -> Tensor:
        c, *scale = rnn(x, state)[1][1::2]
        return c * scale[0].exp() if scale else c

    with torch.no_grad():
        rnn.bias_ih_l0[:HIDDEN].fill_(-60)  # nothing comes in
        assert relative_error(memory(), state[1]) > 0.1
        rnn.bias_ih_l0[HIDDEN : 2 * HIDDEN].fill_(30)
        assert relative_error(memory(), state[1]) < 1e-5


def weight_norm(rnn: Any) -> None:
    parametrizations.weight_norm(rnn, "weight_hh_l0")
    rnn.parametrizations.weight_hh_l0.original0.data.mul_(1.5)


def old_weight_norm(rnn: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(rnn, "weight_hh_l0")
    rnn.weight_hh_l0_g.data.mul_(1.5)


def spectral_norm(rnn: Any) -> None:
    parametrizations.spectral_norm(rnn, "weight_hh_l0")
    rnn.eval()  # in training every call changes the weight


def pruned(rnn: Any) -> None:
    prune.l1_unstructured(rnn, "weight_hh_l0", amount=0.5)


def tied(rnn: Any) -> None:
    rnn.weight_ih_l0_reverse = rnn.weight_ih_l0
    rnn.bias_ih_l0_reverse = rnn.bias_ih_l0


def frozen(rnn: Any) -> None:
    rnn.weight_hh_l0.requires_grad_(False)


def replaced(rnn: Any) -> None:
    rnn.weight_hh_l0 = nn.Parameter(rnn.weight_hh_l0.detach().roll(1, 0))


class DropConnect(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight * (draw(*weight.shape) > 0)


def drop_connect(rnn: Any) -> None:
    """Dropout of recurrent weights (AWD-LSTM)."""
    parametrize.register_parametrization(rnn, "weight_hh_l0", DropConnect())


CHANGES = [weight_norm, old_weight_norm, spectral_norm, pruned, tied, frozen, replaced, drop_connect]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights(change: Callable[[Any], None]) -> None:
    """Outputs, gradients by name and all_weights after weights were parametrized, pruned, tied, frozen, replaced."""
    results = []
    for cell in BOTH:
        rnn = make(cell, INPUTS, HIDDEN, bidirectional=True)
        plain = rnn(draw(7, 3, INPUTS))[0]
        change(rnn)
        torch.manual_seed(2)
        output, state = rnn(draw(7, 3, INPUTS))
        (output.square().sum() + state[1].sum()).backward()
        assert change is frozen or not torch.allclose(output, plain), "the change has no effect"
        results.append((output, {n: p.grad for n, p in rnn.named_parameters()}, rnn.state_dict(), rnn.all_weights))
    (expected, grads, state_dict, weights), (actual, own_grads, own_state_dict, own_weights) = results
    assert_close_relative(actual, expected, 1e-5)
    assert list(own_grads) == list(grads) and list(own_state_dict) == list(state_dict)
    for name, gradient in grads.items():
        assert (own_grads[name] is None) == (gradient is None), name
        if gradient is not None:
            assert_close_relative(own_grads[name], gradient, 1e-5, name)
    assert all(torch.equal(a, e) for a, e in zip(sum(own_weights, []), sum(weights, []), strict=True))


def test_clipped_gradients() -> None:
    norms, grads = [], []
    for cell in BOTH:
        rnn = make(cell, INPUTS, HIDDEN, 2)
        rnn(draw(7, 3, INPUTS))[0].square().sum().backward()
        norms.append(nn.utils.clip_grad_norm_(rnn.parameters(), 0.1, foreach=True))
        grads.append(nn.utils.parameters_to_vector(p.grad for p in rnn.parameters()))
    assert norms[0] > 1
    assert_close_relative(norms[1], norms[0], 1e-5)
    assert_close_relative(grads[1], grads[0], 1e-5)


def test_hooks() -> None:
    seen: list[Any] = []
    for cell in BOTH:
        rnn, x = make(cell, INPUTS, HIDDEN), draw(7, 3, INPUTS).requires_grad_()
        rnn.register_forward_hook(lambda module, args, result: (2 * result[0], result[1]))
        rnn.register_full_backward_hook(lambda module, grads, outputs: seen.append((*grads, outputs[0])))
        output, (h, c) = rnn(x)
        (output.square().sum() + c.sum()).backward()
    for a, e in zip(seen[1], seen[0], strict=True):
        assert_close_relative(a, e, 1e-5)


def repackage(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(repackage(s) for s in state)


@cells
def test_carried_states(cell: Any) -> None:
    """Window by window with repackaged (plain tuple) states: the values of the whole, and no gradient to the past."""
    rnn, x = make(cell, INPUTS, HIDDEN, 2, num_heads=2), draw(12, 3, INPUTS).requires_grad_()
    whole, last = rnn(x)
    state, outputs = None, []
    for window in x.split(4):
        output, state = rnn(window, state)
        state = repackage(state)
        assert type(state) is tuple
        outputs.append(output)
    assert_close_relative(torch.cat(outputs), whole, 1e-5)
    for a, e in zip(state, last, strict=True):
        assert_close_relative(a, e, 1e-5)
    (gradient,) = torch.autograd.grad(outputs[-1].sum(), x)
    assert not gradient[:8].any() and gradient[8:].any()


def test_states_made_by_hand() -> None:
    """Zeros of the module's own dtype and device; rows of a state kept, dropped and reordered (beam search)."""
    rows = torch.tensor([2, 0, 0])
    results = []
    for cell in BOTH:
        rnn = make(cell, INPUTS, HIDDEN, 2)
        weight = next(rnn.parameters())
        hx = (weight.new_zeros(2, 3, HIDDEN), weight.new_zeros(2, 3, HIDDEN))
        output, (h, c) = rnn(draw(7, 3, INPUTS), hx)
        again, (h, c) = rnn(draw(4, 3, INPUTS, seed=1), (h.index_select(1, rows), c[:, rows].contiguous()))
        results.append((output, again, h[-1], c))
    for a, e in zip(results[1], results[0], strict=True):
        assert_close_relative(a, e, 1e-5)


@cells
def test_unbatched_tokens_one_by_one(cell: Any) -> None:
    """Decoding with x (1, F) and a state without batch."""
    rnn, x = make(cell, INPUTS, HIDDEN, proj_size=4), draw(6, INPUTS)
    whole, state, outputs = rnn(x)[0], None, []
    for token in x:
        output, state = rnn(token[None], state)
        outputs.append(output)
    assert_close_relative(torch.cat(outputs), whole, 1e-5)


@cells
def test_shared_memory_and_moves(cell: Any) -> None:
    rnn, x = make(cell, INPUTS, HIDDEN), draw(7, 3, INPUTS)
    expected = rnn(x)[0]
    rnn.share_memory()
    assert all(p.is_shared() for p in rnn.parameters())
    assert torch.equal(rnn(x)[0], expected)
    assert rnn.double()(x.double())[0].dtype == torch.float64
    assert_close_relative(rnn(x.double())[0].float(), expected, 1e-5)
    assert torch.equal(rnn.float()(x)[0], expected)
