"""The reference against itself in other forms, against direct formulas written here, and against torch.nn.LSTM."""

from __future__ import annotations

import math
from functools import partial
from inspect import signature
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from xlstm_cuda import functional, reference
from xlstm_cuda._states import LSTMState, MLSTMState, SLSTMState
from xlstm_cuda.reference._dtypes import rounded
from xlstm_cuda.testing import (
    assert_close_relative,
    cast,
    gradients,
    leaves,
    lstm_inputs,
    mlstm_inputs,
    relative_error,
    slstm_inputs,
)

F64 = torch.float64
TOL = 1e-10


@pytest.mark.parametrize("name", ["mlstm", "mlstm_step", "slstm", "slstm_step", "lstm", "lstm_step"])
def test_arguments_are_those_of_the_public_function(name):
    """In their order, with their defaults; beside them only what either function needs for itself."""
    public, plain = (
        {p.name: (p.kind, p.default) for p in signature(getattr(module, name)).parameters.values()}
        for module in (functional, reference)
    )
    del public["backend"]
    plain.pop("form", None)
    assert list(public.items()) == list(plain.items())


INF = math.inf
FORMS = {
    "recurrent": reference.mlstm_recurrent,
    "parallel": reference.mlstm_parallel,
    "chunkwise": partial(reference.mlstm_chunkwise, chunk_size=4),
}
GATES = {
    "exp": {},
    "sigmoid": {"input_gate": "sigmoid"},
    "sigmoid-plain": {"input_gate": "sigmoid", "normalize": False},
}
CELLS = {
    "lstm": (reference.lstm, reference.lstm_step, lstm_inputs),
    "slstm": (reference.slstm, reference.slstm_step, slstm_inputs),
    "slstm-exp": (
        partial(reference.slstm, forget_gate="exp"),
        partial(reference.slstm_step, forget_gate="exp"),
        partial(slstm_inputs, forget_bias=0.5),
    ),
}

by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
by_gate = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
by_cell = pytest.mark.parametrize("sequence, step, make", CELLS.values(), ids=CELLS)


def outputs(op, inputs, **options):
    h, state = op(**inputs, return_state=True, **options)
    return [h, *state]


def assert_same(actual, expected, tol=TOL):
    assert len(actual) == len(expected)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close_relative(a, e, tol, f"output {index}")


def assert_same_with_gradients(actual, actual_inputs, expected, expected_inputs, tol=TOL):
    assert_same(actual, expected, tol)
    got, wanted = gradients(actual, actual_inputs), gradients(expected, expected_inputs)
    for name in wanted:
        assert_close_relative(got[name], wanted[name], tol, f"d{name}")


def tokens_of(inputs, picked, rows=slice(None)):
    """Some tokens of mLSTM inputs, without the state."""
    return {name: inputs[name][rows, :, picked] for name in "qkvif"}


def rows_of(state, rows):
    return type(state)(*(s[rows] for s in state))


def stacked(states, dim=0):
    return [torch.cat(parts, dim) for parts in zip(*states, strict=True)]


# mLSTM


def direct_mlstm(q, k, v, i, f, initial_state, input_gate="exp", normalize=True, eps=1e-6):
    """Without a stabiliser: C and n in their true scale; m, largest log weight so far, only for eps and the state."""
    C, n, m0 = initial_state
    exp = input_gate == "exp"
    if exp:
        C, n = C * m0.exp()[..., None, None], n * m0.exp()[..., None]
    hs, m = [], m0
    for t in range(q.shape[2]):
        write = i[:, :, t].exp() if exp else i[:, :, t].sigmoid()
        forget = f[:, :, t].sigmoid()
        C = forget[..., None, None] * C + write[..., None, None] * torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        n = forget[..., None] * n + write[..., None] * k[:, :, t]
        scaled = q[:, :, t] / q.shape[-1] ** 0.5
        h = torch.einsum("bhk,bhkv->bhv", scaled, C)
        if exp:
            m = torch.maximum(logsigmoid(f[:, :, t]) + m, i[:, :, t])
        if normalize:
            r = torch.einsum("bhk,bhk->bh", scaled, n)
            h = h / (r.abs().clamp(min=1) + eps * (m.exp() if exp else 1))[..., None]
        hs.append(h)
    if exp:
        C, n = C * (-m).exp()[..., None, None], n * (-m).exp()[..., None]
    return [torch.stack(hs, 2), C, n, m]


@by_form
@by_gate
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_mlstm_equals_unstabilised_formula(form, gate, eps):
    inputs = mlstm_inputs(2, 2, 9, 3, 5, dtype=F64, state=True, input_bias=0.5, requires_grad=True)
    expected = direct_mlstm(**inputs, **gate, eps=eps)
    assert_same_with_gradients(outputs(form, inputs, **gate, eps=eps), inputs, expected, inputs)


@pytest.mark.parametrize("seqlen", [0, 1, 5, 17, 33])
@pytest.mark.parametrize("chunk_size", [1, 3, 16, 64])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
@by_gate
def test_mlstm_forms_agree(seqlen, chunk_size, state, gate):
    inputs = mlstm_inputs(2, 2, seqlen, 4, 3, dtype=F64, seed=seqlen, state=state, gate_scale=2.0, requires_grad=True)
    expected = outputs(reference.mlstm_recurrent, inputs, **gate)
    for op in (reference.mlstm_parallel, partial(reference.mlstm_chunkwise, chunk_size=chunk_size)):
        assert_same_with_gradients(outputs(op, inputs, **gate), inputs, expected, inputs)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 20), st.integers(1, 6), st.integers(1, 6)),
    chunk_size=st.integers(1, 24),
    gate=st.sampled_from(list(GATES)),
    forget_bias=st.sampled_from([-5.0, 0.0, 5.0]),
    seed=st.integers(0, 1000),
)
def test_mlstm_forms_agree_on_any_shape(sizes, chunk_size, gate, forget_bias, seed):
    inputs = mlstm_inputs(*sizes, dtype=F64, seed=seed, state=seed % 2 == 0, forget_bias=forget_bias)
    reset = torch.rand(sizes[0], sizes[2], generator=torch.Generator().manual_seed(seed)) < 0.1
    expected = outputs(reference.mlstm_recurrent, inputs, reset=reset, **GATES[gate])
    for op in (reference.mlstm_parallel, partial(reference.mlstm_chunkwise, chunk_size=chunk_size)):
        assert_same(outputs(op, inputs, reset=reset, **GATES[gate]), expected)


@by_form
@by_gate
def test_mlstm_carried_state_equals_whole(form, gate):
    inputs = mlstm_inputs(2, 2, 17, 4, 3, dtype=F64, state=True, requires_grad=True)
    expected = outputs(form, inputs, **gate)
    hs, state = [], inputs["initial_state"]
    for part in (slice(0, 6), slice(6, 7), slice(7, 7), slice(7, 17)):
        h, state = form(**tokens_of(inputs, part), initial_state=state, return_state=True, **gate)
        hs.append(h)
    assert_same_with_gradients([torch.cat(hs, 2), *state], inputs, expected, inputs)


@by_gate
@pytest.mark.parametrize("width", [None, 1, 5, 16])
def test_mlstm_steps_equal_sequence(gate, width):
    inputs = mlstm_inputs(2, 2, 18, 4, 3, dtype=F64, state=True, requires_grad=True)
    expected = outputs(reference.mlstm, inputs, **gate)
    hs, state = [], inputs["initial_state"]
    for begin in range(0, 18, width or 1):
        part = begin if width is None else slice(begin, begin + width)
        h, state = reference.mlstm_step(*tokens_of(inputs, part).values(), state, **gate)
        hs.append(h.unsqueeze(2) if width is None else h)
    assert_same_with_gradients([torch.cat(hs, 2), *state], inputs, expected, inputs)


@pytest.mark.parametrize("inplace", [False, True])
def test_mlstm_step_in_slots(inplace):
    inputs = mlstm_inputs(2, 2, 3, 4, 3, dtype=F64)
    pool = mlstm_inputs(5, 2, 0, 4, 3, dtype=F64, state=True, seed=1)["initial_state"]
    before = MLSTMState(*(s.clone() for s in pool))
    slots = torch.tensor([3, 1], dtype=torch.int32)
    expected_h, expected = reference.mlstm(**inputs, initial_state=rows_of(before, [3, 1]), return_state=True)
    h, after = reference.mlstm_step(*inputs.values(), pool, slots=slots, inplace=inplace)
    assert_same([h, *rows_of(after, [3, 1])], [expected_h, *expected], 0)
    assert_same(rows_of(after, [0, 2, 4]), rows_of(before, [0, 2, 4]), 0)
    assert (after is pool) == inplace
    assert_same(pool, after if inplace else before, 0)


def test_mlstm_step_in_place_overwrites_the_state():
    inputs = mlstm_inputs(2, 2, 3, 4, 3, dtype=F64, state=True)
    expected = outputs(reference.mlstm, inputs)
    h, state = reference.mlstm_step(*tokens_of(inputs, slice(None)).values(), inputs["initial_state"], inplace=True)
    assert all(a is b for a, b in zip(state, inputs["initial_state"], strict=True))
    assert_same([h, *state], expected, 0)


@by_form
@by_gate
def test_mlstm_reset_equals_separate_sequences(form, gate):
    inputs = mlstm_inputs(2, 2, 11, 4, 3, dtype=F64, state=True, requires_grad=True)
    reset = torch.zeros(2, 11, dtype=torch.bool)
    reset[0, [0, 3, 4]] = reset[1, 7] = True
    pieces = {0: [(0, 3), (3, 4), (4, 11)], 1: [(0, 7), (7, 11)]}
    hs, finals = [], []
    for row, bounds in pieces.items():
        parts = []
        for begin, end in bounds:
            first = row == 1 and begin == 0
            initial = rows_of(inputs["initial_state"], [row]) if first else None
            tokens = tokens_of(inputs, slice(begin, end), [row])
            h, state = reference.mlstm(**tokens, initial_state=initial, return_state=True, **gate)
            parts.append(h)
        hs.append(torch.cat(parts, 2))
        finals.append(state)
    expected = [torch.cat(hs), *stacked(finals)]
    assert_same_with_gradients(outputs(form, inputs, reset=reset, **gate), inputs, expected, inputs)


@by_form
@by_gate
def test_mlstm_packed_equals_separate_sequences(form, gate):
    inputs = mlstm_inputs(1, 2, 11, 4, 3, dtype=F64, state=True, state_rows=5, requires_grad=True)
    bounds = [0, 0, 4, 5, 5, 11]
    reset = torch.zeros(1, 11, dtype=torch.bool)
    reset[0, [2, 5]] = True
    hs, finals = [], []
    for row, (begin, end) in enumerate(pairwise(bounds)):
        part, initial = tokens_of(inputs, slice(begin, end)), rows_of(inputs["initial_state"], [row])
        own = {"return_state": True, "reset": reset[:, begin:end], **gate}
        h, state = reference.mlstm(**part, initial_state=initial, **own)
        hs.append(h)
        finals.append(state)
    expected = [torch.cat(hs, 2), *stacked(finals)]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    actual = outputs(form, inputs, cu_seqlens=cu_seqlens, reset=reset, **gate)
    assert_same_with_gradients(actual, inputs, expected, inputs)


@by_form
def test_mlstm_packed_without_sequences(form):
    inputs = mlstm_inputs(1, 2, 0, 4, 3, dtype=F64)
    h, state = form(**inputs, cu_seqlens=torch.zeros(1, dtype=torch.int32), return_state=True)
    assert h.shape == (1, 2, 0, 3) and state.C.shape == (0, 2, 4, 3)


@by_form
@pytest.mark.parametrize("gate", [GATES["exp"], GATES["sigmoid"]], ids=["exp", "sigmoid"])
def test_mlstm_without_normaliser_gradient(form, gate):
    """Exact where a scale-invariant norm follows, and only there; the output itself does not change."""
    inputs = mlstm_inputs(2, 2, 9, 4, 3, dtype=F64, state=True, input_bias=2.0, requires_grad=True)
    exact, dropped = (form(**inputs, eps=0.0, norm_grad=norm_grad, **gate) for norm_grad in (True, False))
    assert_close_relative(dropped, exact, 0, "h")
    normed = [[h / h.square().mean(-1, keepdim=True).sqrt()] for h in (exact, dropped)]
    got, wanted = (gradients(h, inputs) for h in normed[::-1])
    for name in wanted:
        if name == "n0":
            assert not got["n0"].any() and wanted["n0"].norm() < 1e-12
        else:
            assert_close_relative(got[name], wanted[name], 1e-9, f"d{name}")
    plain = [gradients([h], inputs) for h in (exact, dropped)]
    assert relative_error(plain[1]["q"], plain[0]["q"]) > 0.1
    assert_close_relative(plain[1]["v"], plain[0]["v"], TOL, "dv")


@pytest.mark.parametrize("scale", [0.0, 0.7])
@by_form
def test_mlstm_scale_multiplies_q(form, scale):
    inputs = mlstm_inputs(1, 2, 7, 4, 3, dtype=F64, state=True)
    expected = form(**{**inputs, "q": inputs["q"] * scale * 2})  # the default scale of Dqk = 4 is 1/2
    assert_close_relative(form(**inputs, scale=scale), expected, TOL, "h")


def test_mlstm_refuses_exp_gate_without_normaliser():
    with pytest.raises(ValueError, match="normalize=False"):
        reference.mlstm(**mlstm_inputs(1, 1, 1, 2, 2), normalize=False)


@by_form
@by_gate
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_mlstm_extreme_gates(form, gate, dtype):
    inputs = mlstm_inputs(3, 2, 24, 4, 3, dtype=dtype, state=True)
    choices = torch.tensor([50.0, -50.0, -INF, 80.0, -200.0, 0.5], dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for name in "if":
        inputs[name] = choices[torch.randint(6, inputs[name].shape, generator=generator)]
        inputs[name][0] = -INF
        inputs[name][1, :, :5] = -INF
    inputs["initial_state"].m[:, 0] = -INF
    inputs = {name: x.requires_grad_() if name in "qkvif" else x for name, x in inputs.items()}
    for part in inputs["initial_state"]:
        part.requires_grad_()
    actual = outputs(form, inputs, **gate)
    finite = actual[:3] if gate else actual  # the sigmoid gate returns m0 unchanged
    assert all(x.isfinite().all() for x in finite)
    assert all(g.isfinite().all() for g in gradients(actual, inputs).values())
    if dtype == F64:
        expected = outputs(reference.mlstm_recurrent, inputs, **gate)
        assert_same_with_gradients(actual, inputs, expected, inputs, 1e-8)


@by_form
@by_gate
def test_mlstm_writes_nothing_through_a_closed_input_gate(form, gate):
    inputs = mlstm_inputs(1, 2, 9, 4, 3, dtype=F64)
    inputs["i"].fill_(-INF)
    inputs["i"][:, :, 5:] = 0.1
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    h, C, n, m = outputs(form, inputs, **gate)
    assert not h[:, :, :5].any() and h[:, :, 5:].all()
    grads = gradients([h, C, n, m], inputs)
    assert not grads["i"][:, :, :5].any() and grads["i"][:, :, 5:].all()
    later = {name: x.detach()[:, :, 5:] for name, x in inputs.items()}
    assert_close_relative(h[:, :, 5:], reference.mlstm(**later, eps=1e-6, **gate), 1e-5, "h")  # m, and so eps, differ


@by_form
@by_gate
def test_mlstm_closed_forget_gate_drops_the_past(form, gate):
    inputs = mlstm_inputs(1, 2, 9, 4, 3, dtype=F64, state=True)
    inputs["f"][:, :, 5] = -INF
    nothing = MLSTMState(*(torch.zeros_like(s) for s in inputs["initial_state"]))
    nothing.m.fill_(0 if gate else -1e30)
    expected_h, expected = reference.mlstm(
        **tokens_of(inputs, slice(5, 9)), initial_state=nothing, return_state=True, **gate
    )
    h, *state = outputs(form, inputs, **gate)
    assert_same([h[:, :, 5:], *state[:2]], [expected_h, *expected[:2]])
    assert_close_relative(state[2], inputs["initial_state"].m if gate else expected.m, TOL, "m")


@by_form
def test_mlstm_both_gates_closed(form):
    inputs = mlstm_inputs(1, 2, 4, 4, 3, dtype=F64, state=True)
    inputs["i"][:, :, 3], inputs["f"][:, :, 3] = -INF, -INF
    h, C, n, m = outputs(form, inputs)
    assert not h[:, :, 3].any() and not C.any() and not n.any() and (m == -1e30).all()


@by_form
def test_mlstm_state_without_scale_reads_as_empty(form):
    """m0 of an empty state changes m, and through eps alone h."""
    inputs = mlstm_inputs(1, 2, 6, 4, 3, dtype=F64)
    empty = MLSTMState(torch.zeros(1, 2, 4, 3, dtype=F64), torch.zeros(1, 2, 4, dtype=F64), torch.zeros(1, 2).double())
    expected = form(**inputs, eps=0.0)
    for m0 in (0.0, -1e30, -INF):
        state = empty._replace(m=torch.full((1, 2), m0, dtype=F64))
        assert_close_relative(form(**inputs, initial_state=state, eps=0.0), expected, TOL, f"h, m0 = {m0}")


@by_form
def test_mlstm_clamps_the_incoming_m(form):
    inputs = mlstm_inputs(1, 2, 3, 4, 3, dtype=F64, state=True)
    inputs["i"].fill_(-INF)
    state = inputs.pop("initial_state")
    lowest, clamped = (state._replace(m=torch.full((1, 2), m0, dtype=F64)) for m0 in (-INF, -1e30))
    _, after = form(**inputs, initial_state=lowest, return_state=True)
    assert_same(after, form(**inputs, initial_state=clamped, return_state=True)[1], 0)
    assert_same(after, clamped)


@by_form
@pytest.mark.parametrize("dtype, level", [(torch.float32, 120.0), (F64, 800.0)])
def test_mlstm_without_eps_where_the_floor_underflows(form, dtype, level):
    """exp(-m) is 0: |r| alone divides, and h does not depend on the level of the input gate."""
    inputs = mlstm_inputs(1, 2, 9, 4, 3, dtype=dtype, input_bias=level, requires_grad=True)
    h = form(**inputs, eps=0.0)
    lower = {**inputs, "i": inputs["i"] - level + 20}
    assert_close_relative(h, form(**lower, eps=0.0), 1e-4 if dtype == torch.float32 else TOL, "h")
    assert all(g.isfinite().all() for g in gradients([h], inputs).values())


@by_form
@by_gate
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mlstm_low_precision_computes_in_float32(form, gate, dtype):
    inputs = mlstm_inputs(2, 2, 9, 4, 3, dtype=dtype, state=True, state_dtype=dtype, layout="bshd", requires_grad=True)
    wide = cast(inputs, torch.float32)
    actual, expected = outputs(form, inputs, **gate), outputs(form, wide, **gate)
    assert actual[0].dtype == dtype and all(s.dtype == torch.float32 for s in actual[1:])
    expected[0] = expected[0].to(dtype)
    assert_same(actual, expected, 0)
    grads = gradients(actual, inputs)
    assert {name: g.dtype for name, g in grads.items()} == {name: x.dtype for name, x in leaves(inputs).items()}
    for name, grad in gradients(expected, wide).items():
        assert_close_relative(grads[name], grad.to(grads[name].dtype), 0, f"d{name}")


@by_form
@by_gate
def test_mlstm_gradcheck(form, gate):
    inputs = mlstm_inputs(1, 2, 5, 2, 3, dtype=F64, state=True, requires_grad=True)
    tensors = leaves(inputs)

    def run(q, k, v, i, f, *state):
        h, final = form(q, k, v, i, f, initial_state=MLSTMState(*state), return_state=True, eps=0.1, **gate)
        return h, *final

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))


# sLSTM and LSTM


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_slstm_equals_unstabilised_formula(forget_gate, state):
    inputs = slstm_inputs(2, 7, 2, 3, dtype=F64, state=state, forget_bias=0.5, requires_grad=True)
    x, R, b = inputs["x"], inputs["R"], inputs["b"]
    h, c, n, m = inputs.get("initial_state", (torch.zeros(2, 2, 3, dtype=F64),) * 4)
    c, n = c * m.exp(), n * m.exp()
    m = m if state else torch.full_like(m, -INF)
    hs = []
    for t in range(7):
        i, f, z, o = (x[:, t, g] + (R[g] @ h[..., None]).squeeze(-1) + b[g] for g in range(4))
        forget = f.sigmoid() if forget_gate == "sigmoid" else f.exp()
        c, n = forget * c + i.exp() * z.tanh(), forget * n + i.exp()
        m = torch.maximum(forget.log() + m, i)
        h = o.sigmoid() * c / n
        hs.append(h)
    expected = [torch.stack(hs, 1), h, c * (-m).exp(), n * (-m).exp(), m]
    actual = outputs(reference.slstm, inputs, forget_gate=forget_gate)
    assert_same_with_gradients(actual, inputs, expected, inputs)


def test_lstm_equals_torch():
    inputs = lstm_inputs(2, 6, 1, 5, dtype=F64, state=True, requires_grad=True)
    model = torch.nn.LSTM(3, 5, batch_first=True, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=F64) * 0.5
    data = torch.randn(2, 6, 3, generator=generator, dtype=F64)
    h0, c0 = inputs["initial_state"]
    expected, (hT, cT) = model(data, (h0.transpose(0, 1), c0.transpose(0, 1)))
    h, state = reference.lstm(
        (data @ model.weight_ih_l0.T).view(2, 6, 4, 1, 5),
        model.weight_hh_l0.view(4, 1, 5, 5),
        (model.bias_ih_l0 + model.bias_hh_l0).view(4, 1, 5),
        initial_state=inputs["initial_state"],
        return_state=True,
    )
    parameters = {**dict(model.named_parameters()), "initial_state": inputs["initial_state"]}
    assert_same_with_gradients(
        [h[:, :, 0], *(s[:, 0] for s in state)], parameters, [expected, hT[0], cT[0]], parameters
    )


@by_cell
def test_heads_are_independent(sequence, step, make):
    inputs = make(2, 5, 3, 4, dtype=F64, state=True)
    expected = outputs(sequence, inputs)
    for head in range(3):
        own = [head]
        alone = {"x": inputs["x"][:, :, :, own], "R": inputs["R"][:, own], "b": inputs["b"][:, own]}
        initial = type(inputs["initial_state"])(*(s[:, own] for s in inputs["initial_state"]))
        h, *state = outputs(sequence, {**alone, "initial_state": initial})
        assert_same([h, *state], [expected[0][:, :, own], *(s[:, own] for s in expected[1:])])


@by_cell
def test_missing_bias_is_zero(sequence, step, make):
    inputs = make(2, 5, 2, 3, dtype=F64)
    assert_same(
        outputs(sequence, {**inputs, "b": None}), outputs(sequence, {**inputs, "b": torch.zeros_like(inputs["b"])}), 0
    )


@by_cell
@pytest.mark.parametrize("state", [False, True], ids=["empty", "state"])
def test_recurrent_carried_state_equals_whole(sequence, step, make, state):
    inputs = make(2, 9, 2, 3, dtype=F64, state=state, requires_grad=True)
    x, R, b, carried = inputs["x"], inputs["R"], inputs["b"], inputs.get("initial_state")
    hs = []
    for part in (slice(0, 4), slice(4, 5), slice(5, 5), slice(5, 9)):
        h, carried = sequence(x[:, part], R, b, initial_state=carried, return_state=True)
        hs.append(h)
    assert_same_with_gradients([torch.cat(hs, 1), *carried], inputs, outputs(sequence, inputs), inputs)


@by_cell
def test_recurrent_steps_equal_sequence(sequence, step, make):
    inputs = make(2, 9, 2, 3, dtype=F64, state=True, requires_grad=True)
    hs, state = [], inputs["initial_state"]
    for t in range(9):
        h, state = step(inputs["x"][:, t], inputs["R"], inputs["b"], state)
        hs.append(h)
    assert_same_with_gradients([torch.stack(hs, 1), *state], inputs, outputs(sequence, inputs), inputs)


@by_cell
def test_recurrent_reset_equals_separate_sequences(sequence, step, make):
    inputs = make(2, 8, 2, 3, dtype=F64, state=True, requires_grad=True)
    x, R, b, initial = inputs["x"], inputs["R"], inputs["b"], inputs["initial_state"]
    reset = torch.zeros(2, 8, dtype=torch.bool)
    reset[0, [0, 5]] = reset[1, 6] = True
    hs, finals = [], []
    for row, start, cut in ((0, None, 5), (1, rows_of(initial, [1]), 6)):
        before = sequence(x[[row], :cut], R, b, initial_state=start)
        after, state = sequence(x[[row], cut:], R, b, return_state=True)
        hs.append(torch.cat([before, after], 1))
        finals.append(state)
    expected = [torch.cat(hs), *stacked(finals)]
    assert_same_with_gradients(outputs(sequence, inputs, reset=reset), inputs, expected, inputs)


@by_cell
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_recurrent_lengths_equal_truncated_sequences(sequence, step, make, dtype):
    """Padding is NaN and full of resets: neither may be seen."""
    inputs = make(4, 6, 2, 3, dtype=F64, state=True)
    lengths = torch.tensor([6, 0, 3, 1], dtype=dtype)
    padding = torch.arange(6) >= lengths[:, None]
    inputs["x"].masked_fill_(padding[:, :, None, None, None], math.nan)
    inputs = cast({**inputs}, F64)
    for tensor in leaves(inputs).values():
        tensor.requires_grad_()
    x, R, b, initial = inputs["x"], inputs["R"], inputs["b"], inputs["initial_state"]
    hs, finals = [], []
    for row, length in enumerate(lengths.tolist()):
        h, state = sequence(x[[row], :length], R, b, initial_state=rows_of(initial, [row]), return_state=True)
        hs.append(torch.cat([h, h.new_zeros(1, 6 - length, 2, 3)], 1))
        finals.append(state)
    expected = [torch.cat(hs), *stacked(finals)]
    actual = outputs(sequence, inputs, lengths=lengths, reset=padding)
    assert_same_with_gradients(actual, inputs, expected, inputs)
    assert all(g.isfinite().all() for g in gradients(actual, inputs).values())


@by_cell
@pytest.mark.parametrize("sizes", [(2, 0, 2, 3), (0, 4, 2, 3)], ids=["S=0", "B=0"])
def test_recurrent_nothing_to_do(sequence, step, make, sizes):
    inputs = make(*sizes, dtype=F64, state=True, requires_grad=True)
    h, *state = outputs(sequence, inputs)
    B, S, H, D = sizes
    assert h.shape == (B, S, H, D)
    assert_same(state, list(inputs["initial_state"]), 0)
    grads = gradients([h, *state], inputs)
    assert all(grads[name].all() for name in grads if name.endswith("0"))
    assert not grads["x"].any() and not grads["R"].any()


@by_cell
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_recurrent_extreme_gates(sequence, step, make, dtype):
    inputs = make(3, 16, 2, 3, dtype=dtype, state=True)
    choices = torch.tensor([50.0, -50.0, -INF, 80.0, 0.5], dtype=dtype)
    picked = torch.randint(5, (3, 16, 2, 2, 3), generator=torch.Generator().manual_seed(3))
    inputs["x"][:, :, :2] = choices[picked]
    inputs["x"][0, :, :2] = -INF
    inputs["x"][1, :4, :2] = -INF
    inputs = cast(inputs, dtype)
    for tensor in leaves(inputs).values():
        tensor.requires_grad_()
    actual = outputs(sequence, inputs)
    assert all(x.isfinite().all() for x in actual)
    assert all(g.isfinite().all() for g in gradients(actual, inputs).values())
    assert all(not s[0].any() for s in actual[1:])  # all closed: nothing is left


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_empty_elements_ignore_their_state(forget_gate):
    inputs = slstm_inputs(2, 5, 2, 4, dtype=F64, state=True)
    h0, c0, n0, m0 = inputs["initial_state"]
    empty = torch.zeros(2, 2, 4, dtype=torch.bool)
    empty[:, :, ::2] = True
    clean = SLSTMState(h0, *(s.masked_fill(empty, 0) for s in (c0, n0, m0)))
    junk = SLSTMState(h0, c0.masked_fill(empty, math.nan), clean.n, m0.masked_fill(empty, 900.0))
    runs = []
    for state in (junk, clean):
        own = cast({**inputs, "initial_state": state}, F64)
        for tensor in leaves(own).values():
            tensor.requires_grad_()
        runs.append((outputs(reference.slstm, own, forget_gate=forget_gate), own))
    assert_same_with_gradients(*runs[0], *runs[1], 0)
    grads = gradients(*runs[0])
    assert all(not grads[name][empty].any() and grads[name][~empty].all() for name in ("c0", "n0", "m0"))
    assert grads["h0"].all()


def test_slstm_element_emptied_by_its_gates():
    inputs = slstm_inputs(1, 4, 1, 2, dtype=F64, state=True)
    inputs["x"][:, 2, :2, :, 0] = -INF
    h, *state = outputs(reference.slstm, {**inputs, "x": inputs["x"][:, :3]})
    assert not h[:, 2, :, 0].any() and all(not s[..., 0].any() and s[..., 1].all() for s in state)
    following = reference.slstm(inputs["x"][:, 3:], inputs["R"], inputs["b"], initial_state=SLSTMState(*state))
    assert_close_relative(reference.slstm(**inputs)[:, 3:], following, TOL, "h")


@by_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_recurrent_low_precision(sequence, step, make, dtype):
    """x, R, b and h rounded to T; c, n, m and the products in float32; the recurrence reads the rounded h."""
    inputs = make(2, 6, 2, 4, dtype=dtype, state=True, bias_dtype=dtype, state_dtype=dtype, requires_grad=True)
    h, *state = outputs(sequence, inputs)
    assert h.dtype == dtype and all(s.dtype == torch.float32 for s in state)
    assert torch.equal(state[0], h[:, -1].float())
    wide = cast(inputs, torch.float32)
    carried, expected = wide["initial_state"], []
    for t in range(6):
        _, carried = step(wide["x"][:, t], wide["R"], wide["b"], carried)
        carried = carried._replace(h=rounded(carried.h, dtype))
        expected.append(carried.h)
    expected = [torch.stack(expected, 1).to(dtype), *carried]
    assert_same([h, *state], expected, 0)
    grads = gradients([h, *state], inputs)
    assert {name: g.dtype for name, g in grads.items()} == {name: x.dtype for name, x in leaves(inputs).items()}
    for name, grad in gradients(expected, wide).items():
        assert_close_relative(grads[name], grad.to(grads[name].dtype), 0, f"d{name}")


@by_cell
def test_recurrent_rounds_a_wide_initial_h(sequence, step, make):
    inputs = make(2, 3, 2, 4, dtype=torch.bfloat16, state=True)
    generator = torch.Generator().manual_seed(5)
    wide = inputs["initial_state"]._replace(h=torch.randn(2, 2, 4, generator=generator))
    narrow = wide._replace(h=wide.h.bfloat16())
    assert_same(
        outputs(sequence, {**inputs, "initial_state": wide}), outputs(sequence, {**inputs, "initial_state": narrow}), 0
    )


@by_cell
def test_recurrent_gradcheck(sequence, step, make):
    inputs = make(2, 4, 2, 2, dtype=F64, state=True, requires_grad=True)
    state_type = type(inputs["initial_state"])

    def run(x, R, b, *state):
        h, final = sequence(x, R, b, initial_state=state_type(*state), return_state=True)
        return h, *final

    assert torch.autograd.gradcheck(run, tuple(leaves(inputs).values()))


def test_lstm_state_type():
    _, state = reference.lstm(**lstm_inputs(1, 1, 1, 2), return_state=True)
    assert isinstance(state, LSTMState) and state.c.shape == (1, 1, 2)


# helpers of xlstm_cuda.testing and of the reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_has_the_gradient_of_the_identity(dtype):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1000, generator=generator) * 10.0 ** torch.arange(-8, 2).repeat(100)).requires_grad_()
    y = rounded(x, dtype)
    assert torch.equal(y, x.to(dtype).float())
    weight = torch.randn(1000, generator=generator)
    assert torch.equal(torch.autograd.grad(y, x, weight)[0], weight)


def test_relative_error():
    one, nan = torch.ones(4), torch.tensor([1.0, math.nan, 1.0, 1.0])
    assert relative_error(one, one) == 0 == relative_error(nan, nan)
    assert relative_error(1.5 * one, one) == 0.5
    assert relative_error(torch.zeros(4), torch.zeros(4)) == 0
    assert relative_error(0.5 * one, torch.zeros(4)) == 1
    assert relative_error(torch.empty(0), torch.empty(0)) == 0
    infinite = torch.tensor([1.0, INF, 1.0, 1.0])
    assert relative_error(infinite, infinite) == 0
    for actual, expected in ((nan, one), (one, nan), (infinite, one), (infinite, -infinite), (nan, infinite)):
        assert relative_error(actual, expected) == INF
    assert relative_error(one, torch.ones(3)) == INF
    with pytest.raises(AssertionError, match="h: relative error"):
        assert_close_relative(1.5 * one, one, 0.4, "h")
    with pytest.raises(AssertionError, match="shape"):
        assert_close_relative(one, torch.ones(1, 4), 0.4)


@pytest.mark.parametrize("make, sizes", [(mlstm_inputs, (2, 3, 5, 4, 6)), (slstm_inputs, (2, 5, 3, 4))])
def test_inputs_are_seeded_leaves(make, sizes):
    options = {"dtype": torch.bfloat16, "state": True, "requires_grad": True}
    first, again, other = make(*sizes, **options), make(*sizes, **options), make(*sizes, **options, seed=1)
    for name, tensor in leaves(first).items():
        assert tensor.is_leaf and tensor.requires_grad
        assert torch.equal(tensor, leaves(again)[name]) and not torch.equal(tensor, leaves(other)[name])


def test_inputs_in_the_layout_of_a_projection():
    q = mlstm_inputs(2, 3, 5, 4, 6, layout="bshd")["q"]
    assert q.shape == (2, 3, 5, 4) and q.transpose(1, 2).is_contiguous()
