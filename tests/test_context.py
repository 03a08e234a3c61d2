"""How much past data need: series and images with a planted answer, and each step of the way against a slow twin."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rnnbench import context
from rnnbench.arrays import NDArray
from rnnbench.context import reference_context
from rnnbench.errors import BadInput, CorruptData
from rnnbench.spec import DataSpec, Split
from rnnbench.tasks import datasets, mnist
from rnnbench.tasks.base import Baseline, Batch, EvalSplit, Metric, Source, StoredTask, Task
from rnnbench.tasks.copying import Copy
from rnnbench.tasks.digits import Digits
from rnnbench.tasks.forecast import Forecast
from rnnbench.tasks.mnist import MNIST
from rnnbench.tasks.temporal_order import TemporalOrder

ROWS = 500


def opened(task: Task, eval_n: int = 1000, **data: Any) -> Source:
    return task.open(0, 0, DataSpec(**data), eval_n)


def series(folder: Path, table: Mapping[str, NDArray], **values: Any) -> Forecast:
    names = ",".join(table)
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    file = folder / "series.csv"
    file.write_text(names + "\n" + "\n".join(",".join(map(repr, row)) for row in rows) + "\n")
    return Forecast.parse({"file": str(file), "window": 12} | values, "task")


def autoregressive(coefficient: float, rows: int = ROWS) -> NDArray:
    rng = np.random.default_rng(3)
    x = np.zeros(rows)
    for i in range(1, rows):
        x[i] = coefficient * x[i - 1] + rng.normal()
    return x


def test_a_markov_series_needs_the_last_value_alone(tmp_path: Path) -> None:
    found = reference_context(task := series(tmp_path, {"x": autoregressive(0.9)}), opened(task))
    assert found["need"] == found["low"] == 0
    assert (found["metric"], found["split"], found["eval_n"]) == ("mse", "valid", 75)
    # A white innovation is what nobody forecasts: 1 - 0.9^2 = 0.19 of the variance, itself known to some 25%.
    assert 0.1 < found["losses"][0] < 0.3
    assert found["baseline"] > 2 * found["losses"][0]
    assert found["lags"][-1] == 11


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_planted_delay_is_found_exactly(tmp_path: Path, horizon: int) -> None:
    """y_i depends on u_{i-7} alone; the last row read is i - horizon, which has lag 0."""
    rng = np.random.default_rng(4)
    u = rng.normal(size=ROWS)
    y = np.roll(u, 7) + 0.1 * rng.normal(size=ROWS)
    task = series(tmp_path, {"u": u, "y": y}, columns=["u"], target="y", horizon=horizon)
    found = reference_context(task, opened(task))
    need = 7 - horizon
    assert found["need"] == found["low"] == found["high"] == need
    losses = dict(zip(found["lags"], found["losses"], strict=True))
    assert losses[need - 1] > 0.8 * found["baseline"]
    assert losses[need] < 0.1 * found["baseline"]
    assert found["models"][found["lags"].index(need)] in found["model"].split(", ")
    assert need not in reference_context(task, opened(task), lags=[0, 11])["lags"]


def test_noise_needs_nothing(tmp_path: Path) -> None:
    task = series(tmp_path, {"x": np.random.default_rng(5).normal(size=ROWS)})
    found = reference_context(task, opened(task))
    assert (found["need"], found["low"], found["high"]) == (None, None, None)
    assert max(found["losses"]) < 1.1 * found["baseline"]


@pytest.mark.parametrize("layout", "AC")
def test_agrees_with_the_lag_of_a_task_that_knows_it(layout: str) -> None:
    """A loss at each step: the copy task with one symbol, judged at recall."""
    task = Copy(layout=layout, delay=4, symbols=1, alphabet=3, loss_over="recall")  # type: ignore[arg-type]  # a letter
    found = reference_context(task, opened(task, 100), train_n=150)
    assert found["need"] == task.lag
    before = found["losses"][found["lags"].index(task.lag - 1)]
    assert before == pytest.approx(math.log(3), rel=0.1)
    assert found["losses"][-1] < 0.05


def test_context_is_in_the_order_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with one pixel that is the label: it lies as far back as the permutation puts it."""
    arrays: dict[str, NDArray] = {}
    for part, n in (("train", 60000), ("test", 10000)):
        labels = np.random.default_rng(6).integers(0, 10, n).astype(np.uint8)
        images = np.zeros((n, 784), dtype=np.uint8)
        images[:, 350] = labels * 25
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    data = datasets.Mnist(arrays, dict.fromkeys(datasets.MNIST_FILES, "00"))
    monkeypatch.setattr(mnist, "load_mnist", lambda: data)
    for name in ("none", "bit_reversal"):
        task = MNIST.parse({"permutation": name}, "task")
        lag = 783 - int(np.flatnonzero(mnist.permutation(name) == 350)[0])
        found = reference_context(task, opened(task, 200), train_n=200, lags=[lag - 1, lag])
        assert found["need"] == lag
        assert found["losses"][0] == pytest.approx(found["baseline"])


def test_digits_by_row() -> None:
    task = Digits(by="row")
    one = reference_context(task, opened(task), train_n=150)
    assert one["lags"] == sorted(one["lags"])
    assert one["lags"][:4] == [0, 1, 2, 3]
    assert one["lags"][-1] == 7
    assert one["baseline"] == pytest.approx(math.log(10), rel=0.03)
    assert one["losses"][0] < 0.9 * one["baseline"]
    assert np.all(np.diff(one["losses"]) < 0.05)  # a fiftieth of the span: one choice is scored afresh after another
    assert 3 <= one["low"] <= one["need"] <= one["high"] <= 7
    assert (one["train_n"], one["eval_n"]) == (150, 300)
    for low, loss, high in zip(one["loss_low"], one["losses"], one["loss_high"], strict=True):
        assert low < loss < high
    assert json.loads(json.dumps(one, allow_nan=False)) == one


def test_the_seed_decides_and_nothing_else() -> None:
    task = Digits(by="row")
    one, again = (reference_context(task, opened(task), train_n=60, lags=[3]) for _ in range(2))
    assert one == again
    assert reference_context(task, opened(task), train_n=60, lags=[3], seed=1)["losses"] != one["losses"]
    assert reference_context(task, opened(task), train_n=60, lags=[3], split="test")["losses"] != one["losses"]


def test_reference_models_know_at_least_what_trivial_ones_do() -> None:
    """The bundled series: at lag 0 as good as persistence, and all baselines in the same unit."""
    task = Forecast()
    source = opened(task)
    found = reference_context(task, source, lags=[0, 11])
    assert found["losses"][0] < 1.05 * task.baselines(source)["persistence"].value
    assert found["losses"][1] < found["losses"][0]
    assert found["baseline"] == pytest.approx(task.baselines(source)["train_mean"].value, rel=0.02)


def test_a_single_step(tmp_path: Path) -> None:
    task = series(tmp_path, {"x": autoregressive(0.9)}, window=1)
    found = reference_context(task, opened(task))
    assert (found["lags"], found["need"], found["low"], found["high"]) == ([0], 0, 0, 0)


class Made(StoredTask):
    """Given arrays as a task, sequences [sequence time n_in] of one's own."""

    name: ClassVar[str] = "made"
    loss: ClassVar[Any] = "mse"
    readout: ClassVar[Any] = "each"
    batch_: ClassVar[Batch]

    @property
    def n_in(self) -> int:
        return int(self.batch_.inputs.shape[2])

    @property
    def n_out(self) -> int:
        return int(self.batch_.targets.shape[-1]) if self.loss == "mse" else 3

    @property
    def length(self) -> int:
        return len(self.batch_.inputs)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {}

    @property
    def metric(self) -> str:
        return "loss"

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:
        return {}

    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(("train", "valid", "test"), self.batch_.size)

    def rows(self, split: Split, index: NDArray, difficulty: float) -> Batch:
        return self.batch_.take(index)


def made(T: int = 5, n: int = 40, n_in: int = 2, loss: str = "mse", readout: str = "each", **changes: NDArray) -> Task:
    rng = np.random.default_rng(7)
    steps = (T,) if readout == "each" else ()
    targets = rng.normal(size=(*steps, n, 2)) if loss == "mse" else rng.integers(0, 3, size=(*steps, n))
    arrays: dict[str, NDArray] = {
        "inputs": rng.normal(size=(T, n, n_in)),
        "targets": targets,
        "mask": rng.choice([0.0, 1.0, 2.0], size=(*steps, n)),
        "lengths": rng.integers(1, T + 1, size=n),
    }
    batch = Batch(**(arrays | changes))  # type: ignore[arg-type]  # all but the further masks
    of: type[Task] = type("Of", (Made,), {"batch_": batch, "loss": loss, "readout": readout})
    return of()


@pytest.mark.parametrize("readout", ["last", "each"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("deepest", [0, 2, 4])
def test_windows_against_a_naive_twin(readout: str, loss: str, deepest: int) -> None:
    task = made(readout=readout, loss=loss)
    batch = opened(task).evaluation("valid")
    expected = []
    for t in range(5):
        for b in range(40):
            here = t == batch.lengths[b] - 1 if readout == "last" else True
            place: Any = b if readout == "last" else (t, b)
            if here and batch.mask[place] > 0:
                row: list[float] = []
                for lag in range(deepest + 1):
                    row += batch.inputs[t - lag, b].tolist() if t >= lag else [0.0, 0.0]
                expected.append((b, row, np.ravel(batch.targets[place]).tolist(), batch.mask[place]))
    sample = context._judged(task, batch, deepest, 1000, np.random.default_rng(0))
    found = [
        (int(b), row.tolist(), np.ravel(y).tolist(), w)
        for b, row, y, w in zip(sample.sequence, sample.features, sample.targets, sample.weights, strict=True)
    ]
    assert sorted(found) == sorted(expected)
    few = context._judged(task, batch, deepest, 7, np.random.default_rng(0))
    if readout == "each":
        assert len(few.targets) == 7
        kept = [row.tolist() for row in few.features]
        assert all(row in [each[1] for each in expected] for row in kept)


@pytest.mark.parametrize("readout", ["last", "each"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_losses_are_the_tasks_own(readout: str, loss: str) -> None:
    """Of the constant prediction, by hand: weighted over all judged targets, averaged over outputs."""
    task = made(n=64, readout=readout, loss=loss)
    found = reference_context(task, opened(task), lags=[0, 4])
    batch = opened(task).evaluation("valid")
    judged = batch.mask > 0
    total = 0.0
    if loss == "mse":
        mean = batch.targets[judged].mean(axis=0)
        for place in np.argwhere(judged):
            total += batch.mask[tuple(place)] * np.mean((batch.targets[tuple(place)] - mean) ** 2)
    else:
        seen = batch.targets[judged].tolist()
        for place in np.argwhere(judged):
            said = (seen.count(batch.targets[tuple(place)]) + 1) / (len(seen) + 3)
            total += batch.mask[tuple(place)] * -math.log(said)
    assert found["baseline"] == pytest.approx(total / batch.mask.sum(), rel=1e-12)


def test_the_training_set_is_the_runs_own() -> None:
    for train_n, expected in ((50, 50), (None, 1197)):
        source: Any = Digits(by="row").open(0, 3, DataSpec(batch_size=25, train_n=train_n), 30)
        rows = source.training_rows()
        assert len(rows) == expected
        assert np.all(np.diff(rows) > 0)
        whole = source.task.rows("train", rows, 1.0)
        known = {whole.inputs[:, b].tobytes() for b in range(whole.size)}
        for step in range(4):
            batch = source.batch("train", step)
            assert {batch.inputs[:, b].tobytes() for b in range(25)} <= known
    source = Digits(by="row").open(0, 3, DataSpec(train_n=50), 30)
    assert reference_context(source.task, source, lags=[0])["train_n"] == 50


def test_the_inner_part_never_overlaps_with_what_is_fitted(tmp_path: Path) -> None:
    task = series(tmp_path, {"x": autoregressive(0.5)}, window=30)
    sample, gap = context._training(task, opened(task), 2000, 29, 0)
    role = context._inner(task, sample, gap, 0)
    assert sorted(set(role.tolist())) == [0, 1, 2]
    assert np.flatnonzero(role == 1)[0] - np.flatnonzero(role == 0)[-1] > 30
    assert np.mean(role == 1) == pytest.approx(0.25, abs=0.01)
    thinned, gap = context._training(task, opened(task), 100, 29, 0)
    assert thinned.sequences == 100
    assert gap == 10  # about a third of the rows are left, so that 30 steps are some ten of them
    classes, _ = context._training(Digits(), opened(Digits()), 2000, 0, 0)
    role = context._inner(Digits(), classes, 0, 0)
    assert sorted(set(role.tolist())) == [0, 1]
    assert len(set(classes.targets[role == 1].tolist())) == 10  # although the set is sorted by label


def test_the_need_by_hand() -> None:
    for losses, place in (
        ([1.0, 0.5, 0.1, 0.0, 0.0], 3),
        ([1.0, 0.5, 0.05, 0.0, 0.0], 2),
        ([1.0, 0.5, 0.06, 0.3, 0.0], 4),
        ([1.0, 0.992, 0.991], 0),
        ([0.5], 0),
        ([0.2, 0.3], 0),
    ):
        assert context._needed(np.array(losses)) == place


def test_the_interval_is_of_the_mean() -> None:
    rng = np.random.default_rng(8)
    independent = rng.normal(5.0, 1.0, size=400)
    drawn = context._resampled(independent[:, None], np.ones(400), rng)
    # 1,000 replicates know a deviation to 2.3%; ten tiles of blocks of 7 of 400 to some 10% more.
    assert np.std(drawn) == pytest.approx(1 / 20, rel=0.25)
    together = np.repeat(rng.normal(5.0, 1.0, size=100), 4)  # neighbours alike, as overlapping windows are
    assert np.std(context._resampled(together[:, None], np.ones(400), rng)) > 1.4 / 20
    weights = rng.uniform(0, 1, size=400)
    weights[:50] = 0.0
    ratio = context._resampled((weights * 3.0)[:, None], weights, rng)
    assert np.allclose(ratio, 3.0, rtol=1e-12)


@pytest.mark.parametrize("length", [*range(1, 40), 784, 1000, 10000])
def test_grid(length: int) -> None:
    grid = context._grid(length)
    assert grid == sorted(set(grid))
    assert grid[:4] == list(range(min(4, length)))
    assert (grid[0], grid[-1]) == (0, length - 1)
    steps = np.array(grid) + 1
    assert np.all(steps[1:] / steps[:-1] <= 2)
    assert len(grid) <= 4 + 2 * math.log2(max(2, length))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = series(tmp_path, {"x": autoregressive(0.5)})
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BadInput, match="scikit-learn, which is not installed"):
        reference_context(task, opened(task))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lags": [0, 12]}, "lag 12 is not an integer from 0 to 11"),
        ({"lags": [-1]}, "lag -1 is not"),
        ({"lags": [1.5]}, "lag 1.5 is not"),
        ({"lags": [True]}, "lag True is not"),
        ({"lags": []}, "no lags"),
        ({"train_n": 15}, "train_n 15 is not an integer of at least 16"),
        ({"train_n": 100.0}, "train_n 100.0 is not"),
        ({"seed": -1}, "seed -1 is not"),
    ],
)
def test_bad_arguments(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    task = series(tmp_path, {"x": autoregressive(0.5)})
    with pytest.raises(BadInput, match=message):
        reference_context(task, opened(task), **values)


def test_too_few_sequences(tmp_path: Path) -> None:
    task = series(tmp_path, {"x": autoregressive(0.5, 60)})
    with pytest.raises(BadInput, match="9 valid sequences are too few; at least 16"):
        reference_context(task, opened(task))
    with pytest.raises(BadInput, match="12 training sequences are too few"):
        reference_context(task, opened(task, train_n=12))
    with pytest.raises(BadInput, match="no valid sequences"):
        reference_context(whole := MNIST(split="60k/0"), opened(whole, train_n=20), train_n=20)


def test_the_fewest_sequences(tmp_path: Path) -> None:
    task = series(tmp_path, {"x": autoregressive(0.9, 110)})
    found = reference_context(task, opened(task, 16, train_n=16), lags=[0, 11])
    assert (found["train_n"], found["eval_n"]) == (16, 16)
    order = TemporalOrder(T=10)
    found = reference_context(order, opened(order, 16), train_n=16, lags=[0, 9])
    assert np.all(np.isfinite(found["losses"]))


def test_a_single_class_leaves_the_baseline() -> None:
    task = made(loss="cross_entropy", targets=np.ones((5, 40), dtype=np.int64))
    found = reference_context(task, opened(task), lags=[0, 4])
    assert found["models"] == [None, None]
    assert found["need"] is None
    assert found["losses"] == [found["baseline"]] * 2


@pytest.mark.parametrize("name", ["inputs", "targets"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    task = made()
    array = getattr(opened(task).evaluation("valid"), name).copy()
    array.flat[3] = np.nan
    task = made(mask=np.ones((5, 40)), **{name: array})
    with pytest.raises(CorruptData, match=f"gives an? {name[:-1]} that is not a finite number"):
        reference_context(task, opened(task), lags=[4])


def test_too_much_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MOST_VALUES", 1000)
    with pytest.raises(BadInput, match="give a smaller train_n, or smaller lags"):
        reference_context(task := Digits(), opened(task), train_n=20)
