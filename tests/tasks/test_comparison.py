"""The comparison with linear recurrent networks: their layers against their equations, labels, runs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples.tasks import linear_rnns
from examples.tasks.__main__ import main
from examples.tasks.comparison import S3, LongArithmetic, LongParity, Permutations
from examples.tasks.linear_rnns import GatedDeltaNet, Mamba2, decayed_attention, delta_rule
from examples.tasks.models import parameter_count
from examples.tasks.state_tracking import thinned
from xlstm_cuda.testing import assert_close_relative

TASKS = (LongParity, Permutations, LongArithmetic)
bound = 1e-10  # in float64

pytestmark = pytest.mark.usefixtures("fresh_seed")


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("seqlen", [1, linear_rnns.CHUNK - 1, 2 * linear_rnns.CHUNK + 5])
@pytest.mark.parametrize("shared", [False, True])
def test_decayed_attention_is_its_recurrence(seqlen: int, shared: bool) -> None:
    B, H, N, P = 2, 3, 4, 5
    q, k = (draw(B, seqlen, 1 if shared else H, N) for _ in range(2))
    v, decay = draw(B, seqlen, H, P), draw(B, seqlen, H)
    inputs = (q, k, v, decay)
    h, outputs = torch.zeros(B, H, P, N, dtype=torch.float64), []
    for t in range(seqlen):
        h = h * torch.exp(F.logsigmoid(decay[:, t]))[..., None, None] + v[:, t, :, :, None] * k[:, t, :, None]
        outputs.append((h * q[:, t, :, None]).sum(-1))
    expected, found = torch.stack(outputs, 1), decayed_attention(q, k, v, F.logsigmoid(decay))
    assert_close_relative(found, expected, bound)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, e in zip(torch.autograd.grad((found * weights).sum(), inputs), wanted, strict=True):
        assert_close_relative(a, e, bound)


def test_delta_rule_is_its_equation() -> None:
    """By matrices, as the paper writes it."""
    B, S, H, N, P = 2, 9, 3, 4, 5
    q, v, decay, rate = draw(B, S, H, N), draw(B, S, H, P), draw(B, S, H), draw(B, S, H)
    k = F.normalize(draw(B, S, H, N), dim=-1)
    state, outputs = torch.zeros(B, H, P, N, dtype=torch.float64), []
    for t in range(S):
        kk = k[:, t, :, :, None] * k[:, t, :, None]
        b = rate[:, t, :, None, None]
        state = decay[:, t].exp()[..., None, None] * state @ (torch.eye(N).double() - b * kk)
        state = state + b * v[:, t, :, :, None] * k[:, t, :, None]
        outputs.append((state @ q[:, t, :, :, None]).squeeze(-1))
    assert_close_relative(delta_rule(q, k, v, decay, rate), torch.stack(outputs, 1), bound)


@pytest.mark.parametrize("negative", [False, True])
def test_eigenvalues(negative: bool) -> None:
    """A token of large rate negates what the state holds along its key, where that is allowed; else it erases it."""
    layer = GatedDeltaNet(8, 2, negative)
    assert layer.largest == (2.0 if negative else 1.0)
    k = F.normalize(draw(1, 2, 1, 4)[:, :1], dim=-1).expand(1, 2, 1, 4)
    v = torch.stack([torch.ones(5), torch.zeros(5)]).double()[None, :, None]
    o = delta_rule(k, k, v, torch.zeros(1, 2, 1).double(), torch.tensor([[[1.0], [layer.largest]]]).double())
    assert_close_relative(o[:, 1], (1 - layer.largest) * o[:, 0], bound)


@pytest.mark.parametrize("layer", [Mamba2(8, 2), GatedDeltaNet(8, 2), GatedDeltaNet(8, 2, True)], ids=str)
def test_layers_do_not_look_ahead(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 70, 8)
    y = layer(x)
    x[:, 40:] += 1
    assert torch.allclose(layer(x)[:, :40], y[:, :40], atol=1e-5) and not torch.allclose(layer(x)[:, 40], y[:, 40])


def moved(things: str, permutation: int) -> str:
    """Each thing to the place that the permutation gives for its own."""
    return "".join(thing for _, thing in sorted(zip(S3[permutation], things, strict=True)))


def test_permutations_are_products() -> None:
    """Of each prefix, computed on three things themselves."""
    task = Permutations(replace(Permutations.defaults, test_length=50), 0, torch.device("cpu"))
    ids, labels = task.sequences(20, 30, torch.Generator().manual_seed(torch.initial_seed() % 2**63))
    for row, answers in zip(ids.tolist(), labels.tolist(), strict=True):
        things = "abc"
        for token, answer in zip(row, answers, strict=True):
            things = moved(things, token)
            assert things == moved("abc", answer)
    assert {tuple(S3[a][S3[b][i]] for i in range(3)) for a, b in itertools.product(range(6), repeat=2)} == set(S3)


@pytest.mark.parametrize("kind", TASKS)
def test_all_models_are_of_equal_size(kind: type[LongParity]) -> None:
    task = kind(kind.defaults, 0, torch.device("cpu"))
    sizes = {name: parameter_count(build()) for name, build in task.models().items()}
    first = sizes["xLSTM[0:1]"]
    assert all(abs(size - first) < 0.15 * first for size in sizes.values()), sizes
    assert list(sizes)[:4] == ["xLSTM[0:1]", "xLSTM[1:1]", "xLSTM[1:0]", "LSTM"]


@pytest.mark.parametrize("kind", TASKS)
def test_run(kind: type[LongParity], tmp_path: Path) -> None:
    sizes = ["--steps", "2", "--batch-size", "2", "--dim", "8", "--max-length", "5", "--test-length", "70"]
    assert main([kind.name, *sizes, "--test-sequences", "4", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{kind.name}-seed0.json").read_text())
    assert list(found["results"])[4:] == list(linear_rnns.BACKBONES)
    assert all(0 <= result["accuracy 6-70"] <= 1 for result in found["results"].values())


def test_curves_of_long_sequences_are_thinned() -> None:
    whole = [[t, 0.5] for t in range(1, 2049)]
    found = [length for length, _ in thinned(whole)]
    assert found == [*range(1, 257), *range(257, 2049, 16)] and thinned(whole[:256]) == whole[:256]
