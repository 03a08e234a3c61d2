"""The loop's decisions, with a trainer that plays numbers from a script: no framework, no waiting, every step known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rnnbench import train as loop
from rnnbench.arrays import NDArray
from rnnbench.backends.base import TrainState
from rnnbench.experiment import Experiment, log_spaced, resolve
from rnnbench.record import Status
from rnnbench.spec import RunSpec
from rnnbench.tasks.base import Batch
from rnnbench.train import IN_FLIGHT, Event, Hooks, Progress, train

Log = list[tuple[Any, ...]]


def experiment_of(**changes: Any) -> Experiment:
    values = {"task": {"name": "adding", "T": 4}, "cell": {"name": "rnn", "hidden": 2}, "data": {"batch_size": 4}}
    values |= {"eval": {"n": 6, "every": 10}, "budget": {"steps": 40}} | changes
    return resolve(RunSpec.parse(values, ""))


class FakeLog:
    def __init__(self, trainer: FakeTrainer, first: int, count: int) -> None:
        self.trainer, self.first, self.count = trainer, first, count

    def fetch(self) -> dict[str, NDArray]:
        self.trainer.log.append(("fetch", self.first))
        losses = [self.trainer.loss(step) for step in range(self.first + 1, self.first + self.count + 1)]
        norms = np.full(self.count, np.nan)
        norms[-1] = self.trainer.norm(self.first + self.count)
        return {"loss": np.array(losses, np.float64), "grad_norm": norms}


class FakeTrainer:
    """Loss, gradient norm and scores are given functions of the (1-based) step; the one parameter is the step."""

    path, capacity, compile_seconds = "fake", 128, 0.0

    def __init__(
        self,
        loss: Callable[[int], float] = lambda step: 1 / step,
        score: Callable[[int], float] = lambda step: 1 / (1 + step),
        norm: Callable[[int], float] = lambda step: 1.0,
    ) -> None:
        self.loss, self.score, self.norm, self.step = loss, score, norm, 0
        self.log: Log = []

    def load(self, state: TrainState) -> None:
        self.step = state.step

    def state(self) -> TrainState:
        self.log.append(("state", self.step))
        return TrainState({"w": np.array([float(self.step)])}, step=self.step)

    def readback(self, batch: Batch) -> dict[str, NDArray]:
        return batch.arrays()

    def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> FakeLog:
        assert 1 <= len(batches) == len(rates) <= self.capacity
        self.log.append(("train", self.step, len(batches)))
        self.step += len(batches)
        return FakeLog(self, self.step - len(batches), len(batches))

    def evaluate(self, pieces: Sequence[Batch]) -> dict[str, float]:
        self.log.append(("evaluate", self.step))
        return {"loss": self.score(self.step), "mse": self.score(self.step), "correct": 1 - self.score(self.step)}

    def inspect(self, batch: Batch, rate: float) -> Any:
        raise NotImplementedError


class Memory:
    """A writer that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.checkpoints: list[tuple[dict[str, NDArray], dict[str, Any], int]] = []
        self.saved: dict[str, dict[str, NDArray]] = {}

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows

    def checkpoint(self, arrays: Any, position: Any) -> None:
        self.checkpoints.append((dict(arrays), dict(position), len(self.rows)))

    def save_parameters(self, which: str, arrays: Any) -> None:
        self.saved[which] = dict(arrays)

    def steps(self, split: str, metric: str) -> list[int]:
        return [row["step"] for row in self.rows if (row["split"], row["metric"]) == (split, metric)]

    def plain(self) -> list[tuple[Any, ...]]:
        """All but the seconds."""
        return [tuple(repr(value) for key, value in row.items() if key != "seconds") for row in self.rows]


def go(
    experiment: Experiment,
    trainer: FakeTrainer,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    memory: Memory | None = None,
) -> tuple[Status, Progress, Memory]:
    progress, memory = progress or Progress(), memory or Memory()
    status = train(experiment, trainer, experiment.source(), memory, progress, hooks or Hooks())
    return status, progress, memory


@pytest.fixture(params=[1, 3, 128])
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Steps a dispatch, fixed: nothing that is recorded may depend on it."""
    monkeypatch.setattr(loop._Pace, "steps", lambda self: request.param)
    return int(request.param)


@pytest.mark.parametrize(("per_decade", "last"), [(20, 1000), (20, 1), (1, 12345), (1000, 77), (5, 10**6), (3, None)])
def test_recorded_steps_are_evenly_spaced_in_the_logarithm(per_decade: int, last: int | None) -> None:
    shown = log_spaced(per_decade, last)
    found = [next(shown) for _ in range(40)] if last is None else list(shown)
    end = found[-1]
    # the definition: 10^(k / per_decade), rounded, without repeats; and the last step
    wanted = sorted({round(10 ** (k / per_decade)) for k in range(14 * per_decade)} | ({last} if last else set()))
    assert found == [step for step in wanted if step <= end]
    assert found[0] == 1
    assert last is None or end == last


def test_what_is_recorded_is_what_the_spec_says(pace: int) -> None:
    trainer = FakeTrainer(loss=lambda step: 1 / step)
    status, progress, memory = go(experiment_of(), trainer)
    assert (status, progress.step, trainer.step) == (Status.COMPLETED, 40, 40)
    recorded = list(log_spaced(20, 40))
    assert memory.steps("train", "loss") == memory.steps("train", "grad_norm") == recorded
    assert memory.steps("valid", "mse") == [0, 10, 20, 30, 40]
    values = {(r["step"], r["metric"]): r["value"] for r in memory.rows if r["split"] == "train"}
    for before, step in zip([0, *recorded], recorded, strict=False):
        assert values[step, "loss"] == 1 / step
        total = 0.0
        for each in range(before + 1, step + 1):
            total += 1 / each
        assert values[step, "loss_mean"] == total / (step - before)
    assert all(row["sequences"] == 4 * row["step"] for row in memory.rows)
    assert memory.saved["final"]["w"] == [40.0]
    seconds = [row["seconds"] for row in memory.rows]
    assert seconds == sorted(seconds)


def test_numbers_are_waited_for_at_looks_only(pace: int) -> None:
    """Between looks a call's numbers are fetched only when more than `IN_FLIGHT` are under way."""
    trainer = FakeTrainer()
    go(experiment_of(budget={"steps": 5000}, eval={"n": 6, "every": 5000}, record={"per_decade": 1}), trainer)
    looks = {0, 1, 10, 100, 1000, 5000}
    under_way: list[int] = []
    most = 0
    for index, (kind, step, *count) in enumerate(trainer.log):
        if kind == "train":
            under_way.append(step)
            assert step + count[0] <= min(look for look in looks if look > step)
            most = max(most, len(under_way))
        elif kind == "fetch":
            assert under_way.pop(0) == step
            rest = trainer.log[index + 1 :]
            following = next((entry[1] for entry in rest if entry[0] == "train"), 5000)
            assert len(under_way) == IN_FLIGHT or following in looks, (step, following)
        elif kind == "state":  # nothing is saved in between: there was no checkpoint due
            assert step == 5000
        else:
            assert step in looks
    assert not under_way
    assert most == IN_FLIGHT + 1


def test_batches_come_in_order_and_each_once() -> None:
    trainer, asked = FakeTrainer(), []
    experiment = experiment_of(budget={"steps": 300})
    source = experiment.source()
    draw = source.batch

    def batch(split: Any, step: int, difficulty: float = 1.0) -> Batch:
        if split == "train":
            asked.append(step)
        return draw(split, step, difficulty)

    source.batch = batch  # type: ignore[method-assign]
    train(experiment, trainer, source, Memory(), Progress(), Hooks())
    assert asked == list(range(300))


def test_a_budget_of_sequences_is_rounded_up_to_whole_batches() -> None:
    status, progress, _ = go(experiment_of(budget={"sequences": 41}), FakeTrainer())
    assert (status, progress.step) == (Status.COMPLETED, 11)


def test_a_budget_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    class Slow(FakeTrainer):
        def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> FakeLog:
            clock[0] += 0.5 * len(batches)
            return super().train(batches, rates)

        def evaluate(self, pieces: Sequence[Batch]) -> dict[str, float]:
            clock[0] += 100.0  # does not count
            return super().evaluate(pieces)

    status, progress, memory = go(experiment_of(budget={"seconds": 9.9}, eval={"n": 6, "every": 7}), Slow())
    assert (status, progress.step) == (Status.TIME_LIMIT, 20)
    assert memory.steps("valid", "mse") == [0, 7, 14, 20]  # the end is scored
    assert progress.seconds == pytest.approx(10 + 400)
    assert progress.eval_seconds == pytest.approx(400)


def test_a_run_that_has_diverged_when_its_time_is_up_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    class Slow(FakeTrainer):
        def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> FakeLog:
            clock[0] += len(batches)
            return super().train(batches, rates)

    trainer = Slow(loss=lambda step: math.nan if step >= 63 else 1.0)
    settings: dict[str, Any] = {"eval": {"n": 6, "every": 1000}, "record": {"per_decade": 1}}
    status, progress, _ = go(experiment_of(budget={"seconds": 70}, **settings), trainer)
    assert (status, progress.first_bad_step, progress.step) == (Status.DIVERGED, 63, 70)


@pytest.mark.parametrize(("window", "at"), [(1, 20), (2, 50), (3, 60)])
def test_solved_on_a_scored_set(pace: int, window: int, at: int) -> None:
    # good at 20, bad at 30, good from 40 on: only looks in a row count
    good = {20, 40, 50, 60}
    trainer = FakeTrainer(score=lambda step: 0.1 if step in good else 0.9)
    stop = {"metric": "mse", "threshold": 0.1, "window": window, "split": "valid"}
    status, progress, _ = go(experiment_of(budget={"steps": 60}, stop=stop), trainer)
    assert (status, progress.steps_to_solve, progress.step) == (Status.SOLVED, at, at)


def test_an_accuracy_is_passed_from_below() -> None:
    stop = {"metric": "correct", "threshold": 0.95, "split": "test"}
    trainer = FakeTrainer(score=lambda step: 0.05 if step >= 30 else 0.051)
    status, progress, memory = go(experiment_of(stop=stop), trainer)
    assert (status, progress.steps_to_solve) == (Status.SOLVED, 30)
    assert memory.steps("test", "correct") == [0, 10, 20, 30]


def test_solved_on_training_batches_is_exact_to_the_step(pace: int) -> None:
    good = {3, 4, 12, 13, 14, 15}
    trainer = FakeTrainer(loss=lambda step: 0.5 if step in good else 0.6)
    stop = {"threshold": 0.5, "window": 3, "split": "train"}
    status, progress, memory = go(experiment_of(stop=stop), trainer)
    look = next(step for step in log_spaced(20, 40) if step >= 14)
    assert (status, progress.steps_to_solve, progress.step) == (Status.SOLVED, 14, look)
    assert memory.steps("valid", "mse")[-1] == look  # the end is scored


@pytest.mark.parametrize("bad", [1, 2, 17, 39, 40])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_step_is_exact(pace: int, bad: int, value: float) -> None:
    trainer = FakeTrainer(loss=lambda step: value if step >= bad else 2.0)
    status, progress, memory = go(experiment_of(), trainer)
    look = next(step for step in sorted({*log_spaced(20, 40), 10, 20, 30}) if step >= bad)
    assert (status, progress.first_bad_step, progress.step) == (Status.DIVERGED, bad, look)
    assert memory.saved["final"]["w"] == [float(look)]
    assert max(memory.steps("valid", "mse")) < look  # what is no longer a number is not scored


def test_a_gradient_that_is_not_finite_is_seen_at_recorded_steps(pace: int) -> None:
    trainer = FakeTrainer(norm=lambda step: math.inf if step >= 21 else 1.0)
    status, progress, _ = go(experiment_of(), trainer)
    assert (status, progress.first_bad_step) == (Status.DIVERGED, next(s for s in log_spaced(20, 40) if s >= 21))


def test_a_loss_sum_beyond_the_largest_float_can_still_be_saved() -> None:
    trainer = FakeTrainer(loss=lambda step: 1.7e308)
    _, progress, _ = go(experiment_of(), trainer, Hooks(checkpoint_steps=1))
    assert math.isfinite(progress.loss_sum)


@pytest.mark.parametrize("select", ["best_valid", "best_test"])
def test_the_best_parameters_are_those_of_the_best_score_the_first_of_equals(pace: int, select: str) -> None:
    values = {0: 5.0, 10: math.nan, 20: 2.0, 30: 2.0, 40: 3.0}
    trainer = FakeTrainer(score=lambda step: values[step])
    _, progress, memory = go(experiment_of(eval={"n": 6, "every": 10, "select": select}), trainer)
    assert memory.saved["best"]["w"] == [20.0]
    assert memory.saved["final"]["w"] == [40.0]
    assert (progress.best["step"], progress.best["value"]) == (20, 2.0)
    split = select.removeprefix("best_")
    assert progress.best["scored"][split]["mse"] == 2.0
    assert progress.scored["valid"]["mse"] == 3.0  # the split of eval.split is scored as well


def test_an_accuracy_is_best_when_highest() -> None:
    values = {0: 0.5, 10: 0.2, 20: 0.1, 30: 0.4, 40: 0.9}
    settings = {"n": 6, "every": 10, "select": "best_valid", "metric": "correct", "split": "test"}
    _, progress, memory = go(experiment_of(eval=settings), FakeTrainer(score=lambda step: values[step]))
    assert (memory.saved["best"]["w"], progress.best["value"]) == ([20.0], 0.9)
    assert set(progress.best["scored"]) == {"valid", "test"}


@pytest.mark.parametrize("every", [1, 3, 7, 40])
def test_interrupted_and_resumed_at_any_step_gives_the_same(every: int) -> None:
    """Interrupt after each dispatch of some size, go on from what the checkpoint holds, compare with one go."""
    settings: dict[str, Any] = {
        "stop": {"threshold": 0.031, "window": 3, "split": "train"},
        "eval": {"n": 6, "every": 10, "select": "best_valid"},
    }
    make = lambda: FakeTrainer(score=lambda step: abs(step - 20.5))  # noqa: E731
    status, progress, memory = go(experiment_of(**settings), make())
    assert status == Status.SOLVED
    assert progress.steps_to_solve == 35

    kept, done, trainer = Memory(), Progress(), make()
    for _ in range(100):
        calls = iter([False] * (2 * every))
        found, done, _ = go(
            experiment_of(**settings), trainer, Hooks(interrupted=lambda calls=calls: next(calls, True)), done, kept
        )
        if found != Status.INTERRUPTED:
            break
        arrays, position, rows = kept.checkpoints[-1]
        assert rows == len(kept.rows)
        fresh = make()
        fresh.load(TrainState.from_arrays(arrays, position["step"]))
        trainer, done = fresh, replace(Progress(), **position)
    assert found == status
    assert kept.plain() == memory.plain()
    ignored = {"seconds": 0.0, "eval_seconds": 0.0, "data_seconds": 0.0}
    assert replace(done, **ignored) == replace(progress, **ignored)
    for which in ("final", "best"):
        np.testing.assert_array_equal(kept.saved[which]["w"], memory.saved[which]["w"])


@pytest.mark.parametrize("every", [1, 4, 9])
def test_checkpoints_change_nothing_and_come_when_due(every: int) -> None:
    _, _, memory = go(experiment_of(), FakeTrainer())
    _, _, saving = go(experiment_of(), FakeTrainer(), Hooks(checkpoint_steps=every))
    assert saving.plain() == memory.plain()
    steps = [position["step"] for _, position, _ in saving.checkpoints]
    assert steps
    assert all(later - earlier >= every for earlier, later in zip([0, *steps], steps, strict=False))
    assert all(arrays["params/w"] == [position["step"]] for arrays, position, _ in saving.checkpoints)


@pytest.mark.parametrize("kind", ["solved", "diverged"])
def test_a_checkpoint_between_two_looks_does_not_end_a_run_early(pace: int, kind: str) -> None:
    settings: dict[str, Any] = {"record": {"per_decade": 1}, "eval": {"n": 6, "every": 35}}
    settings["stop"] = {"threshold": 0.5, "split": "train"}
    value = math.nan if kind == "diverged" else 0.1
    steps = set()
    for every in (1, 2, 1000):
        trainer = FakeTrainer(loss=lambda step: 1.0 if step < 13 else value)
        status, progress, _ = go(experiment_of(**settings), trainer, Hooks(checkpoint_steps=every))
        assert status == kind
        steps.add((progress.step, progress.steps_to_solve, progress.first_bad_step))
    assert steps == {(35, 13, None) if kind == "solved" else (35, None, 13)}


def test_checkpoints_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    class Slow(FakeTrainer):
        def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> FakeLog:
            clock[0] += len(batches)
            return super().train(batches, rates)

    _, _, memory = go(experiment_of(), Slow(), Hooks(checkpoint_seconds=10))
    steps = [position["step"] for _, position, _ in memory.checkpoints]
    assert steps == [10, 20, 30]


def test_the_pace_follows_the_rate_also_within_a_long_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step first; then about half a second's worth, however long it is to the next look."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    class Timed(FakeTrainer):
        def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> FakeLog:
            clock[0] += 0.02 * len(batches)  # 50 steps a second
            if self.step == 0:
                self.compile_seconds += 60.0
                clock[0] += 60.0
            return super().train(batches, rates)

    trainer = Timed()
    far = Progress(step=0, scored_step=0)
    settings: dict[str, Any] = {"eval": {"n": 6, "every": 1000}, "record": {"per_decade": 1}}
    go(experiment_of(budget={"steps": 1000}, **settings), trainer, progress=far)
    sizes = [entry[2] for entry in trainer.log if entry[0] == "train"]
    assert sizes[0] == 1
    assert max(sizes) <= 26
    assert len(sizes) < 70  # 40 would be half a second each


def test_watchers_hear_of_every_dispatch() -> None:
    heard: list[Event] = []
    trainer = FakeTrainer()
    go(experiment_of(), trainer, Hooks(report=heard.append))
    assert {entry[1] + entry[2] for entry in trainer.log if entry[0] == "train"} == {event.step for event in heard}
    last = heard[-1]
    assert (last.step, last.steps, last.loss, last.metric, last.value) == (40, 40, 1 / 40, "mse", 1 / 41)


def test_evaluation_sets_are_cut_into_equal_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = experiment_of(eval={"n": 23}).source().evaluation("valid")
    for most, sizes in ((500, [23]), (23, [23]), (12, [12, 12]), (7, [6, 6, 6, 6]), (1, [1] * 23)):
        monkeypatch.setattr(loop, "EVAL_PIECE", most)
        pieces = loop._pieces(whole)
        assert [piece.size for piece in pieces] == sizes
        weights = np.concatenate([piece.mask for piece in pieces], axis=-1)
        inputs = np.concatenate([piece.inputs for piece in pieces], axis=1)
        assert weights.sum() == whole.mask.sum()
        np.testing.assert_array_equal(inputs[:, :23], whole.inputs)
        np.testing.assert_array_equal(weights[..., 23:], 0)


def test_time_is_accounted_for() -> None:
    began = time.perf_counter()
    _, progress, _ = go(experiment_of(), FakeTrainer())
    assert 0 < progress.data_seconds + progress.eval_seconds <= progress.seconds <= time.perf_counter() - began
