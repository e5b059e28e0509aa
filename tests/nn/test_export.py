"""torch.export of modules and models: any batch and length, saved, loaded and trained; a package of AOTInductor."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

from tests.support.paths import ROOT
from xlstm_cuda import models
from xlstm_cuda import nn as xnn
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")


class Step(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> Any:
        return self.model.step(*arguments)


class Form(NamedTuple):
    """How a module is called: draw(B, S) -> x, with the state of other tokens, and what follows it."""

    make: Callable[[], nn.Module]
    draw: Callable[[int, int], Tensor]
    batch_of_state: int = 0
    rest: tuple[Any, ...] = ()
    longest: int = 300

    def arguments(self, module: Any, B: int, S: int) -> tuple[Any, ...]:
        with torch.no_grad():
            state = module(self.draw(B, 2), None, *self.rest)[1]
        return self.draw(B, S), state, *self.rest

    def dynamic(self, arguments: tuple[Any, ...], how: str) -> Any:
        named = Dim("B", min=1, max=64), Dim("S", min=1, max=self.longest)
        B, S = named if how == "named" else (Dim.AUTO, Dim.AUTO)
        state = pytree.tree_map(lambda _: {self.batch_of_state: B}, arguments[1])
        return {0: B, 1: S}, state, *(None for _ in self.rest)


def features(B: int, S: int) -> Tensor:
    return torch.randn(B, S, 16)


def ids(B: int, S: int) -> Tensor:
    return torch.randint(9, (B, S))


def stack() -> Any:
    return xnn.xLSTMBlockStack(xnn.xLSTMBlockStackConfig.from_ratio("1:1", 2, embedding_dim=16))


def large(**fields: Any) -> Any:
    return models.xLSTMLarge(
        models.xLSTMLargeConfig(
            embedding_dim=16, num_heads=2, num_blocks=1, vocab_size=9, ffn_round_up_to_multiple_of=16, **fields
        )
    )


FORMS: dict[str, Form] = {
    "LSTM": Form(lambda: xnn.LSTM(16, 8, 2, batch_first=True, bidirectional=True, proj_size=4), features, 1),
    "mLSTM": Form(lambda: xnn.mLSTM(16, 8, num_heads=2, batch_first=True, bidirectional=True), features, 1),
    "stack": Form(stack, features, rest=(True,)),
    "step of a stack": Form(lambda: Step(stack()), features, longest=16),
    "large": Form(lambda: large(mode="inference", weight_mode="fused"), ids, rest=(True,)),
    "step of large": Form(lambda: Step(large()), ids, longest=16),
}
forms = pytest.mark.parametrize("name", FORMS)


def build(form: Form) -> Any:
    """With every parameter moved away from its initial value: zeros hide mistakes."""
    module = form.make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def same(actual: Any, expected: Any) -> None:
    for index, (a, b) in enumerate(zip(*map(pytree.tree_leaves, (actual, expected)), strict=True)):
        assert_close_relative(a, b, 1e-5, f"result {index}")


def gradients(module: Any, arguments: tuple[Any, ...], names: list[str]) -> list[Tensor]:
    outputs = [y for y in pytree.tree_leaves(module(*arguments)) if y.is_floating_point()]
    parameters = dict(module.named_parameters())
    loss = torch.stack([y.square().sum() for y in outputs]).sum()
    return list(torch.autograd.grad(loss, [parameters[name] for name in names], materialize_grads=True))


@forms
def test_any_batch_and_length(name: str) -> None:
    """One token and one row too, with and without gradients."""
    form = FORMS[name]
    module = build(form)
    arguments = form.arguments(module, 3, 5)
    program = torch.export.export(module, arguments, dynamic_shapes=dynamic_of(form, module, arguments, "named"))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for B, S in ((3, 5), (1, 1), (4, 1), (1, 9)):
        arguments = form.arguments(module, B, S)
        actual, expected = loaded(*arguments), module(*arguments)
        assert type(actual[1]) is type(expected[1])
        same(actual, expected)
    if not (isinstance(module, models.xLSTMLarge) and module.config.mode == "inference"):
        names = [key for key, _ in module.named_parameters()]
        same(gradients(loaded, arguments, names), gradients(module, arguments, names))


@pytest.mark.parametrize("name", ["LSTM", "step of a stack"])
def test_sizes_found_by_torch(name: str) -> None:
    """Dim.AUTO, and tracing by Dynamo."""
    form = FORMS[name]
    module = build(form)
    arguments = form.arguments(module, 3, 5)
    dynamic = dynamic_of(form, module, arguments, "auto")
    program = torch.export.export(module, arguments, dynamic_shapes=dynamic, strict=True)
    for B, S in ((3, 5), (2, 9)):
        arguments = form.arguments(module, B, S)
        same(program.module()(*arguments), module(*arguments))


def dynamic_of(form: Form, module: Any, arguments: tuple[Any, ...], how: str) -> Any:
    """torch wants the shapes of *arguments in one tuple."""
    dynamic = form.dynamic(arguments, how)
    return (dynamic,) if isinstance(module, Step) else dynamic


@pytest.mark.parametrize("cls", [xnn.LSTM, xnn.mLSTM])
def test_packed_rows_are_refused(cls: Any) -> None:
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    with pytest.raises(Exception, match="torch.export does not trace a PackedSequence.*: export with padded rows"):
        torch.export.export(cls(4, 8), (packed,), strict=False)


AHEAD = re.compile(r"^```py\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler to build a package")
def test_ahead_of_time(tmp_path: Path) -> None:
    """The two programs of docs/migrate.md: the second one finds no compiler, and says so without this library."""
    building, serving = AHEAD.findall((ROOT / "docs" / "migrate.md").read_text())

    def run(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "program.py"
        file.write_text(source)
        every = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run([sys.executable, str(file)], cwd=tmp_path, env=every, capture_output=True, text=True)

    built = run(building, PATH=os.environ["PATH"])
    assert built.returncode == 0, built.stderr
    (tmp_path / "empty").mkdir()
    served = run(serving, PATH=str(tmp_path / "empty"))
    assert served.returncode == 0, served.stderr
    alone = run(serving.replace("import xlstm_cuda", "pass"), PATH=str(tmp_path / "empty"))
    assert alone.returncode and "Could not find schema for xlstm_cuda::" in alone.stderr
