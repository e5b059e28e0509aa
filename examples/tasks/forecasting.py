"""Forecasting: one model for several real series gives quantiles of every value of the horizon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from .forecast_measures import COVERAGE, MASE, MEDIAN, QUANTILES, WQL, measures, pinball, seasonal_naive
from .models import standard
from .series_data import from_csv, from_statsmodels
from .task import Models, Options, Results, Task, Verdict, fingerprint, option

OURS, LSTM, NAIVE = "xLSTM[1:1]", "LSTM", "seasonal naive"
LSTM_RATE = 3.0  # times --lr: its best rate is higher
PANELS = 4  # of the plot, one a series


@dataclass(frozen=True)
class ForecastingOptions(Options):
    steps: int = option(400, "training steps of each model")
    batch_size: int = option(32, "windows in a batch")
    lr: float = option(3e-3, "peak learning rate, of the LSTM three times as much")
    heads: int = option(2, "heads of each block")
    context: int = option(72, "values that a forecast is made from")
    horizon: int = option(24, "values that are forecast")
    csv: tuple[str, ...] = option(
        (),
        "files with a line of column names, then rows in the order of time; every column of numbers is a series",
        str,
    )
    season: int = option(12, "values in a season of the --csv series")


class Forecasting(Task):
    name = "forecasting"
    title = "Forecasting of real series"
    claim = (
        "The xLSTM paper has no forecasts. Later work claims that xLSTM is good at them. TiRex (arXiv 2505.23719) "
        "names its state tracking, held to be critical for long horizons. xLSTMTime (arXiv 2407.10240) names its "
        "exponential gates and larger memory. In small: the error of xLSTM[1:1] is below that of the seasonal-naive "
        "forecast and not above that of an LSTM of the same size."
    )
    setting = (
        "One model for four series of statsmodels, three monthly and one yearly, or for those of CSV files. It reads a "
        "context, less its mean and divided by its standard deviation. At the last value it gives five quantiles of "
        "every value of the horizon, all at once. They are added to the seasonal-naive forecast. Models that had to "
        "find the seasons themselves were tried first: their errors were above the seasonal-naive ones. In training "
        "the windows of a series are mixed in pairs, as Chronos (arXiv 2403.07815) mixes series. The last fifth of "
        "every series is held out. It is forecast from each of its points that leaves a whole horizon. Learning rates, "
        "steps and mixing were chosen on the last fifth of the rest. MASE: mean absolute error of the median over the "
        "mean change from season to season. WQL: weighted quantile loss. Both, and the coverage, are means of the "
        "series. With so few values a small difference between two models is a matter of the seed."
    )
    defaults: ClassVar[Options] = ForecastingOptions()
    full: ClassVar[Options] = replace(ForecastingOptions(), steps=3000, batch_size=256, dim=64, blocks=4, lr=1e-3)
    options: ForecastingOptions

    def __init__(self, options: ForecastingOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        context, horizon = options.context, options.horizon
        if options.csv:
            self.series = from_csv(map(Path, options.csv), options.season, context, horizon)
        else:
            self.series = from_statsmodels(context, horizon)
        self.seasons = torch.tensor([one.season for one in self.series])
        self.least_scales = torch.tensor([0.1 * one.naive_error for one in self.series], dtype=torch.float64)
        self.train_windows = [windows(one.values[: one.train], context + horizon) for one in self.series]
        # Contexts may reach back into the training part, which is known when a forecast is made; targets do not.
        self.test_windows = [windows(one.values[one.train - context :], context + horizon) for one in self.series]

    def data(self) -> dict[str, Any]:
        return {one.name: {"values": len(one.values), "sha256": fingerprint(one.values)} for one in self.series}

    def models(self) -> Models:
        outputs = self.options.horizon * len(QUANTILES)
        return standard(self.options, 1, outputs, ("1:1", "0:1", "1:0"), features=True)

    def lr(self, name: str) -> float:
        return self.options.lr * (LSTM_RATE if name == LSTM else 1.0)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        contexts, targets, seasons = (part.to(self.device) for part in self.batch(self.rng(0, step)))
        return pinball(self._quantiles(model, contexts, seasons), targets).mean()

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled contexts (B, context) and targets (B, horizon), float32, and the seasons (B,) of their series.

        Every window is a mixture of two training windows of one series; every series is as frequent as any other.
        """
        count, context = self.options.batch_size, self.options.context
        chosen = torch.randint(len(self.series), (count,), generator=rng).repeat(2)
        places = torch.rand(2 * count, generator=rng).tolist()
        choices = [self.train_windows[index] for index in chosen.tolist()]
        drawn = torch.stack([choice[int(place * len(choice))] for choice, place in zip(choices, places, strict=True)])
        mean, scale = location_and_scale(drawn[:, :context], self.least_scales[chosen])
        one, other = ((drawn - mean) / scale).chunk(2)
        share = 0.5 * torch.rand(count, 1, generator=rng)
        mixed = (1 - share) * one + share * other
        mean, scale = location_and_scale(mixed[:, :context], torch.tensor(0.1))
        mixed = ((mixed - mean) / scale).float()
        return mixed[:, :context], mixed[:, context:], self.seasons[chosen[:count]]

    @staticmethod
    def _quantiles(model: nn.Module, contexts: Tensor, seasons: Tensor) -> Tensor:
        """(B, horizon, Q), scaled, of scaled contexts (B, context): what the model adds to the seasonal-naive ones."""
        outputs: Tensor = model(contexts[:, :, None])[:, -1].unflatten(1, (-1, len(QUANTILES)))
        return seasonal_naive(contexts, seasons, outputs.shape[1]) + outputs

    @torch.no_grad()
    def forecast(self, model: nn.Module, index: int, contexts: Tensor) -> Tensor:
        """Quantiles (N, horizon, Q) in rising order, of contexts (N, context) of series `index`, in its own unit."""
        mean, scale = location_and_scale(contexts, self.least_scales[index])
        scaled = ((contexts - mean) / scale).float().to(self.device).split(512)
        season = self.seasons[index].to(self.device)
        quantiles = torch.cat([self._quantiles(model, part, season.expand(len(part))) for part in scaled]).cpu()
        return mean[:, :, None] + scale[:, :, None] * quantiles.double().sort(-1).values

    def score(self, model: nn.Module) -> float:
        """By how much the error is below the seasonal-naive one. It is shown, nothing is chosen by it."""
        error: float = self.results(model)[MASE]
        naive: float = self.baselines()[NAIVE][MASE]
        return 1 - error / naive if naive else -error  # 0 where all series repeat themselves

    def results(self, model: nn.Module) -> Results:
        context = self.options.context
        return self._measured([self.forecast(model, i, part[:, :context]) for i, part in enumerate(self.test_windows)])

    def baselines(self) -> dict[str, Results]:
        context, horizon = self.options.context, self.options.horizon
        parts = zip(self.seasons, self.test_windows, strict=True)
        found = self._measured([seasonal_naive(part[:, :context], s.expand(len(part)), horizon) for s, part in parts])
        del found[COVERAGE]  # a line has no band
        return {NAIVE: found}

    def _measured(self, forecasts: list[Tensor]) -> Results:
        """Of quantiles (N, horizon, Q) for all held-out windows of each series; shown: those of the last windows."""
        by_series = {
            one.name: measures(forecast, part[:, self.options.context :], one.naive_error)
            for one, forecast, part in zip(self.series, forecasts, self.test_windows, strict=True)
        }
        means = {key: sum(found[key] for found in by_series.values()) / len(by_series) for key in (MASE, WQL, COVERAGE)}
        shown = [
            [[float(f"{q:.6g}") for q in step] for step in forecast[-1].tolist()] for forecast in forecasts[:PANELS]
        ]
        return {**means, "by_series": by_series, "shown": shown}

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        error = {name: result[MASE] for name, result in results.items()}
        holds = error[OURS] < error[NAIVE] and error[OURS] <= error[LSTM]
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in error.items())
        ours, lstm, naive = ([s[MASE] for s in results[name]["by_series"].values()] for name in (OURS, LSTM, NAIVE))
        below = sum(a < b for a, b in zip(ours, naive, strict=True))
        level = sum(a <= b for a, b in zip(ours, lstm, strict=True))
        return Verdict(
            holds,
            f"MASE: {numbers}; of {len(ours)} series {OURS} is below the seasonal-naive forecast on {below} and not "
            f"above the LSTM on {level}",
        )

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        """The last held-out window of some series."""
        axes.axis("off")
        for index, one in enumerate(self.series[:PANELS]):
            panel = axes.inset_axes((0.52 * (index % 2), 0.15 + 0.47 * (1 - index // 2), 0.46, 0.33))
            self._plot_window(panel, index, results)
            panel.set_title(one.name[-40:], fontsize="small")
            panel.tick_params(labelsize="small")
        axes.legend(*panel.get_legend_handles_labels(), loc="lower center", ncols=5, fontsize="small")

    def _plot_window(self, panel: Axes, index: int, results: Mapping[str, Results]) -> None:
        horizon = self.options.horizon
        truth = self.series[index].values[-3 * horizon :].tolist()
        panel.plot(range(horizon - len(truth), horizon), truth, color="black", linewidth=1, label="truth")
        shown: dict[str, Any] = {name: torch.tensor(result["shown"][index]) for name, result in results.items()}
        steps = range(horizon)
        panel.fill_between(steps, shown[OURS][:, 0], shown[OURS][:, -1], alpha=0.25, label=f"{OURS}, 80 %")
        panel.plot(steps, shown[OURS][:, MEDIAN], label=OURS)
        panel.plot(steps, shown[LSTM][:, MEDIAN], linewidth=0.8, label=LSTM)
        panel.plot(steps, shown[NAIVE][:, MEDIAN], linewidth=0.8, linestyle=":", color="grey", label=NAIVE)


def windows(values: Tensor, length: int) -> Tensor:
    """All runs of `length` neighbours in values (N,): a view (N - length + 1, length)."""
    return values.unfold(0, length, 1)


def location_and_scale(contexts: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, 1) of contexts (N, S); the latter is at least `least` (N,) or ().

    The bound is for contexts that are (almost) constant.
    """
    mean, deviation = contexts.mean(1, keepdim=True), contexts.std(1, correction=0, keepdim=True)
    return mean, torch.maximum(deviation, least[..., None].to(deviation))
