"""The loop on real backends, against the same steps taken one by one, and against itself executed otherwise."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rnnbench import train as loop
from rnnbench.backends.base import TrainState
from rnnbench.record import Status
from rnnbench.train import Hooks, Progress

Prepare = Callable[..., Any]
RICH: dict[str, Any] = {
    "eval": {"n": 20, "every": 7, "select": "best_valid"},
    "stop": {"metric": "mse", "threshold": 1e-9, "window": 3, "split": "valid"},
}


def one_by_one(run: Any, steps: int) -> list[dict[str, float]]:
    """Take training steps singly and fetch after each: the slow, obvious loop."""
    source, rate = run.experiment.source(), run.experiment.optimizer.lr
    numbers = []
    for step in range(steps):
        log = run.trainer.train([source.batch("train", step).cast("float32")], [rate])
        numbers.append({name: float(values[0]) for name, values in log.fetch().items()})
    return numbers


def test_the_loop_takes_the_steps_that_it_should(backend: str, prepare: Prepare) -> None:
    run = prepare(backend).go()
    slow = prepare(backend)
    numbers = one_by_one(slow, 30)
    assert run.status == Status.COMPLETED
    for name in ("loss", "grad_norm"):
        for step, value in run.values("train", name).items():
            assert value == numbers[step - 1][name], (name, step)
    state, expected = run.trainer.state(), slow.trainer.state()
    assert state.step == expected.step == 30
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(state.arrays()[name], array, err_msg=name)
    for name, array in expected.params.items():
        np.testing.assert_array_equal(run.saved["final"][name], array, err_msg=name)


def test_dispatches_and_checkpoints_change_no_bit(
    backend: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(backend, **RICH).go().bits()
    sizes = random.Random(0)
    for steps in (lambda: 1, lambda: 5, lambda: sizes.randint(1, 9)):
        monkeypatch.setattr(loop._Pace, "steps", lambda self, steps=steps: steps())
        assert prepare(backend, **RICH).go().bits() == expected
    for every in (1, 4):
        saving = prepare(backend, **RICH).go(Hooks(checkpoint_steps=every))
        assert saving.bits() == expected
        assert len(saving.checkpoints) >= 30 // (every + 8)


def test_interrupted_and_resumed_again_and_again(
    backend: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(backend, **RICH).go().bits()
    sizes = random.Random(1)
    monkeypatch.setattr(loop._Pace, "steps", lambda self: sizes.randint(1, 4))
    run = prepare(backend, **RICH)
    for _ in range(60):
        calls = iter([False] * sizes.randint(1, 3))
        run.go(Hooks(interrupted=lambda calls=calls: next(calls, True)))  # type: ignore[misc]  # a default binds it
        if run.status != Status.INTERRUPTED:
            break
        arrays, position = run.checkpoints[-1]
        fresh = prepare(backend, **RICH)
        fresh.trainer.load(TrainState.from_arrays(arrays, position["step"]))
        fresh.progress = replace(Progress(), **position)
        fresh.rows, fresh.saved = run.rows, run.saved
        run = fresh
    assert run.bits() == expected


def test_solved_on_training_batches_at_the_very_step(
    backend: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [numbers["loss"] for numbers in one_by_one(prepare(backend), 30)]
    window = 2
    pairs = [max(pair) for pair in itertools.pairwise(losses)]
    threshold = sorted(pairs)[len(pairs) // 3]
    solved = next(index for index, high in enumerate(pairs) if high <= threshold) + window
    stop = {"threshold": threshold, "window": window, "split": "train"}
    for size in (1, 6):
        monkeypatch.setattr(loop._Pace, "steps", lambda self, size=size: size)
        run = prepare(backend, stop=stop).go()
        assert (run.status, run.progress.steps_to_solve) == (Status.SOLVED, solved)


def test_a_metric_of_training_batches_can_stop(backend: str, prepare: Prepare) -> None:
    """The mean squared error is the adding task's loss too: both must stop at the same step."""
    losses = [numbers["loss"] for numbers in one_by_one(prepare(backend), 30)]
    threshold = sorted(losses)[5]
    solved = 1 + next(index for index, loss in enumerate(losses) if loss <= threshold)
    run = prepare(backend, stop={"metric": "mse", "threshold": threshold * (1 + 1e-6), "split": "train"}).go()
    assert (run.status, run.progress.steps_to_solve) == (Status.SOLVED, solved)
    assert run.values("train", "mse")


DIVERGING: dict[str, Any] = {
    "cell": {"name": "rnn", "hidden": 3, "activation": "relu"},
    "eval": {"n": 20, "every": 500},
    "record": {"per_decade": 1},
    "budget": {"steps": 500},
}


@pytest.mark.parametrize(("lr", "bad"), [(1e6, 2), (20.0, 10)])
def test_divergence_is_found_at_its_first_step_the_same_on_both(
    backend: str, lr: float, bad: int, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DIVERGING | {"optimizer": {"name": "sgd", "lr": lr}}
    numbers = one_by_one(prepare(backend, **settings), 12)
    assert 1 + next(index for index, each in enumerate(numbers) if not math.isfinite(each["loss"])) == bad
    for size in (1, 4, 100):
        monkeypatch.setattr(loop._Pace, "steps", lambda self, size=size: size)
        run = prepare(backend, **settings).go()
        assert (run.status, run.progress.first_bad_step) == (Status.DIVERGED, bad)
        assert run.values("train", "loss")[1] == numbers[0]["loss"]
        assert set(run.saved) == {"final"}


def test_the_best_parameters_score_what_the_summary_says(backend: str, prepare: Prepare) -> None:
    settings: dict[str, Any] = {"eval": {"n": 20, "every": 3, "select": "best_valid", "split": "test"}}
    run = prepare(backend, optimizer={"name": "sgd", "lr": 0.3}, **settings).go()
    scores = run.values("valid", "mse")
    best = min(scores, key=lambda step: scores[step])
    assert run.progress.best["step"] == best
    assert best not in (0, 30), "the case is too easy: another learning rate is needed"
    again = prepare(backend, optimizer={"name": "sgd", "lr": 0.3}, **settings)
    again.trainer.load(TrainState(run.saved["best"]))
    for split in ("valid", "test"):
        piece = again.experiment.source().evaluation(split).cast("float32")
        assert again.trainer.evaluate([piece]) == run.progress.best["scored"][split]


def test_an_evaluation_in_pieces_is_that_of_the_whole(
    backend: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for most in (500, 7):
        monkeypatch.setattr(loop, "EVAL_PIECE", most)
        run = prepare(backend, budget={"steps": 1}, precision="float64", eval={"n": 20, "every": 1}).go()
        found.append(run.progress.scored["valid"])
    assert set(found[0]) == {"loss", "mse", "correct", "correct_squared"}
    for name, value in found[0].items():
        # sums of 20 float64 terms in another order
        assert found[1][name] == pytest.approx(value, rel=1e-14), name


def test_seeds_share_what_is_compiled(prepare: Prepare) -> None:
    first = prepare("jax", budget={"steps": 3}).go()
    second = prepare("jax", budget={"steps": 3}, seed=1, optimizer={"name": "adam", "lr": 0.01}).go()
    assert second.trainer.compile_seconds == 0.0
    assert first.values("train", "loss") != second.values("train", "loss")


def test_compiled_programs_do_not_pile_up(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnbench.backends.jax import trainer as jax_trainer

    monkeypatch.setattr(jax_trainer, "KEPT_PROGRAMS", 3)
    for hidden in (11, 12, 13, 14, 11):
        run = prepare("jax", cell={"name": "rnn", "hidden": hidden})
        assert len(jax_trainer._COMPILED) <= 3
    kept = list(jax_trainer._COMPILED)
    prepare("jax", cell={"name": "rnn", "hidden": 13})
    assert list(jax_trainer._COMPILED) == [*(key for key in kept if key[0].network.cell.hidden != 13), kept[0]]
    assert run.trainer.compile_seconds == 0.0
