"""Forecasting: the value of a series some steps ahead, from a window of the past. Any CSV or Parquet file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, JsonValue, StringConstraints, model_validator

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput, quoted
from rnnbench.spec import Split
from rnnbench.tasks.base import Baseline, Batch, EvalSplit, LossName, Metric, Readout, Source, StoredSource, StoredTask
from rnnbench.tasks.tables import MAX_BYTES, Table, check_steps, read_table

Column = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Bundled(NamedTuple):
    time: str | None
    season: int | None
    origin: str


BUNDLED: dict[str, _Bundled] = {
    "elnino": _Bundled("month", 12, "NOAA ERSST.V3B, Niño 1+2, monthly 1950-2010"),
    "mackey_glass": _Bundled(None, None, "generated, tau = 17"),
}


@dataclass(frozen=True)
class _Series:
    """A file, read and scaled.

    Attributes:
        inputs: [row n_in], each column standardized by its mean and deviation on the training rows.
        target: [row], standardized likewise.
        mean: of the target's training rows, in its own unit.
        deviation: likewise, the population's.
        ends: the first row after the training part, and the first after the validation part.
        sha256: of the file; None when the series is generated.
    """

    inputs: NDArray
    target: NDArray
    mean: float
    deviation: float
    ends: tuple[int, int]
    sha256: str | None


class Forecast(StoredTask):
    """Forecast a series `horizon` steps ahead from a window of the past.

    Rows are counted in the file's order. The window that ends at row i - horizon predicts the target's row i. The
    series is cut by time: the first `train` of the rows, then `valid`, the rest for the test; a window belongs to the
    part that its target's row lies in. Windows of the later parts may reach back into the rows before, as a forecaster
    in that moment could; no training window holds a row of a later part, and the scaling is fitted on the training
    rows alone. Errors are in units of the target's training deviation.

    A window lies wholly in the past of its target, so reading it backwards gives nothing away.
    """

    name: ClassVar[str] = "forecast"
    version: ClassVar[int] = 1
    source: ClassVar[str] = "bundled elnino: NOAA ERSST.V3B; mackey_glass: Mackey & Glass, Science 197, 1977, eq. 4b"
    equation: ClassVar[str] = (
        "x_t = (row[i - horizon - window + 1 + t] - mean) / deviation, t = 0..window-1\n"
        "y = (target[i] - mean) / deviation\n"
        "mackey_glass: ds/dt = 0.2 s(t-17) / (1 + s(t-17)^10) - 0.1 s(t)"
    )
    loss: ClassVar[LossName] = "mse"
    readout: ClassVar[Readout] = "last"

    file: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        "elnino", description="path of a CSV or Parquet file, or elnino or mackey_glass"
    )
    columns: tuple[Column, ...] | None = Field(
        None, min_length=1, max_length=10**4, description="input columns; by default the target alone"
    )
    target: Column | None = Field(
        None, description="column to forecast; by default the first input, or the only column beside time"
    )
    time: Column | None = Field(None, description="column of times, which must increase by equal steps")
    gaps: Literal["refuse", "ignore"] = Field("refuse", description="whether unequal steps in time are an error")
    window: int = Field(24, ge=1, le=10**6, description="rows that the network reads")
    horizon: int = Field(1, ge=1, le=10**6, description="steps from the last row read to the one forecast")
    train: float = Field(0.7, gt=0, lt=1, description="share of the rows in the training part")
    valid: float = Field(0.15, gt=0, lt=1, description="share of the rows in the validation part; the rest is the test")
    season: int | None = Field(
        None, ge=1, le=10**6, description="rows in a season, for the seasonal-naive baseline; elnino has 12"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train + self.valid >= 1:
            raise ValueError(f"train + valid = {self.train + self.valid:g} leaves no rows for the test")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a column twice")
        return self

    @property
    def n_in(self) -> int:
        return 1 if self.columns is None else len(self.columns)

    @property
    def n_out(self) -> int:
        return 1

    @property
    def length(self) -> int:
        return self.window

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"mse": Metric("mse", "lower"), "mae": Metric("mae", "lower")}

    @property
    def metric(self) -> str:
        return "mse"

    @property
    def _season(self) -> int | None:
        return self.season or (BUNDLED[self.file].season if self.file in BUNDLED else None)

    @property
    def _reach(self) -> int:
        """Rows that a target needs before it."""
        return self.window - 1 + self.horizon

    def _series(self) -> _Series:
        return _prepared(self, _stamp(self.file))

    def _first(self, split: Split) -> int:
        """Return the row of the first target of `split`."""
        ends = self._series().ends
        return {"train": self._reach, "valid": ends[0], "test": ends[1]}[split]

    def sizes(self) -> dict[str, int]:
        series = self._series()
        first, second = series.ends
        return {"train": first - self._reach, "valid": second - first, "test": len(series.target) - second}

    def rows(self, split: Split, index: NDArray, difficulty: float) -> Batch:  # has no difficulty
        series = self._series()
        judged = self._first(split) + np.asarray(index)
        read = judged - self._reach + np.arange(self.window)[:, None]  # [time batch]
        return Batch(
            inputs=series.inputs[read],
            targets=series.target[judged][:, None],
            mask=np.ones(len(judged)),
            lengths=np.full(len(judged), self.window),
        )

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:
        """Return the naive forecasts' errors on the evaluation set of `split`.

        ``persistence`` repeats the last value known, ``seasonal_naive`` the last known of the same place in the
        season, ``train_mean`` the training part's mean.
        """
        target = self._series().target
        assert isinstance(source, StoredSource)
        judged = self._first(split) + source.evaluated(split)
        lags = {"persistence": (self.horizon, "the last value known")}
        season = self._season
        if season is not None:
            back = -(-self.horizon // season) * season
            if back <= judged[0]:
                lags["seasonal_naive"] = (back, f"the value of {back} rows before (season {season})")
        errors = {name: (target[judged] - target[judged - lag], how) for name, (lag, how) in lags.items()}
        errors["train_mean"] = (target[judged], "the training part's mean")
        found = {}
        for name, (error, how) in errors.items():
            found[name] = Baseline("mse", float(np.mean(error**2)), how)
            found[f"{name}_mae"] = Baseline("mae", float(np.mean(np.abs(error))), how)
        return found

    def identity(self) -> dict[str, JsonValue]:
        """Leave out the directory of the user's file: its content is in the digest, its place is nobody's business."""
        return {key: Path(value).name if key == "file" else value for key, value in self.changed().items()}

    def prepare(self) -> None:
        self._series()

    def data_hash(self) -> str | None:
        return self._series().sha256

    def data_facts(self) -> dict[str, str | int | float | bool]:
        series = self._series()
        facts: dict[str, str | int | float | bool] = {
            "data": BUNDLED[self.file].origin if self.file in BUNDLED else "the user's file",
            "rows": len(series.target),
            **{f"{split}_windows": size for split, size in self.sizes().items()},
            "target_mean": series.mean,
            "target_deviation": series.deviation,
        }
        if series.sha256 is not None:
            facts["sha256"] = series.sha256
        return facts


def _stamp(file: str) -> tuple[int, int]:
    """Return what changes when a user's file does; raise `BadInput` when it cannot be read as one."""
    if file in BUNDLED:
        return 0, 0
    try:
        path = Path(file)
        status = path.stat()
        if not path.is_file():
            raise BadInput(f"task.file: {quoted(file)} is not a file")
    except FileNotFoundError:
        raise BadInput(
            f"task.file: there is no file {quoted(file, 120)}; bundled series are {' and '.join(BUNDLED)}"
        ) from None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"task.file: {quoted(file)} cannot be read; {getattr(error, 'strerror', None) or error}"
        ) from None
    if status.st_size > MAX_BYTES:
        raise BadInput(f"task.file: {quoted(file)} has {status.st_size} bytes; at most {MAX_BYTES} are read")
    return status.st_mtime_ns, status.st_size


def _content(file: str) -> bytes:
    if file == "mackey_glass":
        return ("s\n" + "\n".join(map(repr, mackey_glass())) + "\n").encode()
    if file in BUNDLED:
        return files("rnnbench.tasks").joinpath(f"data/{file}.csv").read_bytes()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"task.file: {quoted(file)} cannot be read; {error.strerror}") from None


@lru_cache(maxsize=4)
def _prepared(task: Forecast, _stamp: tuple[int, int]) -> _Series:
    content = _content(task.file)
    table = read_table(content, quoted(task.file, 120))
    time = task.time or (BUNDLED[task.file].time if task.file in BUNDLED else None)
    target, columns = _chosen(task, table, time)
    values = {name: table.numbers(name) for name in dict.fromkeys((*columns, target))}
    if time is not None:
        check_steps(table, time, table.times(time), task.gaps == "ignore")
    rows = len(values[target])
    ends = _ends(task, rows, table.place)
    scaled = {name: _standardize(column, ends[0], name, table.place) for name, column in values.items()}
    return _Series(
        inputs=np.stack([scaled[name][0] for name in columns], axis=1),
        target=scaled[target][0],
        mean=scaled[target][1],
        deviation=scaled[target][2],
        ends=ends,
        sha256=None if task.file == "mackey_glass" else hashlib.sha256(content).hexdigest(),
    )


def _chosen(task: Forecast, table: Table, time: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the target's and the inputs' names."""
    target = task.target or (task.columns[0] if task.columns else None)
    if target is None:
        others = [name for name in table.columns if name != time]
        if len(others) != 1:
            shown = ", ".join(quoted(name, 30) for name in others[:8]) or "none"
            raise BadInput(f"task.target: say which column of {table.place} to forecast; it has {shown}")
        target = others[0]
    return target, task.columns or (target,)


def _ends(task: Forecast, rows: int, place: str) -> tuple[int, int]:
    """Cut the rows by time, and check that every part has a target."""
    # The small addition keeps 0.7 + 0.15 of 100 rows at 85, which floating point puts just below.
    first = int(task.train * rows + 1e-9)
    second = int((task.train + task.valid) * rows + 1e-9)
    if first <= task._reach:
        raise BadInput(
            f"{place}: {rows} rows are too few; the training part has {first}, and window {task.window} with horizon "
            f"{task.horizon} needs at least {task._reach + 1}"
        )
    if first == second or second == rows:
        part = "validation" if first == second else "test"
        raise BadInput(f"{place}: {rows} rows are too few; none is left for the {part} part")
    return first, second


def _standardize(column: NDArray, end: int, name: str, place: str) -> tuple[NDArray, float, float]:
    """Return the column in units of its training rows' deviation from their mean, with both."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(np.mean(column[:end])), float(np.std(column[:end]))
        result = (column - mean) / deviation if deviation > 0 else column
    # A constant is not always exactly so after rounding; below this no digit of the deviation is known.
    if deviation <= 1e-13 * abs(mean):
        raise BadInput(f"{place}: column {quoted(name)} is constant in the training part and cannot be scaled")
    if not np.isfinite(deviation) or not np.all(np.isfinite(result)):
        raise BadInput(f"{place}: column {quoted(name)} holds numbers too large to be scaled")
    return result, mean, deviation


@lru_cache(maxsize=1)
def mackey_glass() -> tuple[float, ...]:
    """Return 2,000 values of the Mackey-Glass series at unit spacing, after 500 that are dropped."""
    return tuple(_mackey_glass(2500)[500:])


def _mackey_glass(units: int) -> list[float]:
    """Solve ds/dt = 0.2 s(t-17) / (1 + s(t-17)^10) - 0.1 s(t) with s = 1.2 up to t = 0, at t = 0, 1, .. units - 1.

    By the classical Runge-Kutta method with step 0.1; halfway between two steps the delayed value is the mean of its
    neighbours. The power is a product of squares: the series is chaotic and must not depend on a platform's pow.
    """
    per_unit, tau, step = 10, 170, 0.1
    s = [1.2] * (tau + 1)

    def slope(now: float, delayed: float) -> float:
        square = delayed * delayed
        fourth = square * square
        return 0.2 * delayed / (1.0 + fourth * fourth * square) - 0.1 * now

    for k in range((units - 1) * per_unit):
        now, before, after = s[-1], s[k], s[k + 1]
        half = 0.5 * (before + after)
        k1 = slope(now, before)
        k2 = slope(now + 0.5 * step * k1, half)
        k3 = slope(now + 0.5 * step * k2, half)
        k4 = slope(now + step * k3, after)
        s.append(now + step * (k1 + 2.0 * k2 + 2.0 * k3 + k4) / 6.0)
    return s[tau::per_unit]
