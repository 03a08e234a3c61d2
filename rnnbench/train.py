"""The training loop: one function that reads top to bottom, and the bookkeeping that it hands its numbers to.

`train` decides what happens at which step. It asks for batches, gives them to a trainer, and looks at numbers only
where the spec says that something is recorded or scored; between those points nothing waits for the device.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, cast

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.backends.base import STORAGE, StepLog, Trainer, TrainState
from rnnbench.experiment import Experiment, log_spaced
from rnnbench.probes.base import recorded
from rnnbench.record import Status
from rnnbench.signals import Signal
from rnnbench.tasks.base import Batch, Source, pad_rows

EVAL_PIECE = 500
"""Most sequences that are scored in one piece."""

DISPATCH_SECONDS = 0.5
"""About how much work a trainer is given at a time, so that a signal never waits long."""

IN_FLIGHT = 2
"""Calls of `Trainer.train` that may be under way at once; more would only pile up batches."""


class Writer(Protocol):
    """Where a run's numbers go; `rnnbench.store.RunWriter` is one."""

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Take rows of step, sequences, split, metric, value, seconds."""

    def signal(self, name: str, axes: Iterable[str], unit: str, array: NDArray, step: int) -> None:
        """Take a named array."""

    def checkpoint(self, arrays: Mapping[str, NDArray], position: Mapping[str, Any]) -> None:
        """Make everything so far safe, with the state to go on from."""

    def save_parameters(self, which: Literal["final", "best"], arrays: Mapping[str, NDArray]) -> None:
        """Keep a set of parameters."""


class Prober(Protocol):
    """What looks at a model under way; `rnnbench.engine.probing.Probing` is one."""

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""

    def __call__(
        self, state: TrainState, interrupted: Callable[[], bool], dropped: dict[str, str]
    ) -> Iterable[Signal] | None:
        """Return what is to be recorded of the model in this state, or None where an interruption broke it off.

        `dropped` says why probes are not run any more, by name; one that fails is put there.
        """


@dataclass
class Progress:
    """Where a run stands; all of it is plain data, and a checkpoint holds it.

    Attributes:
        step: training steps taken.
        seconds: spent in the loop before this process, evaluation and compilation included.
        eval_seconds, data_seconds, compile_seconds, probe_seconds: parts of it.
        probed_step: the last step at which the model was probed.
        dropped: probes that failed and are not run any more, by name, with a line on how.
        loss_sum, loss_steps: of the training loss since the last recorded step.
        passed: consecutive looks that have passed the stopping threshold.
        steps_to_solve: the step at which the last of them fell, once there are enough.
        first_bad_step: the first step whose loss, or a recorded gradient norm, was not finite.
        scored: the last scores by split and metric, of step `scored_step`.
        looked_step: the last step at which something was recorded or scored; a look of probes alone does not count.
        best: step and selecting score of the best scoring so far, with the scores of that moment.
        extra: what else a checkpoint is to hold.
    """

    step: int = 0
    seconds: float = 0.0
    eval_seconds: float = 0.0
    data_seconds: float = 0.0
    compile_seconds: float = 0.0
    probe_seconds: float = 0.0
    probed_step: int | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_steps: int = 0
    passed: int = 0
    steps_to_solve: int | None = None
    first_bad_step: int | None = None
    scored: dict[str, dict[str, float | None]] = field(default_factory=dict)
    scored_step: int | None = None
    looked_step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        values = asdict(self)
        extra: dict[str, Any] = values.pop("extra")
        return extra | values


@dataclass(frozen=True)
class Event:
    """What a watcher of the loop is told now and then."""

    step: int
    steps: int | None
    seconds: float
    loss: float | None
    metric: str
    value: float | None


@dataclass
class Hooks:
    """What surrounds the loop.

    Attributes:
        interrupted: asked between dispatches and between probes; True makes the loop save a checkpoint and return.
        report: told of progress.
        probe: looks at the model, and returns signals; None where nothing is probed.
        describe: what else a checkpoint is to say of the run as it stands.
        checkpoint_seconds: the time between two checkpoints.
        checkpoint_steps: or, when given, the number of steps between two.
    """

    interrupted: Callable[[], bool] = lambda: False
    report: Callable[[Event], None] = lambda _event: None
    probe: Prober | None = None
    describe: Callable[[], dict[str, Any]] = dict
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int | None = None


def train(
    experiment: Experiment,
    trainer: Trainer,
    source: Source,
    writer: Writer,
    progress: Progress,
    hooks: Hooks,
) -> Status:
    """Train from where `progress` and the trainer stand to the end, an interruption or a divergence.

    Numbers go to `writer`, what happened to `progress`.

    Returns:
        The final status, or `Status.INTERRUPTED` after a checkpoint was written.
    """
    book = _Book(experiment, trainer, source, writer, progress, hooks)
    last = experiment.steps
    rate = experiment.optimizer.lr
    under_way: deque[StepLog] = deque()
    pace = _Pace(trainer)
    safe = _Safety(hooks, progress.step)

    if progress.scored_step is None:
        book.score()
    if not book.probe():
        book.save()
        return Status.INTERRUPTED
    while True:
        ended = book.ended(last)
        if ended is not None:
            break
        if hooks.interrupted():
            book.save()
            return Status.INTERRUPTED
        if safe.due(progress.step):
            book.save()
            safe.done(progress.step)

        goal = book.next_look(last)
        pace.begin(progress.step)
        while progress.step < goal:
            count = min(goal - progress.step, trainer.capacity, pace.steps())
            drawn = time.perf_counter()
            batches = [source.batch("train", s).cast(book.dtype) for s in range(progress.step, progress.step + count)]
            progress.data_seconds += time.perf_counter() - drawn
            under_way.append(trainer.train(batches, [rate] * count))
            progress.step += count
            if len(under_way) > IN_FLIGHT:
                book.take(under_way.popleft())
                pace.learn(book.taken)
            hooks.report(book.event())
            if hooks.interrupted() or safe.due(progress.step) or book.out_of_time():
                break
        while under_way:
            book.take(under_way.popleft())
        pace.learn(book.taken)
        if progress.step == goal and not book.look():
            book.save()
            return Status.INTERRUPTED
        hooks.report(book.event())

    if not book.finish():
        book.save()
        return Status.INTERRUPTED
    return ended


class _Book:
    """Keeps a run's numbers: what is written, when the run is solved, which parameters are best."""

    def __init__(
        self,
        experiment: Experiment,
        trainer: Trainer,
        source: Source,
        writer: Writer,
        progress: Progress,
        hooks: Hooks,
    ) -> None:
        self.spec = experiment.spec
        self.experiment = experiment
        self.trainer = trainer
        self.source = source
        self.writer = writer
        self.progress = progress
        self.dtype = STORAGE[self.spec.precision]
        self._pieces: dict[str, list[Batch]] = {}
        self._recorded = _Schedule(self.spec.record.per_decade, experiment.steps, progress.step)
        self._probe = hooks.probe
        self._describe = hooks.describe
        self._interrupted = hooks.interrupted
        # counted from the last look that was taken: one that an interruption broke off is due at once
        self._probed = _Schedule(self.spec.record.probes_per_decade, experiment.steps, progress.probed_step or 0)
        self._follows = any(each.in_training for each in experiment.probes)
        self._history: dict[str, list[NDArray]] = {}
        self._began = time.perf_counter() - progress.seconds
        self._compiled_before = trainer.compile_seconds
        self._compile_base = progress.compile_seconds
        self.taken = progress.step
        self._last: dict[str, float] = {}
        stop = self.spec.stop
        self._threshold_better = experiment.metric_of(stop.metric).better if stop else "lower"

    def next_look(self, last: int | None) -> int:
        """Return the next step at which something is recorded, scored or probed."""
        every = self.spec.eval.every
        scored = (self.progress.step // every + 1) * every
        schedules = [self._recorded, *([self._probed] if self._probe else [])]
        later = [schedule.step for schedule in schedules if schedule.step > self.progress.step]
        wanted = min([scored, *later])
        return wanted if last is None else min(wanted, last)

    def take(self, log: StepLog) -> None:
        """Wait for some steps' numbers and account for them, step by step and in order."""
        numbers = log.fetch()
        losses = numbers["loss"]
        finite = np.isfinite(losses)
        progress = self.progress
        if progress.first_bad_step is None and not finite.all():
            progress.first_bad_step = self.taken + int(np.argmin(finite)) + 1
        self.taken += len(losses)
        # accumulate is sequential: the sum does not depend on how the steps were divided into dispatches
        known = losses[finite]
        with np.errstate(over="ignore"):
            total = float(np.add.accumulate(np.concatenate([[progress.loss_sum], known]))[-1])
        progress.loss_sum = min(total, sys.float_info.max)  # a checkpoint has no word for infinity
        progress.loss_steps += len(known)
        self._last = {name: float(values[-1]) for name, values in numbers.items() if not name.startswith("acted/")}
        if self._follows:
            for name, values in numbers.items():
                if name == "grad_norm" or name.startswith("acted/"):
                    self._history.setdefault(name, []).append(values)
        stop = self.spec.stop
        if stop is not None and stop.split == "train":
            for offset, value in enumerate(numbers[stop.metric], start=self.taken - len(losses) + 1):
                self._judge(float(value), offset)

    def look(self) -> bool:
        """Record, score and probe the present step where that is due; False where an interruption broke it off."""
        progress, step = self.progress, self.progress.step
        due = step % self.spec.eval.every == 0 or step == self.experiment.steps
        if due or self._recorded.due(step):
            progress.looked_step = step  # not of probes: where they look must not decide where a run ends
        if self._recorded.due(step):
            norm = self._last["grad_norm"]
            if progress.first_bad_step is None and not math.isfinite(norm):
                progress.first_bad_step = step
            self._rows("train", {**self._last, "loss_mean": progress.loss_sum / max(1, progress.loss_steps)})
            progress.loss_sum, progress.loss_steps = 0.0, 0
            self._keep_history()
            self._recorded.passed(step)
        if due and progress.first_bad_step is None and progress.scored_step != step:
            self.score()
        return self.probe()

    def probe(self) -> bool:
        """Look at the model as it stands, unless that is not due or its numbers are not finite any more.

        Returns:
            False where an interruption broke the look off; nothing of it is recorded, and it is still due.
        """
        progress = self.progress
        if self._probe is None or progress.probed_step == progress.step or progress.first_bad_step is not None:
            return True
        if progress.probed_step is not None and not self._probed.due(progress.step):
            return True
        state = self.trainer.state()
        if not all(np.isfinite(array).all() for array in state.params.values()):
            return True  # the loss of this step, taken before its update, may still have been a number
        began, compiled = time.perf_counter(), self._probe.compile_seconds
        found = self._probe(state, self._interrupted, progress.dropped)
        for signal in found or ():
            self._keep(signal)
        compiled = self._probe.compile_seconds - compiled
        self._compile_base += compiled
        progress.probe_seconds += time.perf_counter() - began - compiled
        if found is None:
            return False
        progress.probed_step = progress.step
        self._probed.passed(progress.step)
        return True

    def _keep_history(self) -> None:
        """Write what every step since the last time has shown, where a probe follows training."""
        for name, pieces in self._history.items():
            kind, _, of = name.partition("/")
            self._keep(recorded(f"updates.{kind}", np.concatenate(pieces), self.progress.step, of))
        self._history = {}

    def _keep(self, signal: Signal) -> None:
        self.writer.signal(signal.name, signal.axes, signal.unit, signal.values, signal.step)

    def score(self) -> None:
        """Score the present parameters on every split that is asked for; judge stopping and selection by it."""
        began = time.perf_counter()
        compiled = self.trainer.compile_seconds
        progress = self.progress
        for split in self._splits():
            if split not in self._pieces:
                whole = self.source.evaluation(split).cast(self.dtype)
                self._pieces[split] = list(_pieces(whole))
            found = self.trainer.evaluate(self._pieces[split])
            progress.scored[split] = {name: value if math.isfinite(value) else None for name, value in found.items()}
            self._rows(split, found)
        progress.scored_step = progress.step
        progress.eval_seconds += time.perf_counter() - began - (self.trainer.compile_seconds - compiled)
        self._select()
        stop = self.spec.stop
        if stop is not None and stop.split != "train":
            value = progress.scored[stop.split][stop.metric]
            self._judge(math.nan if value is None else value, progress.step)

    def ended(self, last: int | None) -> Status | None:
        """Return how the run has ended, if it has.

        Divergence and solution take effect at looks only: where between two looks the numbers happened to be fetched
        must not decide at which step a run stops. When time is up there is no further look to wait for.
        """
        progress, out_of_time = self.progress, self.out_of_time()
        if out_of_time or progress.looked_step == progress.step:
            if progress.first_bad_step is not None:
                return Status.DIVERGED
            if progress.steps_to_solve is not None:
                return Status.SOLVED
        if last is not None and progress.step >= last:
            return Status.COMPLETED
        return Status.TIME_LIMIT if out_of_time else None

    def out_of_time(self) -> bool:
        """Whether a budget in seconds is spent; compilation and scoring do not count."""
        limit = self.spec.budget.seconds
        if limit is None:
            return False
        other = self._compile_seconds() + self.progress.eval_seconds + self.progress.probe_seconds
        spent = time.perf_counter() - self._began - other
        return spent >= limit

    def save(self) -> None:
        """Write a checkpoint."""
        self._clock()
        self._keep_history()
        state = self.trainer.state()
        self.writer.checkpoint(state.arrays(), self._describe() | self.progress.to_json())

    def finish(self) -> bool:
        """Score and probe the end where it has not been, and keep the final parameters.

        Returns:
            False where an interruption broke the look of the probes off, so that the run has not ended yet.
        """
        progress = self.progress
        if progress.first_bad_step is None and progress.scored_step != progress.step:
            self.score()
        self._keep_history()
        self._probed.end(progress.step)
        if not self.probe():
            return False
        self.writer.save_parameters("final", self.trainer.state().params)
        self._clock()
        return True

    def event(self) -> Event:
        """Return what a watcher is told."""
        metric = self.experiment.metric
        value = self.progress.scored.get(self.spec.eval.split, {}).get(metric)
        loss = self._last.get("loss")
        seconds = time.perf_counter() - self._began
        return Event(self.progress.step, self.experiment.steps, seconds, loss, metric, value)

    def _clock(self) -> None:
        self.progress.seconds = time.perf_counter() - self._began
        self.progress.compile_seconds = self._compile_seconds()

    def _compile_seconds(self) -> float:
        return self._compile_base + self.trainer.compile_seconds - self._compiled_before

    def _splits(self) -> list[Literal["valid", "test"]]:
        """Return the splits that are scored: the one asked for, and those that selection and stopping look at."""
        wanted = [self.spec.eval.split]
        if self.spec.eval.select != "last":
            wanted.append(cast(Literal["valid", "test"], self.spec.eval.select.removeprefix("best_")))
        if self.spec.stop is not None and self.spec.stop.split != "train":
            wanted.append(self.spec.stop.split)
        return list(dict.fromkeys(wanted))

    def _select(self) -> None:
        """Keep the parameters when the selecting score is the best so far (the first of equals)."""
        if self.spec.eval.select == "last":
            return
        progress, metric = self.progress, self.experiment.metric
        value = progress.scored[self.spec.eval.select.removeprefix("best_")][metric]
        if value is None:
            return
        sign = 1.0 if self.experiment.metric_of(metric).better == "higher" else -1.0
        if not progress.best or sign * value > sign * progress.best["value"]:
            progress.best = {
                "step": progress.step,
                "value": value,
                "scored": {split: dict(scores) for split, scores in progress.scored.items()},
            }
            self.writer.save_parameters("best", self.trainer.state().params)

    def _judge(self, value: float, step: int) -> None:
        """Count a look towards the stopping rule."""
        stop, progress = self.spec.stop, self.progress
        assert stop is not None
        if progress.steps_to_solve is not None:
            return
        passes = value >= stop.threshold if self._threshold_better == "higher" else value <= stop.threshold
        progress.passed = progress.passed + 1 if passes else 0
        if progress.passed >= stop.window:
            progress.steps_to_solve = step

    def _rows(self, split: str, values: Mapping[str, float]) -> None:
        step = self.progress.step
        seconds = time.perf_counter() - self._began
        self.writer.metrics(
            [
                {
                    "step": step,
                    "sequences": step * self.spec.data.batch_size,
                    "split": split,
                    "metric": name,
                    "value": float(value),
                    "seconds": seconds,
                }
                for name, value in values.items()
            ]
        )


class _Schedule:
    """Steps at which something is due: spaced evenly in their logarithm, and the last one."""

    def __init__(self, per_decade: int, last: int | None, step: int) -> None:
        self._steps = log_spaced(per_decade, last)
        self._last = last
        self.step = next(self._steps)
        self.passed(step)

    def due(self, step: int) -> bool:
        """Whether the next of them has come."""
        return step >= self.step or step == self._last

    def passed(self, step: int) -> None:
        """Go on to the first of them after `step`."""
        while self.step <= step and self.step != self._last:
            self.step = next(self._steps)

    def end(self, step: int) -> None:
        """Take `step` for the last: a run may end before its budget does."""
        self._last = step


class _Pace:
    """How many steps to ask for at a time. The numbers do not depend on it, only the wait for a signal does.

    The rate is that of the present stretch between two looks, compilation left out; a stretch begins at the last one's.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._rate = 0.0

    def begin(self, step: int) -> None:
        """Begin a stretch at `step`, nothing being under way."""
        self._step, self._began = step, time.perf_counter() - self._trainer.compile_seconds

    def learn(self, step: int) -> None:
        """Take into account that the numbers of all steps up to `step` have come."""
        seconds = time.perf_counter() - self._trainer.compile_seconds - self._began
        if step > self._step and seconds > 0:
            self._rate = (step - self._step) / seconds

    def steps(self) -> int:
        """Return about `DISPATCH_SECONDS` worth of steps."""
        return max(1, int(self._rate * DISPATCH_SECONDS))


class _Safety:
    """When the next checkpoint is due."""

    def __init__(self, hooks: Hooks, step: int) -> None:
        self._hooks = hooks
        self.done(step)

    def due(self, step: int) -> bool:
        """Whether enough time or steps have gone by."""
        if self._hooks.checkpoint_steps is not None:
            return step - self._step >= self._hooks.checkpoint_steps
        return time.perf_counter() - self._time >= self._hooks.checkpoint_seconds

    def done(self, step: int) -> None:
        """Start counting anew."""
        self._step, self._time = step, time.perf_counter()


def _pieces(whole: Batch) -> list[Batch]:
    """Cut an evaluation set into equal pieces of at most `EVAL_PIECE` sequences, the last one padded at weight zero."""
    count = -(-whole.size // EVAL_PIECE)
    size = -(-whole.size // count)
    starts = range(0, whole.size, size)
    return [pad_rows(whole.take(np.arange(start, min(start + size, whole.size))), size) for start in starts]


def starting_state(experiment: Experiment, network: Any) -> TrainState:
    """Draw the parameters and buffers that a run starts from, in the dtype that they are kept in."""
    dtype = STORAGE[experiment.spec.precision]
    seed = experiment.spec.seed

    def cast_floats(arrays: dict[str, NDArray]) -> dict[str, NDArray]:
        return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}

    return TrainState(cast_floats(network.initial(seed)), {}, cast_floats(network.initial_buffers(seed)), 0)
