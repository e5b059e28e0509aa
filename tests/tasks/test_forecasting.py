"""The forecasting experiment: series and their split, CSV files good and bad, measures, what a model may see."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import Tensor, nn

from examples.lm.data import DataError
from examples.tasks.__main__ import main
from examples.tasks.forecast_measures import COVERAGE, QUANTILES, measures, pinball, seasonal_naive
from examples.tasks.forecasting import NAIVE, Forecasting, ForecastingOptions, location_and_scale
from examples.tasks.series_data import read_csv, split

CONTEXT, HORIZON, SEASON = 8, 3, 4
SIZES = ["--context", str(CONTEXT), "--horizon", str(HORIZON), "--season", str(SEASON)]
TINY = [*SIZES, "--steps", "2", "--batch-size", "3", "--dim", "8"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(text: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


def column(values: object, header: str = "sales") -> str:
    return "\n".join([header, *map(str, values)]) + "\n"  # type: ignore[call-overload]


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task_of(path: Path, **options: object) -> Forecasting:
    chosen = {"context": CONTEXT, "horizon": HORIZON, "season": SEASON, "batch_size": 16, "dim": 8, **options}
    return Forecasting(ForecastingOptions(csv=(str(path),), **chosen), 0, torch.device("cpu"))  # type: ignore[arg-type]


class Last(nn.Module):
    """Stands in for a trained model: adds the scaled last value, and to each quantile its level."""

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.tensor(QUANTILES).flip(0).repeat(HORIZON)  # out of order: forecasts are sorted
        return x + levels


def test_pinball_is_its_definition(fresh_seed: int) -> None:
    rng = random.Random(fresh_seed)
    truth = rng.gauss(0, 1)
    quantiles = [rng.gauss(0, 1) for _ in QUANTILES]
    expected = [
        level * (truth - q) if truth > q else (1 - level) * (q - truth)
        for level, q in zip(QUANTILES, quantiles, strict=True)
    ]
    found = pinball(torch.tensor(quantiles, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected)


def test_median_of_a_sample_has_the_least_loss_at_one_half(fresh_seed: int) -> None:
    sample = noise(201, fresh_seed)
    candidates = sample.sort().values
    losses = pinball(candidates[:, None, None].expand(-1, 201, len(QUANTILES)), sample.expand(201, -1)).mean(1)
    shares = losses.argmin(0) / 200
    assert shares.tolist() == pytest.approx(QUANTILES, abs=0.01)


def test_measures_are_their_definitions(fresh_seed: int) -> None:
    quantiles = noise(6 * HORIZON * 5, fresh_seed).view(6, HORIZON, 5).sort(-1).values
    truth = noise(6 * HORIZON, fresh_seed + 1).view(6, HORIZON)
    error = inside = loss = size = 0.0
    for n in range(6):
        for t in range(HORIZON):
            y, q = truth[n, t].item(), quantiles[n, t].tolist()
            error += abs(y - q[2]) / (6 * HORIZON)
            inside += (q[0] <= y <= q[4]) / (6 * HORIZON)
            size += abs(y)
            loss += sum(2 * max(a * (y - v), (a - 1) * (y - v)) for a, v in zip(QUANTILES, q, strict=True)) / 5
    expected = {"MASE": error / 0.7, "WQL": loss / size, COVERAGE: inside}
    assert measures(quantiles, truth, 0.7) == pytest.approx(expected)


@pytest.mark.parametrize("horizon", [2, 4, 11])
def test_seasonal_naive_goes_on_with_the_period_of_each_row(horizon: int) -> None:
    seasons = torch.tensor([4, 1, 7])
    values = torch.arange(30) % seasons[:, None] * 1.5
    found = seasonal_naive(values[:, :10], seasons, horizon)
    assert torch.equal(found, values[:, 10 : 10 + horizon, None].expand(3, horizon, len(QUANTILES)))


def test_scale_of_constant_contexts_is_bounded() -> None:
    mean, scale = location_and_scale(torch.tensor([[3.0] * 5, [1, 2, 3, 4, 5]]), torch.tensor([0.25, 0.25]))
    assert mean.tolist() == [[3], [3]] and scale.flatten().tolist() == pytest.approx([0.25, math.sqrt(2)])


@pytest.mark.parametrize("count", [14, 40, 101])
def test_last_fifth_is_held_out_and_every_value_of_it_forecast(count: int, write: Callable[..., Path]) -> None:
    values = noise(count, count)
    task = task_of(write(column(values.tolist())))
    series, (tests,), (trains,) = task.series[0], task.test_windows, task.train_windows
    held_out = max(HORIZON, count // 5)
    assert series.train == count - held_out and torch.equal(series.values, values)
    targets = tests[:, CONTEXT:]
    assert torch.equal(targets[0, 0], values[-held_out]) and torch.equal(targets[-1, -1], values[-1])
    assert len(tests) == held_out - HORIZON + 1
    assert torch.equal(trains[-1], values[series.train - CONTEXT - HORIZON : series.train])
    change = [abs(values[t] - values[t - SEASON]) for t in range(SEASON, series.train)]
    assert series.naive_error == pytest.approx(float(sum(change)) / len(change))


def test_training_depends_on_the_training_part_alone(write: Callable[..., Path], fresh_seed: int) -> None:
    values = noise(60, fresh_seed)
    later, earlier = values.clone(), values.clone()
    later[48:] = 100 * noise(12, fresh_seed + 1)
    earlier[:48] += noise(48, fresh_seed + 2)
    plain, changed, other = (task_of(write(column(v.tolist()))) for v in (values, later, earlier))
    for step in range(3):
        for one, two in zip(plain.batch(plain.rng(0, step)), changed.batch(changed.rng(0, step)), strict=True):
            assert torch.equal(one, two)
        assert not torch.equal(plain.batch(plain.rng(0, step))[0], other.batch(other.rng(0, step))[0])
    assert changed.series[0].naive_error == plain.series[0].naive_error
    assert torch.equal(changed.least_scales, plain.least_scales)


def test_forecasts_do_not_see_what_they_forecast(write: Callable[..., Path], fresh_seed: int) -> None:
    values = noise(60, fresh_seed)
    hidden, seen = values.clone(), values.clone()
    hidden[-HORIZON:] += 1000  # so far above every forecast that all of its errors grow
    seen[-HORIZON - 1] += 1
    model = Last()
    plain, same, other = (task_of(write(column(v.tolist()))) for v in (values, hidden, seen))
    assert plain.results(model)["shown"] == same.results(model)["shown"] != other.results(model)["shown"]
    assert plain.baselines()[NAIVE]["shown"] == same.baselines()[NAIVE]["shown"]
    assert plain.results(model)["MASE"] < same.results(model)["MASE"]


def test_forecasts_are_in_the_unit_of_the_series(write: Callable[..., Path], fresh_seed: int) -> None:
    contexts = 50 + 7 * noise(5 * CONTEXT, fresh_seed).view(5, CONTEXT)
    task = task_of(write(column(noise(60, fresh_seed).tolist())))
    found = task.forecast(Last(), 0, contexts)
    naive = contexts[:, CONTEXT - SEASON :][:, :HORIZON]
    added = contexts[:, -1:] - contexts.mean(1, keepdim=True)
    added = added + contexts.std(1, correction=0, keepdim=True) * torch.tensor(QUANTILES)
    torch.testing.assert_close(found, naive[:, :, None] + added[:, None], rtol=1e-5, atol=1e-5)


def test_batches_are_mixtures_of_scaled_windows(write: Callable[..., Path]) -> None:
    """Windows of a straight line are all the same when scaled, and so are their mixtures: the line goes on."""
    contexts, targets, seasons = task_of(write(column(range(60)))).batch(torch.Generator().manual_seed(0))
    line = torch.arange(CONTEXT + HORIZON, dtype=torch.float64)
    line = ((line - line[:CONTEXT].mean()) / line[:CONTEXT].std(correction=0)).float()
    assert contexts.shape == (16, CONTEXT) and targets.shape == (16, HORIZON) and seasons.tolist() == [SEASON] * 16
    torch.testing.assert_close(torch.cat([contexts, targets], 1), line.expand(16, -1))


def test_batches_draw_every_series_as_often(write: Callable[..., Path]) -> None:
    """Two series, one much shorter, whose scaled windows are a rising and a falling line."""
    rising, falling = write(column(range(400)), "a.csv"), write(column(range(30, 0, -1)), "b.csv")
    options = ForecastingOptions(
        csv=(str(rising), str(falling)), context=CONTEXT, horizon=HORIZON, season=SEASON, batch_size=2000
    )
    contexts, _, _ = Forecasting(options, 0, torch.device("cpu")).batch(torch.Generator().manual_seed(0))
    assert 0.45 < (contexts[:, -1] > contexts[:, 0]).float().mean() < 0.55
    assert contexts.diff(dim=1).abs().min() > 0.1  # a mixture of the two would be flatter


@pytest.mark.parametrize("dates", ["", "date", "when"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_is_read_back(dates: str, end: str, write: Callable[..., Path], fresh_seed: int) -> None:
    a, b = noise(20, fresh_seed).tolist(), noise(20, fresh_seed + 1).tolist()
    rows = [f"{2000 + k // 12}-{k % 12 + 1:02}, {a[k]!r} ,{b[k]!r}" for k in range(20)]
    text = "\ufeff" + end.join([f'{dates},"sales, north",south', *rows, "", ""])
    assert read_csv(write(text)) == {"sales, north": a, "south": b}


def test_first_column_of_numbers_is_a_series_unless_its_name_is_of_dates(write: Callable[..., Path]) -> None:
    assert read_csv(write("a,b\n1,2\n3,4\n")) == {"a": [1, 3], "b": [2, 4]}
    assert read_csv(write("Year,b\n1700,2\n1701,4\n")) == {"b": [2, 4]}


RISING = range(20)
BAD = {
    "empty": ("", "data.csv is empty: a line of column names is expected"),
    "blank": ("\n\n", "data.csv is empty"),
    "header": ("date,sales\n", "data.csv has a line of column names but no rows"),
    "no header": (column(RISING, "0"), "data.csv begins with numbers"),
    "text": (column([*RISING, "many", 3]), "data.csv, row 22, column 'sales': 'many' is not a number"),
    "empty cell": ("date,a,b\n2001,1,2\n2002,,3\n", "data.csv, row 3, column 'a': there is no value"),
    "blank line": (column([1, 2, "", 3]), "data.csv, row 4, column 'sales': there is no value"),
    "NaN": (column([1, "NaN", 3]), "data.csv, row 3, column 'sales': there is no value"),
    "infinite": (column([1, 2, "-inf"]), "data.csv, row 4, column 'sales': -inf is infinite or too large"),
    "too large": (column([1, "1e300"]), "data.csv, row 3, column 'sales': 1e300 is infinite or too large"),
    "short row": ("a,b\n1,2\n3\n", "data.csv, row 3 has 1 cells, the line of column names has 2"),
    "long row": ("a,b\n1,2,3\n", "data.csv, row 2 has 3 cells, the line of column names has 2"),
    "semicolons": ("a;b\n1;2\n3;4\n", "data.csv has no column of numbers"),
    "only dates": ("date\n2001\n2002\n", "data.csv has no column of numbers"),
    "same name": ("date,a,a\n2001,1,2\n", "data.csv has two columns with the name 'a'"),
    "order": ("date,a\n2001-02,1\n2001-01,2\n", "row 3: the date 2001-01 does not come after 2001-02"),
    "quotes": ('a,b\n1,"2\n', "data.csv is not a CSV file"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "data.csv is not UTF-8 text"),
    "Latin-1": ("größe\n1\n".encode("latin-1"), "data.csv is not UTF-8 text"),
    "binary": (b"a,b\n1,\x00\n", "data.csv"),
    "short": (
        column(range(13)),
        "data.csv: sales has 13 values; --context 8 and --horizon 3 need 11 before the last 3",
    ),
    "constant": (column([5] * 30), "data.csv: sales is constant before its held-out part"),
    "periodic": (column([0.1, 0.2, 0.3, 0.4] * 10), "data.csv: sales is the same in every season of 4 values"),
    "decimal comma": ('a,b\n"1,5",2\n"1,6",3\n', "data.csv, row 2, column 'a': '1,5' is not a number"),
    "empty first cell": ("a,b\n,2\n,3\n", "data.csv, row 2, column 'a': there is no value"),
    "order with slashes": ("date,a\n2002/01,1\n2001/01,2\n", "row 3: the date 2001/01 does not come after 2002/01"),
    "zero": (column([*RISING, *[0] * 10]), "data.csv: sales is zero in its held-out part"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_sentence(
    name: str, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, expected = BAD[name]
    refused(["--csv", str(write(text)), *TINY], expected, tmp_path, capsys)


def refused(options: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecasting", *options, "--out", str(folder / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not (folder / "out").exists()


def test_files_that_cannot_be_read(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(write(column(RISING)))
    refused(["--csv", good, str(tmp_path / "none.csv"), *TINY], "none.csv: No such file or directory", tmp_path, capsys)
    refused(["--csv", str(tmp_path), *TINY], f"cannot read {tmp_path}: Is a directory", tmp_path, capsys)
    refused(["--csv", good, good, *TINY], "data.csv is given twice", tmp_path, capsys)


def test_season_longer_than_the_context(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--csv", str(write(column(RISING))), *TINY, "--season", "9"]
    refused(options, "a season of", tmp_path, capsys)


def test_series_just_long_enough() -> None:
    values = noise(14, 0)
    assert split("x", values, SEASON, CONTEXT, HORIZON).train == CONTEXT + HORIZON
    with pytest.raises(DataError, match="x has 13 values"):
        split("x", values[:13], SEASON, CONTEXT, HORIZON)


def test_series_without_a_seasonal_naive_error(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write(column([*RISING, *[5] * 20]))
    assert main(["forecasting", "--csv", str(file), *TINY, "--out", str(tmp_path)]) == 0
    assert results_of(tmp_path)[NAIVE]["MASE"] == 0


def results_of(folder: Path) -> dict[str, dict[str, object]]:
    found = json.loads((folder / "forecasting-seed0.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    picture = matplotlib.image.imread(folder / "forecasting-seed0.png")
    assert picture.shape[0] > 300 and picture.std() > 0.05
    return found["results"]


def test_own_files_through_the_command_line(write: Callable[..., Path], tmp_path: Path) -> None:
    """Five series, one of them flat for longer than a context."""
    flat = [0] * 15 + list(range(25)) + [3] * 20
    other = [[round(math.sin(k * period) * 9 + k / 5, 3) for k in range(60)] for period in (0.3, 0.5, 1.6, 2.0)]
    rows = [",".join(map(str, cells)) for cells in zip(flat, *other, strict=True)]
    options = ["--csv", str(write("\n".join(["a,b,c,d,e", *rows]))), *TINY, "--out", str(tmp_path)]
    assert main(["forecasting", *options]) == 0
    results = results_of(tmp_path)
    assert len(results) == 6 and COVERAGE not in results[NAIVE]
    for result in results.values():
        by_series = result["by_series"]
        assert list(by_series) == [f"{tmp_path / 'data.csv'}: {name}" for name in "abcde"]
        assert result["MASE"] == pytest.approx(sum(found["MASE"] for found in by_series.values()) / 5)
    before = (tmp_path / "forecasting-seed0.json").read_text()
    assert main(["forecasting", *options, "--resume"]) == 0
    assert results_of(tmp_path) == json.loads(before)["results"]


def test_series_of_statsmodels_through_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("statsmodels")
    sizes = ["--context", "24", "--horizon", "6", "--steps", "2", "--batch-size", "3", "--dim", "8"]
    assert main(["forecasting", *sizes, "--out", str(tmp_path)]) == 0
    for result in results_of(tmp_path).values():
        assert list(result["by_series"]) == ["co2", "elnino", "elec_equip", "sunspots"]
