"""The temporal order task decoded from its inputs."""

from __future__ import annotations

import numpy as np
import pytest

from rnnbench.errors import BadInput
from rnnbench.streams import stream
from rnnbench.tasks.temporal_order import TemporalOrder


@pytest.mark.parametrize("T", [10, 55, 100])
def test_pascanu(T: int) -> None:
    task = TemporalOrder(T=T)
    batch = task.sample(stream(1, "test"), 2000, 1.0)
    codes = np.argmax(batch.inputs, axis=-1)
    assert np.all(batch.inputs.sum(axis=-1) == 1.0)
    firsts, seconds = set(), set()
    for b in range(2000):
        places = [t for t in range(T) if codes[t, b] in (0, 1)]
        assert len(places) == 2
        firsts.add(places[0])
        seconds.add(places[1])
        assert batch.targets[b] == codes[places[0], b] + 2 * codes[places[1], b]
    tenth = T // 10
    assert firsts == set(range(tenth, 2 * tenth))
    assert seconds == set(range(T // 2, T // 2 + tenth))
    assert set(np.unique(codes)) == set(range(6))
    counts = np.bincount(batch.targets, minlength=4)
    assert np.sum((counts - 500.0) ** 2 / 500.0) < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


def test_1997() -> None:
    task = TemporalOrder(variant="hs1997_6a")
    batch = task.sample(stream(2, "test"), 3000, 1.0)
    firsts, seconds = set(), set()
    for b in range(3000):
        n = int(batch.lengths[b])
        assert np.all(batch.inputs[:n, b].sum(axis=-1) == 1.0)
        assert not batch.inputs[n:, b].any()
        codes = np.argmax(batch.inputs[:n, b], axis=-1).tolist()
        assert codes[0] == 6
        assert codes[-1] == 7
        assert codes.count(6) == codes.count(7) == 1
        t1, t2 = (t for t, code in enumerate(codes) if code < 2)
        firsts.add(t1)
        seconds.add(t2)
        assert batch.targets[b] == codes[t1] + 2 * codes[t2]
    assert firsts == set(range(10, 21))
    assert seconds == set(range(50, 61))
    assert set(batch.lengths.tolist()) == set(range(100, 111))
    assert (task.n_in, task.n_out, task.length, task.lag) == (8, 4, 110, 99)


@pytest.mark.parametrize("variant", ["pascanu", "hs1997_6a"])
@pytest.mark.parametrize("difficulty", [1e-6, 0.1, 0.37, 0.99])
def test_difficulty_keeps_the_task_well_formed(variant: str, difficulty: float) -> None:
    task = TemporalOrder(variant=variant)  # type: ignore[arg-type]  # one of the two
    batch = task.sample(stream(3, "test"), 200, difficulty)
    assert batch.inputs.shape == (task.length, 200, task.n_in)
    for b in range(200):
        n = int(batch.lengths[b])
        codes = np.argmax(batch.inputs[:n, b], axis=-1).tolist()
        t1, t2 = (t for t, code in enumerate(codes) if code < 2)
        assert batch.targets[b] == codes[t1] + 2 * codes[t2]
        assert t1 < t2 < n
        assert not batch.inputs[n:, b].any()
    assert batch.lengths.max() <= max(10, round(difficulty * 110) + 4)


def test_parameters_out_of_range() -> None:
    for values in ({"T": 9}, {"T": 100, "variant": "hs1997_6a"}, {"variant": "6b"}):
        with pytest.raises(BadInput):
            TemporalOrder.parse(values, "task")
