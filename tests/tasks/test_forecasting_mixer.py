"""The mixer over series: what it starts from, what it may see, a tiny run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.tasks.__main__ import main
from examples.tasks.forecasting_mixer import (
    ERROR,
    LINEAR,
    NAIVE,
    OURS,
    ForecastingMixer,
    LinearForecast,
    Mixer,
    MixerOptions,
    load_quarters,
)

macrodata = pytest.importorskip("statsmodels.datasets.macrodata")
TINY = ["forecasting-mixer", "--steps", "2", "--batch-size", "3", "--dim", "8", "--out"]


def made(**options: object) -> ForecastingMixer:
    return ForecastingMixer(replace(MixerOptions(), **options), 0, torch.device("cpu"))


def test_windows_follow_each_other_and_targets_are_held_out() -> None:
    task = made(context=10, horizon=4)
    train = len(task.train_windows) + 14 - 1
    assert train + int(train * 0.25) >= task.values.shape[1] - 1 > train
    assert torch.equal(task.train_windows[3], task.values[:, 3:17])
    assert torch.equal(task.test_windows[0][:, 10:], task.values[:, train : train + 4])
    assert torch.equal(task.test_windows[-1][:, -1], task.values[:, -1])


def test_series_are_scaled_by_what_is_trained_on() -> None:
    task = made()
    train = len(task.train_windows) + 32 - 1
    part = task.values[:, :train]
    assert torch.allclose(part.mean(1), torch.zeros(12), atol=1e-4)
    assert torch.allclose(part.std(1), torch.ones(12), atol=1e-4)
    names, values = load_quarters()
    table = macrodata.load_pandas().data
    assert values[5, names.index("realgdp")].exp().item() == pytest.approx(table["realgdp"][5])
    assert values[5, names.index("unemp")].item() == table["unemp"][5]


def test_it_starts_from_the_last_value(fresh_seed: int) -> None:
    x = torch.randn(2, 5, 6)
    mixer = Mixer(6, 3, 8, nn.Identity())
    for model in (LinearForecast(6, 3), mixer):
        assert torch.equal(model(x), x[..., -1:].expand(2, 5, 3))
    nn.init.normal_(mixer.forecast.map.weight)
    shifted = mixer(x + 7)
    assert torch.allclose(shifted, mixer(x) + 7, atol=1e-4), "a level changes nothing else"


def test_views(fresh_seed: int) -> None:
    """Both views of the features, a learned token before them, go through one backbone over the series."""
    seen: list[torch.Tensor] = []

    class Backbone(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.cumsum(1)

    mixer = Mixer(6, 3, 4, Backbone())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += torch.randn(parameter.shape)
    x = torch.randn(2, 5, 6)
    y = mixer(x)
    first, second = seen
    assert first.shape == (2, 6, 4) and torch.equal(first[:, 1:], second[:, 1:].flip(-1))
    assert torch.equal(first[:, 0], mixer.first[0].expand(2, -1))
    both = torch.cat([first.cumsum(1)[:, 1:], second.cumsum(1)[:, 1:]], -1)
    assert torch.allclose(y, mixer.forecast(x) + mixer.views(both), atol=1e-5)


def test_verdict() -> None:
    task = made()
    by_series = dict.fromkeys(task.names, 0.5)
    results = {name: {ERROR: 0.7, "by_series": by_series} for name in (LINEAR, NAIVE, "LSTM mixer")}
    good = {OURS: {ERROR: 0.6, "by_series": by_series}, **results}
    assert task.verdict(good).holds
    for name in results:
        assert not task.verdict({**good, name: {ERROR: 0.5, "by_series": by_series}}).holds


def test_a_run(tmp_path: Path) -> None:
    assert main([*TINY, str(tmp_path)]) == 0
    found = json.loads((tmp_path / "forecasting-mixer-seed0.json").read_text())["results"]
    assert list(found) == [OURS, "xLSTM[1:0] mixer", "LSTM mixer", LINEAR, NAIVE]
    assert found[NAIVE][ERROR] == pytest.approx(1)
    assert (tmp_path / "forecasting-mixer-seed0.png").stat().st_size > 5000


def test_what_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, str(tmp_path), "--context", "300"]) == 2
    assert "--context 300 and --horizon 8 need more than 163 quarters" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "statsmodels.datasets", None)
    assert main([*TINY, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: the series need the package statsmodels")
