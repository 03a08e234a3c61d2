"""What every task must keep to, and the first batch that each variant has always had.

`golden.json` lists the variants. Setting RNNBENCH_WRITE_GOLDEN=1 fills in new entries and those whose task has raised
its version; a batch that changed under the same version stays a failure.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec
from rnnbench.tasks.base import Batch, GeneratedTask, StoredTask, Task

GOLDEN = Path(__file__).with_name("golden.json")
ENTRIES: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())
SPEC = DataSpec(batch_size=4)


def build(values: dict[str, Any]) -> Task:
    kind = registry.load("tasks", values["name"])
    task: Task = kind.parse({key: value for key, value in values.items() if key != "name"}, "task")
    return task


@pytest.fixture(params=sorted(ENTRIES))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def task(variant: str, made_up_mnist: dict[str, NDArray]) -> Task:
    return build(ENTRIES[variant]["task"])


def judged(task: Task) -> str:
    """A split to evaluate on that has sequences."""
    return "valid" if not isinstance(task, StoredTask) or task.sizes()["valid"] else "test"


def same(one: Batch, two: Batch) -> bool:
    return one.sha256() == two.sha256()


def test_first_batch_never_changes_under_one_version(task: Task, variant: str) -> None:
    entry = ENTRIES[variant]
    found = task.open(0, 0, SPEC, 16).batch("train", 0).cast("float64").sha256()
    if os.environ.get("RNNBENCH_WRITE_GOLDEN") and entry["version"] != task.version:
        entry |= {"version": task.version, "sha256": found}
        GOLDEN.write_text(json.dumps(ENTRIES, indent=1) + "\n")
    assert entry["version"] == task.version, "the version was raised: write the new hash (see above)"
    assert entry["sha256"] == found, f"the first batch of {variant} changed: raise {type(task).__name__}.version"


def test_every_task_is_in_the_table() -> None:
    assert {entry["task"]["name"] for entry in ENTRIES.values()} == set(registry.BUILT_IN["tasks"])


def test_shapes_and_types(task: Task) -> None:
    source = task.open(0, 0, SPEC, 16)
    for batch in (source.batch("train", 3), source.evaluation(judged(task))):  # type: ignore[arg-type]  # valid or test
        n = batch.size
        steps = (task.length,) if task.readout == "each" else ()
        assert batch.inputs.shape == (task.length, n, task.n_in)
        assert batch.inputs.dtype.kind == "f"
        assert np.all(np.isfinite(batch.inputs))
        if task.loss == "cross_entropy":
            assert batch.targets.shape == (*steps, n)
            assert batch.targets.dtype == np.int64
            assert batch.targets.min() >= 0
            assert batch.targets.max() < task.n_out
        else:
            assert batch.targets.shape == (*steps, n, task.n_out)
            assert batch.targets.dtype.kind == "f"
            assert np.all(np.isfinite(batch.targets))
        for mask in (batch.mask, *batch.masks.values()):
            assert mask.shape == (*steps, n)
            assert mask.min() >= 0.0
            assert mask.sum() > 0.0
        assert batch.lengths.shape == (n,)
        assert batch.lengths.dtype == np.int64
        assert 1 <= batch.lengths.min() <= batch.lengths.max() <= task.length
        assert task.variable_length or batch.lengths.min() == task.length


def test_metrics_and_baselines_name_each_other(task: Task) -> None:
    source = task.open(0, 0, SPEC, 16)
    assert task.metric in {*task.metrics, "loss"}
    masks = source.batch("train", 0).masks
    for metric in task.metrics.values():
        assert metric.mask is None or metric.mask in masks
        assert (metric.threshold is not None) == (metric.kind in ("within", "squared_within"))
    found = task.baselines(source, judged(task))  # type: ignore[arg-type]  # valid or test
    for baseline in found.values():
        assert baseline.metric in {*task.metrics, "loss"}
        assert np.isfinite(baseline.value)
        assert baseline.how
    assert task.metric in {baseline.metric for baseline in found.values()}


def test_batches_do_not_depend_on_the_order_of_calls(task: Task) -> None:
    one, two = task.open(1, 2, SPEC, 16), task.open(1, 2, SPEC, 16)
    forwards = [one.batch("train", step).sha256() for step in range(6)]
    two.evaluation(judged(task))  # type: ignore[arg-type]  # valid or test
    backwards = [two.batch("train", step).sha256() for step in reversed(range(6))][::-1]
    assert forwards == backwards
    assert len(set(forwards)) == 6


def test_evaluation_is_shared_across_seeds_and_apart_from_training(task: Task) -> None:
    one, two = task.open(1, 5, SPEC, 16), task.open(2, 5, SPEC, 16)
    split = judged(task)
    assert same(one.evaluation(split), two.evaluation(split))  # type: ignore[arg-type]  # valid or test
    assert not same(one.batch("train", 0), two.batch("train", 0))
    parts = ["train", "test"] + (["valid"] if split == "valid" else [])
    columns = {
        part: {column.tobytes() for column in np.moveaxis(_every(one, task, part).inputs, 1, 0)} for part in parts
    }
    if task.name != "mnist":  # the made-up images repeat; mnist's parts are compared by row number in its own test
        for i, part in enumerate(parts):
            for other in parts[i + 1 :]:
                assert not columns[part] & columns[other]


def _every(source: Any, task: Task, part: str) -> Batch:
    """All sequences of a stored part, or a batch of a generated one."""
    if isinstance(task, StoredTask):
        return task.rows(part, np.arange(min(task.sizes()[part], 2000)), 1.0)  # type: ignore[arg-type]  # a split
    batch: Batch = source.batch(part, 0)
    return batch


def test_fixed_training_set(task: Task) -> None:
    n = 10
    source = task.open(0, 7, DataSpec(batch_size=4, train_n=n), 16)
    assert source.train_size == n
    seen: dict[str, int] = {}
    for step in range(5):  # 20 draws: two epochs
        batch = source.batch("train", step)
        for b in range(4):
            key = batch.take(slice(b, b + 1)).sha256()
            seen[key] = seen.get(key, 0) + 1
    assert sum(seen.values()) == 20
    if task.name != "mnist":
        assert len(seen) == n
        assert set(seen.values()) == {2}
    # the seed orders the set, data_seed makes it
    other = task.open(1, 7, DataSpec(batch_size=10, train_n=n), 16).batch("train", 0)
    assert {other.take(slice(b, b + 1)).sha256() for b in range(10)} == set(seen)


def test_pickles_and_round_trips(task: Task, variant: str) -> None:
    assert pickle.loads(pickle.dumps(task)) == task
    again = type(task).parse(task.changed(), "task")
    assert again == task
    assert hash(again) == hash(task)
    source = task.open(3, 4, SPEC, 16)
    source.batch("train", 0)
    assert same(pickle.loads(pickle.dumps(source)).batch("train", 5), source.batch("train", 5))


def test_lag_fits_in_the_sequence(task: Task) -> None:
    assert task.lag is None or 0 < task.lag < task.length


def test_golden_fails_on_a_change(made_up_mnist: dict[str, NDArray]) -> None:
    source = build(ENTRIES["copy-A"]["task"]).open(0, 0, SPEC, 16)
    batch = source.batch("train", 0).cast("float64")
    batch.targets[-1, 0] += 1
    assert batch.sha256() != ENTRIES["copy-A"]["sha256"]


def test_another_process_draws_the_same_bytes() -> None:
    code = (
        "from rnnbench.spec import DataSpec; from rnnbench.tasks.adding import Adding; "
        "from rnnbench.tasks.forecast import Forecast; import sys\n"
        "for task in (Adding(T=30, markers='hs1997'), Forecast(file='mackey_glass')):\n"
        "    print(task.open(3, 4, DataSpec(), 8).batch('train', 9).sha256())\n"
        "assert not {'torch', 'jax', 'sklearn', 'pandas', 'pyarrow', 'seaborn'} & set(sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": s},
        ).stdout.split()
        for s in ("1", "2")
    ]
    from rnnbench.tasks.adding import Adding
    from rnnbench.tasks.forecast import Forecast

    here = [
        task.open(3, 4, DataSpec(), 8).batch("train", 9).sha256()
        for task in (Adding(T=30, markers="hs1997"), Forecast(file="mackey_glass"))
    ]
    assert runs == [here, here]


def test_a_fixed_set_has_one_difficulty() -> None:
    task = build({"name": "copy", "delay": 5})
    assert isinstance(task, GeneratedTask)
    source = task.open(0, 0, DataSpec(train_n=8), 4)
    with pytest.raises(BadInput, match="curriculum"):
        source.batch("train", 0, 0.5)
    assert source.evaluation("valid", 0.5).lengths.max() < task.length
