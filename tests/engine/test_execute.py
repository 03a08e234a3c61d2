"""Runs from plan to record: what is done is left alone, what was interrupted goes on, what fails harms nothing else."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench import train as loop
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.torch.trainer import TorchTrainer
from rnnbench.engine import Options, Planned, Watcher, execute
from rnnbench.engine.single import out_of_resources
from rnnbench.errors import BadInput, CorruptData, Interrupted, Locked, OutOfResources, RnnbenchError
from rnnbench.experiment import resolve
from rnnbench.record import Status
from rnnbench.spec import RunSpec
from rnnbench.store import RunFolder, Store, checkpoints, files
from rnnbench.train import Event

ONE = Options(threads=1, checkpoint_steps=7)
Plan = Callable[..., Planned]
Bits = Callable[[RunFolder], Any]
FolderOf = Callable[[Planned], RunFolder]


@pytest.fixture(autouse=True)
def _short_dispatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps at a time, so that a signal finds a run under way."""
    monkeypatch.setattr(loop._Pace, "steps", lambda self: 3)


def striking(number: int, step: int) -> Watcher:
    """Send this process a signal, once, when a run gets to `step`."""
    sent: list[int] = []

    def progress(planned: Planned, event: Event) -> None:
        if event.step >= step and not sent:
            sent.append(number)
            signal.raise_signal(number)

    return Watcher(progress=progress)


def test_what_is_done_is_left_alone(
    planned: Plan, store: Store, snapshot: Callable[[Path], Any], folder_of: FolderOf
) -> None:
    plan = [planned(), planned(seed=1)]
    notes: list[str] = []
    first = execute(plan, store, ONE, Watcher(note=notes.append))
    assert [(each.ok, each.already) for each in first] == [(True, False)] * 2
    before = snapshot(store.root)
    began: list[Planned] = []
    second = execute(plan, store, ONE, Watcher(started=began.append, note=notes.append))
    assert [(each.ok, each.already) for each in second] == [(True, True)] * 2
    assert snapshot(store.root) == before
    assert not began
    assert notes == ["2 runs, 2 to run", "2 runs, 0 to run"]
    assert [each.record for each in second] == [folder_of(each).record() for each in plan]


def test_defaults_that_are_spelled_out_are_the_same_experiment(planned: Plan) -> None:
    bare = planned().experiment.digest
    spelled = planned(
        task={"name": "adding", "T": 5, "markers": "halves", "values": None},
        cell={"name": "rnn", "hidden": 3, "activation": "tanh", "biases": 1},
        network={"layers": 1},
        optimizer={"name": "adam", "lr": 0.001},
        precision="float32",
        seed=0,
        device="cpu",
        record={"per_decade": 20},
    )
    assert spelled.experiment.digest == bare
    assert planned(optimizer={"name": "adam", "lr": 0.002}).experiment.digest != bare


def test_equal_experiments_under_two_labels_run_once(planned: Plan, store: Store) -> None:
    began: list[Planned] = []
    outcomes = execute([planned("a"), planned("b")], store, ONE, Watcher(started=began.append))
    assert [each.label for each in began] == ["a"]
    assert outcomes[0].record is outcomes[1].record is not None
    assert len(store.folders()) == 1


CELL = """
from rnnbench.cells.rnn import RNN
class Mine(RNN):
    name = "mine"
"""


def test_editing_a_users_cell_is_a_new_experiment(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "edited_cell.py"
    file.write_text(CELL)
    make = lambda: planned(cell={"name": "edited_cell:Mine", "hidden": 3}).experiment.digest  # noqa: E731
    before = make()
    assert make() == before
    file.write_text(CELL + "# edited\n")
    assert make() != before
    file.write_text(CELL)
    assert make() == before


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_results_do_not_depend_on_the_order_of_runs(
    backend: str, planned: Plan, store: Store, tmp_path: Path, bits: Bits, folder_of: FolderOf
) -> None:
    plan = [planned(backend=backend, seed=seed) for seed in range(3)]
    execute(plan, store, ONE)
    other = Store(tmp_path / "other")
    execute([plan[2], plan[0], planned(backend=backend, seed=9), plan[1]], other, Options(threads=1))
    for each in plan:
        assert bits(folder_of(each)) == bits(other.folder(each.suite, each.experiment.digest))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_signal_ends_between_two_steps_and_the_run_goes_on_from_there(
    backend: str,
    number: int,
    status: int,
    planned: Plan,
    store: Store,
    tmp_path: Path,
    bits: Bits,
    folder_of: FolderOf,
) -> None:
    run, later = planned(backend=backend), planned(backend=backend, seed=1)
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    for step in (4, 11, 27):
        with pytest.raises(Interrupted, match="the same command goes on from there") as caught:
            execute([run, later], store, ONE, striking(number, step))
        assert caught.value.exit_status == status
        record = folder_of(run).record()
        assert record is not None
        assert (record.status, record.status.final) == (Status.INTERRUPTED, False)
        assert record.steps >= step
        assert f"checkpoint of step {record.steps} is kept" in str(caught.value)
        assert not folder_of(later).path.exists()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert len(outcome.record.resumed) == 3
    assert outcome.record.resumed_inexact == ()
    assert bits(folder_of(run)) == bits(whole.folder(run.suite, run.experiment.digest))


def test_a_signal_before_the_first_step(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    run = planned()
    with pytest.raises(Interrupted):
        execute([run], store, ONE, Watcher(started=lambda planned: signal.raise_signal(signal.SIGTERM)))
    record = folder_of(run).record()
    assert record is not None
    assert (record.status, record.steps) == (Status.INTERRUPTED, 0)
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert outcome.record.resumed == (0,)


def test_a_signal_during_the_last_step_says_that_the_run_is_done(planned: Plan, store: Store) -> None:
    with pytest.raises(Interrupted, match=r"after run · torch · seed 0, which is done"):
        execute([planned(), planned(seed=1)], store, ONE, striking(signal.SIGTERM, 30))
    assert len(store.folders()) == 1


def test_a_second_interrupt_does_not_wait(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    def twice(planned: Planned, event: Event) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        execute([planned()], store, ONE, Watcher(progress=twice))
    folder = folder_of(planned())
    assert not folder.is_locked()
    (outcome,) = execute([planned()], store, ONE)
    assert outcome.ok


def interrupted(run: Planned, store: Store, options: Options = ONE) -> None:
    with pytest.raises(Interrupted):
        execute([run], store, options, striking(signal.SIGTERM, 11))


def test_a_resumed_run_keeps_its_number_of_threads(planned: Plan, store: Store) -> None:
    run = planned()
    interrupted(run, store, replace(ONE, threads=2))
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert outcome.record.environment.threads == 2
    assert outcome.record.resumed_inexact == ()


def test_jax_tells_the_threads_that_it_has_in_truth(
    planned: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA's pool is sized once in a process; a run that resumes beside it says that it may differ."""
    monkeypatch.setattr(JaxBackend, "_threads", 1)
    run = planned(backend="jax")
    interrupted(run, store)
    monkeypatch.setattr(JaxBackend, "_threads", 3)
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert outcome.record.environment.threads == 3
    assert [reason.partition(":")[0] for reason in outcome.record.resumed_inexact] == ["threads"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("cpu", "Another processor", "cpu: Another processor before step"),
        ("version of torch", "1.0", "version of torch: 1.0 before step"),
        ("path", "reference", "path: reference before step"),
    ],
)
def test_another_machine_or_version_is_recorded(
    key: str, value: str, reason: str, planned: Plan, store: Store, folder_of: FolderOf
) -> None:
    run = planned()
    interrupted(run, store)
    edit_position(folder_of(run), lambda position: position["identity"].update({key: value}))
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    (found,) = outcome.record.resumed_inexact
    assert found.startswith(reason)


def test_inexactness_is_remembered_over_further_resumes(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    run = planned()
    interrupted(run, store)
    edit_position(folder_of(run), lambda position: position["identity"].update({"cpu": "Another"}))
    with pytest.raises(Interrupted):
        execute([run], store, ONE, striking(signal.SIGTERM, 25))
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert len(outcome.record.resumed_inexact) == 1
    assert len(outcome.record.resumed) == 2


def edit_position(folder: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    with folder.lock():
        checkpoint = folder.checkpoint()
        assert checkpoint is not None
        position: Any = dict(checkpoint.position)
        change(position)
        checkpoints.save_checkpoint(folder.path, folder.digest, checkpoint.arrays, position, checkpoint.files)


def test_a_checkpoint_without_what_the_loop_counts_is_refused(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    run = planned()
    interrupted(run, store)
    edit_position(folder_of(run), lambda position: position.pop("passed"))
    (outcome,) = execute([run], store, ONE)
    assert isinstance(outcome.error, CorruptData)
    assert "'passed'" in str(outcome.error)


def test_a_damaged_checkpoint_is_named(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    run = planned()
    interrupted(run, store)
    path = folder_of(run).path / checkpoints.ARRAYS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (outcome,) = execute([run], store, ONE)
    assert isinstance(outcome.error, CorruptData)
    assert checkpoints.ARRAYS in str(outcome.error)


def test_a_locked_run_is_an_error_alone_and_skipped_among_others(
    planned: Plan, store: Store, folder_of: FolderOf
) -> None:
    held, other = planned(), planned(seed=1)
    with folder_of(held).lock():
        with pytest.raises(Locked, match="another process"):
            execute([held], store, ONE)
        outcomes = execute([held, other], store, ONE)
    assert isinstance(outcomes[0].error, Locked)
    assert outcomes[1].ok
    (outcome,) = execute([held], store, ONE)
    assert outcome.ok


FRAGILE = """
import os
from rnnbench.cells.rnn import RNN
class Fragile(RNN):
    name = "fragile"
    def step(self, xp, params, states, u, context):
        if os.path.exists("broken"):
            raise RuntimeError("it broke")
        return super().step(xp, params, states, u, context)
"""


def test_a_failed_run_is_recorded_harms_no_other_and_is_retried(
    planned: Plan, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: FolderOf
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragile_cell.py").write_text(FRAGILE)
    (tmp_path / "broken").touch()
    run = planned(cell={"name": "fragile_cell:Fragile", "hidden": 3})
    outcomes = execute([run, planned()], store, ONE)
    assert "RuntimeError: it broke (in step, line 8 of " in str(outcomes[0].error)
    assert outcomes[1].ok
    record = folder_of(run).record()
    assert record is not None
    assert (record.status, record.error) == (Status.FAILED, "RuntimeError: it broke")
    (tmp_path / "broken").unlink()
    (outcome,) = execute([run], store, ONE)
    assert outcome.ok


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; MemoryError"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; RuntimeError: CUDA out of"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    ],
)
def test_what_runs_out_is_exit_status_5(
    error: Exception,
    said: str,
    planned: Plan,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: Bits,
    folder_of: FolderOf,
) -> None:
    run = planned()
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    train = TorchTrainer.train

    def fail(self: TorchTrainer, batches: Any, rates: Any) -> Any:
        if self.state().step >= 15:
            raise error
        return train(self, batches, rates)

    with monkeypatch.context() as patched:
        patched.setattr(TorchTrainer, "train", fail)
        (outcome,) = execute([run], store, ONE)
    assert isinstance(outcome.error, OutOfResources)
    assert outcome.error.exit_status == 5
    assert said in str(outcome.error)
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert outcome.record.resumed[0] > 0
    assert bits(folder_of(run)) == bits(whole.folder(run.suite, run.experiment.digest))


def test_memory_that_runs_out_while_a_run_is_made_ready(
    planned: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TorchTrainer, state: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(TorchTrainer, "load", fail)
    (outcome,) = execute([planned()], store, ONE)
    assert isinstance(outcome.error, OutOfResources)


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes differ"), OSError(errno.EIO, "x")])
def test_what_is_no_shortage(error: Exception) -> None:
    assert out_of_resources(error) is None


class Killed(BaseException):
    """The process would be dead."""


def test_a_kill_while_something_is_written_loses_nothing(
    planned: Plan,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: Bits,
    folder_of: FolderOf,
) -> None:
    """Die before the n-th rename of a try, for every n in turn, until the run is done for all that."""
    run = planned()
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    real, left = os.replace, [0]

    def rename(*names: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(*names)

    class Mortal:
        def __getattr__(self, name: str) -> Any:
            return rename if name == "replace" else getattr(os, name)

    monkeypatch.setattr(files, "os", Mortal())
    monkeypatch.setattr(checkpoints, "os", Mortal())
    kills = 0
    for attempt in range(60):
        left[0] = attempt
        try:
            execute([run], store, ONE)
            break
        except Killed:
            kills += 1
    assert kills > 5
    assert bits(folder_of(run)) == bits(whole.folder(run.suite, run.experiment.digest))


def test_a_disk_that_fills_up_at_any_write_loses_nothing(
    planned: Plan, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: Bits, folder_of: FolderOf
) -> None:
    run = planned()
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    left = [0]

    def write(handle: int, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(handle, data)

    class Full:
        def __getattr__(self, name: str) -> Any:
            return write if name == "write" else getattr(os, name)

    monkeypatch.setattr(files, "os", Full())
    failures = 0
    for attempt in range(60):
        left[0] = attempt
        (outcome,) = execute([run], store, ONE)
        if outcome.error is None:
            break
        assert outcome.error.exit_status == 5
        assert "No space left on device" in str(outcome.error)
        failures += 1
    assert failures > 3
    assert bits(folder_of(run)) == bits(whole.folder(run.suite, run.experiment.digest))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"backend": "numpy"}, BadInput, "numpy is the reference for forward passes and does not train"),
        ({"precision": "tf32"}, BadInput, "tf32 is a mode of NVIDIA GPUs"),
        ({"device": "tpu"}, BadInput, "torch cannot use tpu"),
        ({"device": "cuda:97"}, BadInput, "torch cannot use cuda:97"),
        ({"backend": "jax", "device": "cuda:97"}, BadInput, "jax cannot use cuda:97"),
        ({"eval": {"n": 10**12}}, OutOfResources, "eval.n: 1000000000000 sequences need"),
        ({"data": {"batch_size": 4, "train_n": 10**12}}, OutOfResources, "data.train_n: 1000000000000 sequences"),
        ({"data": {"batch_size": 10**6}, "task": {"name": "adding", "T": 10**6}}, OutOfResources, "data.batch_size"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    changes: dict[str, Any], kind: type[RnnbenchError], said: str, planned: Plan, store: Store
) -> None:
    with pytest.raises(kind, match=said):
        execute([planned(), planned(**changes)], store, ONE)
    assert not store.root.exists()


def test_a_stored_set_has_only_what_it_has(store: Store) -> None:
    values: dict[str, Any] = {"task": "digits", "cell": {"name": "rnn", "hidden": 3}, "budget": {"steps": 2}}
    spec = RunSpec.parse(values | {"eval": {"n": 10**9, "every": 2}}, "")
    (outcome,) = execute([Planned("suite", "all", resolve(spec))], store, ONE)
    assert outcome.ok
    spec = RunSpec.parse(values | {"data": {"train_n": 10**6}}, "")
    (outcome,) = execute([Planned("suite", "more", resolve(spec))], store, ONE)
    assert isinstance(outcome.error, BadInput)
    assert "data.train_n: 1000000 sequences asked for, the set has" in str(outcome.error)


def test_the_record_tells_of_the_run(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    run = planned(eval={"n": 20, "every": 10, "select": "best_valid", "split": "test"})
    (outcome,) = execute([run], store, ONE)
    record = outcome.record
    assert record is not None
    scored = {
        (row["step"], row["split"]): row["value"]
        for row in folder_of(run).metrics().to_pylist()
        if row["metric"] == "mse"
    }
    best = min((0, 10, 20, 30), key=lambda step: scored[step, "valid"])
    assert (record.summary.step, record.summary.select, record.summary.better) == (best, "best_valid", "lower")
    assert record.summary.metrics["mse"] == scored[best, "test"]
    assert record.steps == 30
    assert record.sequences == 120
    assert record.parameters == 3 * 2 + 3 * 3 + 3 + 3 + 1
    assert set(record.baselines["mse"]) == {"constant"}
    times = record.timings
    assert times.compile_s + times.train_s + times.eval_s == pytest.approx(times.total_s)


def test_many_runs_leave_no_files_open_and_no_memory_behind(planned: Plan, store: Store) -> None:
    """Twenty runs of one shape: as many descriptors as after the first few, and the same tensors alive."""
    import gc

    import torch

    def alive() -> tuple[int, int]:
        gc.collect()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), tensors

    plan = [planned(seed=seed, budget={"steps": 2}) for seed in range(23)]
    execute(plan[:3], store, ONE)
    before = alive()
    execute(plan[3:], store, ONE)
    after = alive()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 2


def test_a_summary_without_a_score_is_null(planned: Plan, store: Store) -> None:
    run = planned(optimizer={"name": "sgd", "lr": 1e6}, cell={"name": "rnn", "hidden": 3, "activation": "relu"})
    with np.errstate(all="ignore"):
        (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert (outcome.record.status, outcome.record.first_bad_step, outcome.ok) == (Status.DIVERGED, 2, False)
    assert outcome.record.summary.step == 0
