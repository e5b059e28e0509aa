"""Every wrong call raises an error that names op, argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import xlstm_cuda._ops as ops
from xlstm_cuda._states import LSTMState, MLSTMState, SLSTMState
from xlstm_cuda.functional import backend as use_backend
from xlstm_cuda.functional import lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step

BACKENDS = "'cpu', 'cuda', 'simt', 'simt_race', 'ptx', 'ptx_race', 'reference'"

B, H, S, DQK, DV, D = 2, 4, 6, 8, 5, 3


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def mlstm_arguments(*lead: int, rows: int = B) -> dict[str, Any]:
    q, v, gate = torch.randn(*lead, DQK), torch.randn(*lead, DV), torch.randn(*lead)
    state = MLSTMState(torch.zeros(rows, H, DQK, DV), torch.zeros(rows, H, DQK), torch.zeros(rows, H))
    return {"q": q, "k": q.clone(), "v": v, "i": gate, "f": gate.clone(), "state": state}


def recurrent_arguments(*lead: int, state: Any) -> dict[str, Any]:
    return {
        "x": torch.randn(*lead, 4, H, D),
        "R": torch.randn(4, H, D, D),
        "b": torch.randn(4, H, D),
        "state": state(*(torch.zeros(B, H, D) for _ in state._fields)),
    }


def good(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a right call."""
    if function in (mlstm, mlstm_step):
        arguments = mlstm_arguments(B, H, S)
    else:
        lead = (B,) if function in (slstm_step, lstm_step) else (B, S)
        arguments = recurrent_arguments(*lead, state=LSTMState if function in (lstm, lstm_step) else SLSTMState)
    if not function.__name__.endswith("_step"):
        arguments["initial_state"] = arguments.pop("state")
    return arguments


FUNCTIONS = [mlstm, mlstm_step, slstm, slstm_step, lstm, lstm_step]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_right_call_is_right(function: Callable[..., Any]) -> None:
    function(**good(function), backend="reference")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def state(cls: Any, **changed: Any) -> Any:
    """A right state, some of its tensors replaced."""
    if cls is MLSTMState:
        return mlstm_arguments(B, H, S)["state"]._replace(**changed)
    return cls(*(zeros(B, H, D) for _ in cls._fields))._replace(**changed)


Case = tuple[Callable[..., Any], dict[str, Any], type[Exception], str]
FLOATS = "bfloat16, float16, float32 or float64"

MLSTM_CASES: list[Case] = [
    (mlstm, {"q": [1.0]}, TypeError, "mlstm: q must be a Tensor, got list"),
    (mlstm, {"f": None}, TypeError, "mlstm: f must be a Tensor, got NoneType"),
    (mlstm, {"q": zeros(B, H, S, DQK, dtype=torch.int64)}, TypeError, f"mlstm: q must be {FLOATS}, got torch.int64"),
    (mlstm, {"i": zeros(B, H, S, dtype=torch.bool)}, TypeError, f"mlstm: i must be {FLOATS}, got torch.bool"),
    (
        mlstm,
        {"k": zeros(B, H, S, DQK, dtype=torch.bfloat16)},
        TypeError,
        "mlstm: k must have dtype torch.float32 like q, got torch.bfloat16",
    ),
    (
        mlstm,
        {"v": zeros(B, H, S, DV, dtype=torch.float64)},
        TypeError,
        "mlstm: v must have dtype torch.float32 like q, got torch.float64",
    ),
    (mlstm, {"k": zeros(B, H, S, DQK).to("meta")}, ValueError, "mlstm: k must be on cpu like q, got meta"),
    (
        mlstm,
        {"q": zeros(B, S, DQK)},
        ValueError,
        "mlstm: q must have shape (B, H, S, Dqk), H and Dqk at least 1, got (2, 6, 8)",
    ),
    (
        mlstm,
        {"q": zeros(B, 0, S, DQK)},
        ValueError,
        "mlstm: q must have shape (B, H, S, Dqk), H and Dqk at least 1, got (2, 0, 6, 8)",
    ),
    (
        mlstm,
        {"q": zeros(B, H, S, 0)},
        ValueError,
        "mlstm: q must have shape (B, H, S, Dqk), H and Dqk at least 1, got (2, 4, 6, 0)",
    ),
    (
        mlstm,
        {"k": zeros(B, H, S, 7)},
        ValueError,
        "mlstm: k must have shape (B=2, H=4, S=6, Dqk=8), got (2, 4, 6, 7)",
    ),
    (
        mlstm,
        {"v": zeros(B, H, S - 1, DV)},
        ValueError,
        "mlstm: v must have shape (B=2, H=4, S=6, Dv), Dv at least 1, got (2, 4, 5, 5)",
    ),
    (
        mlstm,
        {"v": zeros(B, H, S, 0)},
        ValueError,
        "mlstm: v must have shape (B=2, H=4, S=6, Dv), Dv at least 1, got (2, 4, 6, 0)",
    ),
    (mlstm, {"i": zeros(B, S, H)}, ValueError, "mlstm: i must have shape (B=2, H=4, S=6), got (2, 6, 4)"),
    (mlstm, {"f": zeros(B, H, S, 1)}, ValueError, "mlstm: f must have shape (B=2, H=4, S=6), got (2, 4, 6, 1)"),
    (
        mlstm,
        {"initial_state": (zeros(B, H), zeros(B, H))},
        TypeError,
        "mlstm: initial_state must be None, MLSTMState(C, n, m) or a tuple of 3 tensors, got tuple of 2",
    ),
    (
        mlstm,
        {"initial_state": zeros(3)},
        TypeError,
        "mlstm: initial_state must be None, MLSTMState(C, n, m) or a tuple of 3 tensors, got Tensor",
    ),
    (
        mlstm,
        {"initial_state": state(MLSTMState, n=None)},
        TypeError,
        "mlstm: initial_state.n must be a Tensor, got NoneType",
    ),
    (
        mlstm,
        {"initial_state": state(MLSTMState, m=zeros(B, H, dtype=torch.int32))},
        TypeError,
        f"mlstm: initial_state.m must be {FLOATS}, got torch.int32",
    ),
    (
        mlstm,
        {"initial_state": state(MLSTMState, C=zeros(B, H, DQK, DV).to("meta"))},
        ValueError,
        "mlstm: initial_state.C must be on cpu like q, got meta",
    ),
    (
        mlstm,
        {"initial_state": state(MLSTMState, C=zeros(B, H, DV, DQK))},
        ValueError,
        "mlstm: initial_state.C must have shape (B=2, H=4, Dqk=8, Dv=5), got (2, 4, 5, 8)",
    ),
    (
        mlstm,
        {"initial_state": state(MLSTMState, n=zeros(1, H, DQK))},
        ValueError,
        "mlstm: initial_state.n must have shape (B=2, H=4, Dqk=8), got (1, 4, 8)",
    ),
    (
        mlstm,
        {"initial_state": state(MLSTMState, m=zeros(B, H, 1))},
        ValueError,
        "mlstm: initial_state.m must have shape (B=2, H=4), got (2, 4, 1)",
    ),
    (mlstm, {"input_gate": "relu"}, ValueError, "mlstm: input_gate must be 'exp' or 'sigmoid', got 'relu'"),
    (mlstm, {"normalize": False}, ValueError, "mlstm: normalize=False needs input_gate='sigmoid', got 'exp'"),
    (mlstm, {"scale": float("nan")}, ValueError, "mlstm: scale must be None or a finite number, got nan"),
    (mlstm, {"scale": "1"}, ValueError, "mlstm: scale must be None or a finite number, got '1'"),
    (mlstm, {"eps": float("inf")}, ValueError, "mlstm: eps must be a finite number >= 0, got inf"),
    (mlstm, {"eps": -1e-6}, ValueError, "mlstm: eps must be a finite number >= 0, got -1e-06"),
    (mlstm, {"eps": None}, ValueError, "mlstm: eps must be a finite number >= 0, got None"),
    (mlstm, {"chunk_size": 0}, ValueError, "mlstm: chunk_size must be None or an int from 1 to 2**31 - 1, got 0"),
    (mlstm, {"chunk_size": 64.0}, ValueError, "mlstm: chunk_size must be None or an int from 1 to 2**31 - 1, got 64.0"),
    (mlstm, {"chunk_size": True}, ValueError, "mlstm: chunk_size must be None or an int from 1 to 2**31 - 1, got True"),
    (mlstm, {"reset": [True]}, TypeError, "mlstm: reset must be a Tensor, got list"),
    (mlstm, {"reset": zeros(B, S)}, TypeError, "mlstm: reset must have dtype torch.bool, got torch.float32"),
    (
        mlstm,
        {"reset": zeros(B, H, dtype=torch.bool)},
        ValueError,
        "mlstm: reset must have shape (B=2, S=6), got (2, 4)",
    ),
    (
        mlstm,
        {"reset": zeros(B, S, dtype=torch.bool).to("meta")},
        ValueError,
        "mlstm: reset must be on cpu like q, got meta",
    ),
    (mlstm, {"cu_seqlens": ints(0, 6)}, ValueError, "mlstm: q must have B=1 with cu_seqlens, got (2, 4, 6, 8)"),
    (mlstm, {"backend": "triton"}, ValueError,
     f"mlstm: backend must be None or one of {BACKENDS}, got 'triton'"),
    (mlstm, {"backend": "cuda"}, ValueError, "mlstm: backend='cuda' needs tensors on a cuda device, got cpu"),
]  # fmt: skip

PACKED_CASES: list[Case] = [
    (mlstm, {"cu_seqlens": [0, 6]}, TypeError, "mlstm: cu_seqlens must be a Tensor, got list"),
    (
        mlstm,
        {"cu_seqlens": ints(0, 6, dtype=torch.int64)},
        TypeError,
        "mlstm: cu_seqlens must have dtype torch.int32, got torch.int64",
    ),
    (mlstm, {"cu_seqlens": ints(0, 6)[None]}, ValueError, "mlstm: cu_seqlens must have shape (N+1,), got (1, 2)"),
    (mlstm, {"cu_seqlens": ints()}, ValueError, "mlstm: cu_seqlens must have shape (N+1,), got (0,)"),
    (mlstm, {"cu_seqlens": ints(1, 6)}, ValueError, "mlstm: cu_seqlens must start at 0, got 1"),
    (mlstm, {"cu_seqlens": ints(0, 4, 3, 6)}, ValueError, "mlstm: cu_seqlens must not decrease, got 3 after 4"),
    (mlstm, {"cu_seqlens": ints(0, 5)}, ValueError, "mlstm: cu_seqlens must end at S=6, got 5"),
    (mlstm, {"cu_seqlens": ints(0, 7)}, ValueError, "mlstm: cu_seqlens must end at S=6, got 7"),
    (
        mlstm,
        {"cu_seqlens": ints(0, 2, 4, 6), "initial_state": state(MLSTMState)},
        ValueError,
        "mlstm: initial_state.C must have shape (N=3, H=4, Dqk=8, Dv=5), got (2, 4, 8, 5)",
    ),
]

STEP_CASES: list[Case] = [
    (
        mlstm_step,
        {"q": zeros(B, H)},
        ValueError,
        "mlstm_step: q must have shape (B, H, Dqk) or (B, H, S, Dqk), H and Dqk at least 1, got (2, 4)",
    ),
    (
        mlstm_step,
        mlstm_arguments(B, H, 17),
        ValueError,
        "mlstm_step: q must have at most S=16 tokens, got (2, 4, 17, 8)",
    ),
    (
        mlstm_step,
        {"k": zeros(B, H, DQK)},
        ValueError,
        "mlstm_step: k must have shape (B=2, H=4, S=6, Dqk=8), got (2, 4, 8)",
    ),
    (
        mlstm_step,
        {**mlstm_arguments(B, H), "i": zeros(B, H, 1)},
        ValueError,
        "mlstm_step: i must have shape (B=2, H=4), got (2, 4, 1)",
    ),
    (
        mlstm_step,
        {"state": (zeros(B, H),)},
        TypeError,
        "mlstm_step: state must be None, MLSTMState(C, n, m) or a tuple of 3 tensors, got tuple of 1",
    ),
    (
        mlstm_step,
        {"state": state(MLSTMState, C=zeros(3, H, DQK, DV))},
        ValueError,
        "mlstm_step: state.C must have shape (B=2, H=4, Dqk=8, Dv=5), got (3, 4, 8, 5)",
    ),
    (mlstm_step, {"eps": -1.0}, ValueError, "mlstm_step: eps must be a finite number >= 0, got -1.0"),
    (mlstm_step, {"input_gate": ""}, ValueError, "mlstm_step: input_gate must be 'exp' or 'sigmoid', got ''"),
    (mlstm_step, {"backend": "gpu"}, ValueError,
     f"mlstm_step: backend must be None or one of {BACKENDS}, got 'gpu'"),
    (mlstm_step, {"q": None}, TypeError, "mlstm_step: q must be a Tensor, got NoneType"),
    (
        mlstm_step,
        {"q": zeros(2, 4, 0)},
        ValueError,
        "mlstm_step: q must have shape (B, H, Dqk) or (B, H, S, Dqk), H and Dqk at least 1, got (2, 4, 0)",
    ),
    (mlstm_step, {"slots": [0, 1]}, TypeError, "mlstm_step: slots must be a Tensor, got list"),
    (
        mlstm_step,
        {"slots": ints(0, 1).to("meta"), "inplace": True},
        ValueError,
        "mlstm_step: slots must be on cpu like q, got meta",
    ),
    (
        mlstm_step,
        {"slots": ints(0, 1, dtype=torch.int64)},
        TypeError,
        "mlstm_step: slots must have dtype torch.int32, got torch.int64",
    ),
    (mlstm_step, {"slots": ints(0, 1, 2)}, ValueError, "mlstm_step: slots must have shape (B=2,), got (3,)"),
    (mlstm_step, {"slots": ints(0, 2)}, ValueError, "mlstm_step: slots must be between 0 and N-1=1, got 2"),
    (mlstm_step, {"slots": ints(-1, 0)}, ValueError, "mlstm_step: slots must be between 0 and N-1=1, got -1"),
    (mlstm_step, {"slots": ints(1, 1)}, ValueError, "mlstm_step: slots must not repeat a row, got 1 twice"),
    (mlstm_step, {"slots": ints(0, 1), "state": None}, ValueError, "mlstm_step: slots needs a state, got None"),
    (
        mlstm_step,
        {"slots": ints(0, 1), "state": state(MLSTMState, n=zeros(5, H, DQK))},
        ValueError,
        "mlstm_step: state.n must have shape (N=2, H=4, Dqk=8), got (5, 4, 8)",
    ),
    (
        mlstm_step,
        {"inplace": True, "v": zeros(B, H, S, DV).requires_grad_()},
        ValueError,
        "mlstm_step: inplace=True does not support inputs that require grad, forward mode and torch.func",
    ),
    (
        mlstm_step,
        {"inplace": True, "state": state(MLSTMState, m=zeros(B, H).requires_grad_())},
        ValueError,
        "mlstm_step: inplace=True does not support inputs that require grad, forward mode and torch.func",
    ),
    (
        mlstm_step,
        {"inplace": True, "state": state(MLSTMState, n=zeros(B, H, DQK, dtype=torch.bfloat16))},
        TypeError,
        "mlstm_step: state.n must have dtype torch.float32 with inplace=True, got torch.bfloat16",
    ),
    (
        mlstm_step,
        {"inplace": True, "state": state(MLSTMState, n=zeros(B, DQK, H).mT)},
        ValueError,
        "mlstm_step: state.n must be contiguous in its last dimension and not expanded, nor overlap itself, "
        "with inplace=True, got strides (32, 1, 4)",
    ),
    (
        mlstm_step,
        {"inplace": True, "state": state(MLSTMState, m=zeros(1, H).expand(B, H))},
        ValueError,
        "mlstm_step: state.m must be contiguous in its last dimension and not expanded, nor overlap itself, "
        "with inplace=True, got strides (0, 1)",
    ),
]  # fmt: skip


def recurrent_cases(function: Callable[..., Any], cls: Any) -> list[Case]:
    """Wrong calls that slstm, slstm_step, lstm and lstm_step share."""
    op, one = function.__name__, function.__name__.endswith("_step")
    name, lead, dims = ("state", (B,), "B") if one else ("initial_state", (B, S), "B, S")
    given = ", ".join(map(str, lead))
    fields = len(cls._fields)
    x_shape = f"{op}: x must have shape ({dims}, 4, H, D), H and D at least 1, got"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"x": None}, TypeError, f"{op}: x must be a Tensor, got NoneType"),
        ({"R": zeros(4, H, D, D, dtype=torch.int8)}, TypeError, f"{op}: R must be {FLOATS}, got torch.int8"),
        ({"b": 0.0}, TypeError, f"{op}: b must be a Tensor, got float"),
        ({"x": zeros(*lead, 4, H * D)}, ValueError, f"{x_shape} ({given}, 4, 12)"),
        ({"x": zeros(*lead, 3, H, D)}, ValueError, f"{x_shape} ({given}, 3, 4, 3)"),
        ({"x": zeros(*lead, 4, 0, D)}, ValueError, f"{x_shape} ({given}, 4, 0, 3)"),
        ({"x": zeros(*lead, 4, H, 0)}, ValueError, f"{x_shape} ({given}, 4, 4, 0)"),
        (
            {"R": zeros(4, H, D, D, dtype=torch.float16)},
            TypeError,
            f"{op}: R must have dtype torch.float32 like x, got torch.float16",
        ),
        ({"R": zeros(H, 4, D, 1)}, ValueError, f"{op}: R must have shape (4, H=4, D=3, D=3), got (4, 4, 3, 1)"),
        ({"R": zeros(4, H, D, D).to("meta")}, ValueError, f"{op}: R must be on cpu like x, got meta"),
        ({"b": zeros(4 * H * D)}, ValueError, f"{op}: b must have shape (4, H=4, D=3), got (48,)"),
        (
            {name: tuple(zeros(B, H, D) for _ in range(fields + 1))},
            TypeError,
            f"{op}: {name} must be None, {cls.__name__}({', '.join(cls._fields)}) or a tuple of {fields} tensors, "
            f"got tuple of {fields + 1}",
        ),
        ({name: state(cls, c=None)}, TypeError, f"{op}: {name}.c must be a Tensor, got NoneType"),
        (
            {name: state(cls, c=zeros(B, H * D))},
            ValueError,
            f"{op}: {name}.c must have shape (B=2, H=4, D=3), got (2, 12)",
        ),
        (
            {name: state(cls, h=zeros(1, H, D))},
            ValueError,
            f"{op}: {name}.h must have shape (B=2, H=4, D=3), got (1, 4, 3)",
        ),
        ({"backend": 3}, ValueError,
         f"{op}: backend must be None or one of {BACKENDS}, got 3"),
    ]  # fmt: skip
    if cls is SLSTMState:
        cases += [
            ({"forget_gate": "tanh"}, ValueError, f"{op}: forget_gate must be 'sigmoid' or 'exp', got 'tanh'"),
            (
                {name: state(cls, n=torch.full((B, H, D), -2.0))},
                ValueError,
                f"{op}: {name}.n must not be negative, got -2.0",
            ),
        ]
    if not one:
        cases += [
            (
                {"lengths": zeros(B)},
                TypeError,
                f"{op}: lengths must have dtype torch.int32 or torch.int64, got torch.float32",
            ),
            ({"lengths": ints(1)}, ValueError, f"{op}: lengths must have shape (B=2,), got (1,)"),
            ({"lengths": ints(1, 7)}, ValueError, f"{op}: lengths must be between 0 and S=6, got 7"),
            ({"lengths": ints(-1, 2)}, ValueError, f"{op}: lengths must be between 0 and S=6, got -1"),
            (
                {"reset": zeros(B, S, dtype=torch.uint8)},
                TypeError,
                f"{op}: reset must have dtype torch.bool, got torch.uint8",
            ),
            (
                {"reset": zeros(B, dtype=torch.bool)},
                ValueError,
                f"{op}: reset must have shape (B=2, S=6), got (2,)",
            ),
            (
                {"reversed_heads": True},
                ValueError,
                f"{op}: reversed_heads must be an integer from 0 to H = 4, got True",
            ),
            ({"reversed_heads": 5}, ValueError, f"{op}: reversed_heads must be an integer from 0 to H = 4, got 5"),
            (
                {"reversed_heads": None},
                ValueError,
                f"{op}: reversed_heads must be an integer from 0 to H = 4, got None",
            ),
        ]
    return [(function, changed, error, message) for changed, error, message in cases]


CASES = [
    *MLSTM_CASES,
    *STEP_CASES,
    *recurrent_cases(slstm, SLSTMState),
    *recurrent_cases(slstm_step, SLSTMState),
    *recurrent_cases(lstm, LSTMState),
    *recurrent_cases(lstm_step, LSTMState),
]


@pytest.mark.parametrize(("function", "changed", "error", "message"), CASES, ids=[case[3][:70] for case in CASES])
def test_wrong_call(
    function: Callable[..., Any], changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        function(**{**good(function), **changed})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("function", "changed", "error", "message"), PACKED_CASES, ids=[case[3][:70] for case in PACKED_CASES]
)
def test_wrong_packing(
    function: Callable[..., Any], changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = mlstm_arguments(1, H, S)
    arguments.pop("state")
    with pytest.raises(error) as raised:
        function(**{**arguments, **changed})
    assert str(raised.value) == message


FLAGS = {
    mlstm: ("normalize", "norm_grad", "return_state"),
    mlstm_step: ("normalize", "norm_grad", "inplace"),
    slstm: ("return_state",),
    lstm: ("return_state",),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("gate", ["exp", "sigmoid"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(function, name) for function, names in FLAGS.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_flags_are_bools(function: Callable[..., Any], name: str, gate: str, grad: bool) -> None:
    """ "no" would be taken for True."""
    arguments = good(function)
    if "mlstm" in function.__name__:
        arguments["input_gate"] = gate
    with pytest.raises(TypeError) as raised, torch.set_grad_enabled(grad):
        function(**{**arguments, name: "no"})
    assert str(raised.value) == f"{function.__name__}: {name} must be True or False, got 'no'"


@pytest.mark.parametrize("function", [mlstm, mlstm_step])
@pytest.mark.parametrize(
    ("name", "expected"), [("scale", "be None or a finite number"), ("eps", "be a finite number >= 0")]
)
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["large", "negative", "huge"])
def test_numbers_beyond_floats(function: Callable[..., Any], name: str, expected: str, value: int) -> None:
    with pytest.raises(ValueError) as raised:
        function(**{**good(function), name: value})
    assert str(raised.value) == f"{function.__name__}: {name} must {expected}, got an int of {value.bit_length()} bits"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_tensors_that_are_not_dense(function: Callable[..., Any]) -> None:
    op = function.__name__
    for name, value in good(function).items():
        if isinstance(value, Tensor):
            rows = [x.clone() for x in value]
            nested = [torch.nested.nested_tensor(rows, layout=layout) for layout in (torch.strided, torch.jagged)]
            for x in (value.to_sparse(), *nested):
                with pytest.raises(
                    TypeError, match=f"^{op}: {name} must be a dense tensor.*, got (a N|torch.sparse_coo)"
                ):
                    function(**{**good(function), name: x})


@pytest.mark.parametrize("function", [slstm, lstm])
def test_lengths_that_are_not_dense(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="lengths must be a dense tensor, got torch.sparse_coo"):
        function(**good(function), lengths=torch.ones(B, dtype=torch.int64).to_sparse())


@pytest.mark.parametrize("needs_grad", [False, True])
def test_out_of_memory_says_how_many_bytes_for_what(needs_grad: bool) -> None:
    """More than a process can address: no machine has it."""
    q, v = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1).requires_grad_(needs_grad)
    q, v, gate = q.expand(-1, -1, -1, 2**22), v.expand(-1, -1, -1, 2**25), torch.zeros(1, 1, 1)
    message = f"xlstm_cuda: DefaultCPUAllocator: can't allocate memory. Tried to allocate {2**49} bytes"
    with pytest.raises(RuntimeError, match=f"{message} for a tensor of shape .1, 1, {2**22}, {2**25}."):
        mlstm(q, q, v, gate, gate)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_unknown_device(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Tensor):
        device = torch.device("mps")

    arguments = good(function)
    for name, x in arguments.items():
        if isinstance(x, Tensor):
            arguments[name] = x.as_subclass(Elsewhere)
        else:
            arguments[name] = type(x)(*(s.as_subclass(Elsewhere) for s in x))
    op = function.__name__
    with pytest.raises(ValueError, match=rf"^{op}: tensors must be on a cpu or cuda device, .*, got mps$"):
        function(**arguments)


def test_backend_context() -> None:
    with pytest.raises(ValueError, match=r"^backend: backend must be None or one of 'cpu', .*, got 'gpu'$"):
        use_backend("gpu").__enter__()
    with use_backend("cuda"), pytest.raises(ValueError, match=r"^mlstm: backend='cuda' needs tensors on a cuda device"):
        mlstm(**good(mlstm))
    with use_backend("cuda"):
        mlstm(**good(mlstm), backend="reference")  # the argument wins
        with use_backend("reference"):
            mlstm(**good(mlstm))
        with pytest.raises(ValueError, match="backend='cuda'"):
            mlstm(**good(mlstm))


def test_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_registered", set())
    monkeypatch.setattr(ops, "_import_error", ImportError("xlstm_cuda: what to do"))
    monkeypatch.setattr(ops, "_executor_file", lambda _: Path("nowhere/_simt.so"))
    with pytest.raises(ImportError, match="^xlstm_cuda: what to do$"):
        mlstm(**good(mlstm))
    with pytest.raises(ImportError, match=r"backend='simt' is not built: run `make simt`"):
        mlstm(**good(mlstm), backend="simt")
    mlstm(**good(mlstm), backend="reference")


def test_values_are_not_read_while_compiling_or_faking() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        arguments = {name: mode.from_tensor(x) for name, x in mlstm_arguments(1, H, S).items() if name != "state"}
        h = mlstm(**arguments, cu_seqlens=mode.from_tensor(ints(3, 1)))
        assert h.shape == (1, H, S, DV)
        lengths = mode.from_tensor(ints(99, -1))
        fakes = {name: mode.from_tensor(x) for name, x in good(lstm).items() if isinstance(x, Tensor)}
        assert lstm(**fakes, lengths=lengths).shape == (B, S, H, D)
