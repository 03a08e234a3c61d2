"""Forecasting: windows against a naive twin, nothing of the future in them, and the errors that files earn."""

from __future__ import annotations

import hashlib
import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.errors import BadInput, CorruptData, RnnbenchError
from rnnbench.spec import DataSpec
from rnnbench.tasks import forecast
from rnnbench.tasks.base import StoredSource
from rnnbench.tasks.forecast import Forecast, mackey_glass


def make(**values: Any) -> Forecast:
    return Forecast.parse(values, "task")


def write(path: Path, columns: dict[str, list[Any]], delimiter: str = ",") -> str:
    lines = [delimiter.join(columns), *(delimiter.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> dict[str, list[float]]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(5, 3, size=100).round(6).tolist() for name in ("a", "b", "y")}


@pytest.mark.parametrize(("window", "horizon"), [(1, 1), (5, 1), (4, 7)])
@pytest.mark.parametrize("columns", [["y"], ["a", "b"], ["b", "y", "a"]])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_windows_against_a_naive_twin(
    table: dict[str, list[float]], tmp_path: Path, window: int, horizon: int, columns: list[str], split: str
) -> None:
    task = make(
        file=write(tmp_path / "t.csv", table), columns=columns, target="y", window=window, horizon=horizon, train=0.6,
        valid=0.15,
    )  # fmt: skip
    first, last = {"train": (0, 60), "valid": (60, 75), "test": (75, 100)}[split]
    expected = []
    for i in range(first, last):
        read = range(i - horizon - window + 1, i - horizon + 1)
        if read[0] >= 0:
            expected.append((read, i))
    assert task.sizes()[split] == len(expected)

    def unit(name: str, row: int) -> float:
        past = table[name][:60]
        mean = sum(past) / 60
        return float((table[name][row] - mean) / (sum((v - mean) ** 2 for v in past) / 60) ** 0.5)

    batch = task.rows(split, np.arange(len(expected)), 1.0)  # type: ignore[arg-type]  # a split
    for b, (read, i) in enumerate(expected):
        for t, row in enumerate(read):
            assert batch.inputs[t, b].tolist() == pytest.approx([unit(name, row) for name in columns], rel=1e-12)
        assert batch.targets[b, 0] == pytest.approx(unit("y", i), rel=1e-12)


def test_the_future_leaves_no_trace(table: dict[str, list[float]], tmp_path: Path) -> None:
    """Changing every row of the later parts changes no training batch, and no test row any validation batch."""
    one = make(file=write(tmp_path / "one.csv", table), target="y", columns=["a", "y"], window=6, horizon=3)
    for end, splits in ((70, ["train"]), (85, ["train", "valid"])):
        changed = {name: column[:end] + [v * 7 + 1 for v in column[end:]] for name, column in table.items()}
        two = make(file=write(tmp_path / f"{end}.csv", changed), target="y", columns=["a", "y"], window=6, horizon=3)
        for split in splits:
            rows = np.arange(one.sizes()[split])
            assert one.rows(split, rows, 1.0).sha256() == two.rows(split, rows, 1.0).sha256()  # type: ignore[arg-type]
        rest = np.arange(one.sizes()["test"])
        assert one.rows("test", rest, 1.0).sha256() != two.rows("test", rest, 1.0).sha256()


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize(("horizon", "season"), [(1, 12), (5, 3), (6, 3), (1, 1)])
def test_baselines_against_a_naive_twin(
    table: dict[str, list[float]], tmp_path: Path, split: str, horizon: int, season: int
) -> None:
    task = make(file=write(tmp_path / "t.csv", table), target="y", window=4, horizon=horizon, season=season)
    source = task.open(0, 0, DataSpec(), 10)
    found = task.baselines(source, split)  # type: ignore[arg-type]  # valid or test
    start = {"valid": 70, "test": 85}[split]
    past = np.array(table["y"][:70])
    y = ((np.array(table["y"]) - past.mean()) / past.std()).tolist()
    back = season
    while back < horizon:  # the value of one season ago may not be known yet
        back += season
    assert isinstance(source, StoredSource)
    rows = [start + int(row) for row in source.evaluated(split)]  # type: ignore[arg-type]  # valid or test
    assert len(rows) == 10
    for name, guess in (
        ("persistence", [y[i - horizon] for i in rows]),
        ("seasonal_naive", [y[i - back] for i in rows]),
        ("train_mean", [0.0] * 10),
    ):
        errors = [y[i] - g for i, g in zip(rows, guess, strict=True)]
        assert found[name].value == pytest.approx(sum(e * e for e in errors) / 10, rel=1e-12)
        assert found[f"{name}_mae"].value == pytest.approx(sum(abs(e) for e in errors) / 10, rel=1e-12)
    # persistence is what a network that repeats its last input would score
    task_batch = source.evaluation(split)  # type: ignore[arg-type]  # valid or test
    error = task_batch.targets[:, 0] - task_batch.inputs[-1, :, 0]
    assert found["persistence"].value == pytest.approx(float(np.mean(error**2)), rel=1e-12)


def test_no_season_no_seasonal_baseline(table: dict[str, list[float]], tmp_path: Path) -> None:
    task = make(file=write(tmp_path / "t.csv", table), target="y", window=4)
    assert "seasonal_naive" not in task.baselines(task.open(0, 0, DataSpec(), 10))
    far = make(file=write(tmp_path / "t.csv", table), target="y", window=4, season=90)
    assert "seasonal_naive" not in far.baselines(far.open(0, 0, DataSpec(), 10))


def test_columns_by_default(table: dict[str, list[float]], tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", table)
    whole = make(file=file, target="y", window=3).rows("train", np.arange(4), 1.0)
    assert whole.sha256() == make(file=file, columns=["y"], window=3).rows("train", np.arange(4), 1.0).sha256()
    only = write(tmp_path / "one.csv", {"when": list(range(100)), "y": table["y"]})
    assert make(file=only, time="when", window=3).rows("train", np.arange(4), 1.0).sha256() == whole.sha256()
    with pytest.raises(BadInput, match=r"task\.target.*'a', 'b', 'y'"):
        make(file=file).prepare()


def test_parquet_is_read_like_csv(table: dict[str, list[float]], tmp_path: Path) -> None:
    import pandas as pd

    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(100)]
    text = write(tmp_path / "t.csv", {"day": days, **table})
    frame = pd.DataFrame({"day": pd.to_datetime(days), **table})
    for name, times in (("stamps", frame["day"]), ("texts", frame["day"].dt.strftime("%Y-%m-%d")), ("dates", days)):
        path = tmp_path / f"{name}.parquet"
        frame.assign(day=times).to_parquet(path)
        one = make(file=str(path), time="day", target="y", columns=["a", "y"], window=5)
        two = make(file=text, time="day", target="y", columns=["a", "y"], window=5)
        rows = np.arange(one.sizes()["train"])
        assert one.rows("train", rows, 1.0).sha256() == two.rows("train", rows, 1.0).sha256()
        assert one.data_hash() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_changes_is_read_again(table: dict[str, list[float]], tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", table)
    task = make(file=file, target="y", window=3)
    before = task.data_hash()
    write(tmp_path / "t.csv", table | {"y": [v + 1 for v in table["y"]]})
    os.utime(file, ns=(1, 1))
    assert task.data_hash() == hashlib.sha256(Path(file).read_bytes()).hexdigest() != before


def test_elnino() -> None:
    task = make()
    assert task.sizes() == {"train": 488, "valid": 110, "test": 110}
    found = task.baselines(task.open(0, 0, DataSpec(), 1000))
    assert found["seasonal_naive"].how.endswith("(season 12)")
    statsmodels = pytest.importorskip("statsmodels.datasets.elnino")
    wide = statsmodels.load_pandas().data.drop(columns="YEAR").to_numpy().ravel()
    series = task._series()
    assert series.target * series.deviation + series.mean == pytest.approx(wide, abs=1e-12)


def test_mackey_glass_is_pinned() -> None:
    series = mackey_glass()
    assert len(series) == 2000
    pinned = "33ac37e646912ac04e1cc056a12026c0d907c5870f59b99eec4e5e86176966e1"
    assert hashlib.sha256(np.array(series, dtype="<f8").tobytes()).hexdigest() == pinned


def test_mackey_glass_solves_its_equation() -> None:
    step, tau = 0.002, 8500
    s = [1.2] * (tau + 1)
    for k in range(30 * 500):  # thirty units by Euler's method, an independent solution
        s.append(s[-1] + step * (0.2 * s[k] / (1 + s[k] ** 10) - 0.1 * s[-1]))
    # Euler's error is at most half a step times the second derivative (below 0.1), summed over thirty units: 0.003.
    assert np.max(np.abs(np.array(forecast._mackey_glass(31)) - np.array(s[tau::500]))) < 0.003


FAULTS: dict[str, tuple[str, dict[str, Any], type[RnnbenchError], str]] = {
    "text in a number's place": ("t,y\n1,2\n2,abc\n", {}, CorruptData, "line 3, column 'y': 'abc' is not a number"),
    "thousands": ("t,y\n1,1_000\n", {}, CorruptData, "'1_000' is not a number"),
    "decimal comma": ('t,y\n1,"2,5"\n', {}, CorruptData, "'2,5' is not a number"),
    "empty cell": ("t,y\n1,2\n2,\n3,4\n", {}, CorruptData, "line 3, column 'y': the cell is empty"),
    "nan": ("t,y\n1,nan\n", {}, CorruptData, "line 2, column 'y': 'nan' is not a finite number"),
    "infinity": ("t,y\n1,-inf\n", {}, CorruptData, "'-inf' is not a finite"),
    "overflowing number": ("t,y\n1,1e999\n", {}, CorruptData, "'1e999' is not a finite"),
    "too few cells": ("t,y\n1,2\n2\n", {}, CorruptData, "line 3: 1 cells, where the header has 2"),
    "empty line": ("t,y\n1,2\n\n2,3\n", {}, CorruptData, "line 3: the line is empty"),
    "twice": ("t,y\n1,2\n2,2\n2,3\n", {"time": "t"}, CorruptData, "line 4, column 't': 2.0 is there twice"),
    "disorder": ("t,y\n1,2\n3,2\n2,3\n", {"time": "t"}, CorruptData, "line 4, column 't': 2.0 comes after 3.0"),
    "gap": ("t,y\n1,2\n2,2\n3,3\n5,4\n6,1\n", {"time": "t"}, CorruptData, "line 5, .*step from 3.0 to 5.0"),
    "text as time": ("t,y\nx,2\n", {"time": "t"}, CorruptData, "'x' is not a number or an ISO date"),
    "no such day": ("t,y\n2024-02-30,2\n", {"time": "t"}, CorruptData, "'2024-02-30' is not a date"),
    "another kind of time": ("t,y\n2024-01-01,2\n3,1\n", {"time": "t"}, CorruptData, "line 3.*'3' is not a date"),
    "missing column": ("t,value\n1,2\n", {"target": "vlaue"}, BadInput, "'vlaue'; did you mean value"),
    "missing input": ("t,y\n1,2\n", {"columns": ["t", "z"]}, BadInput, "columns: unknown name 'z'"),
    "missing time": ("t,y\n1,2\n", {"time": "time"}, BadInput, "'time'; did you mean|known: t, y"),
    "columns with one name": ("y,y\n1,2\n", {}, CorruptData, "two columns are called 'y'"),
    "no header": ("1,2\n3,4\n", {}, CorruptData, "the first line holds numbers"),
    "empty": ("", {}, CorruptData, "empty"),
    "header alone": ("t,y\n", {}, BadInput, "0 rows are too few"),
    "fewer rows than a window": ("t,y\n" + "1,2\n" * 30, {}, BadInput, "30 rows are too few.*window 24.*at least 25"),
    "HTML": ("<!DOCTYPE html>\n<html>,</html>\n", {}, CorruptData, "HTML"),
    "NUL": ("t,y\n1,\x00\n", {}, CorruptData, "line 2|not a number"),
    "open quote": ('t,y\n1,"2\n', {}, CorruptData, "line"),
    "damaged Parquet": ("PAR1 and nothing more", {}, CorruptData, "damaged Parquet"),
    "spreadsheet": ("PK\x03\x04", {}, BadInput, "spreadsheet"),
    "constant": ("t,y\n" + "1,0.1\n" * 60, {}, BadInput, "'y' is constant"),
    "too large": ("t,y\n" + "1,1e308\n1,-1e308\n" * 30, {}, BadInput, "too large"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    text, values, kind, message = FAULTS[fault]
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(RnnbenchError, match=message) as caught:
        make(**({"file": str(path), "target": "y"} | values)).prepare()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"t,y\n1,\xff\n")
    with pytest.raises(CorruptData, match=r"UTF-8 text \(byte 6\)"):
        make(file=str(path)).prepare()


@pytest.mark.parametrize("name", ["none.csv", "", "a\nb.csv", "\x00", "-rf", "x" * 300, "../" * 50 + "none"])
def test_hostile_and_missing_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="file") as caught:
        make(file=str(tmp_path / name) if name else "").prepare()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_not_a_regular_file(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(BadInput, match="is not a file"):
            make(file=str(path)).prepare()


def test_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "MAX_BYTES", 10)
    (tmp_path / "t.csv").write_text("t,y\n1,2\n3,4\n")
    with pytest.raises(BadInput, match="12 bytes; at most 10"):
        make(file=str(tmp_path / "t.csv")).prepare()


def test_parquet_faults(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "t.parquet"
    for column, message in (
        (["a", "b"], "column 'y' holds .*string, not numbers"),
        ([True, False], "holds bool"),
        ([1.0, None], "row 2, column 'y'"),
        ([1.0, float("inf")], "row 2, column 'y': inf is not a finite number"),
    ):
        pd.DataFrame({"y": column}).to_parquet(path)
        with pytest.raises(CorruptData, match=message):
            make(file=str(path), target="y").prepare()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptData, match="damaged Parquet"):
        make(file=str(path), target="y").prepare()


def test_parameters_that_contradict_one_another() -> None:
    contradictions: list[dict[str, Any]] = [
        {"train": 0.8, "valid": 0.2},
        {"train": 0.0},
        {"window": 0},
        {"horizon": 0},
        {"columns": ["a", "a"]},
        {"columns": []},
        {"season": 0},
        {"gaps": "fill"},
    ]
    for values in contradictions:
        with pytest.raises(BadInput):
            make(**values)


def test_parts_without_a_row(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", {"y": [0.0, 1.0, 3.0, 2.0, 5.0]})
    with pytest.raises(BadInput, match="none is left for the validation part"):
        make(file=file, window=1, valid=0.01).prepare()
    assert make(file=file, window=1, train=0.6, valid=0.2).sizes() == {"train": 2, "valid": 1, "test": 1}
