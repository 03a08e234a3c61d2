"""What makes two runs the same experiment, and what does not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rnnbench.cells.base import State
from rnnbench.cells.rnn import RNN
from rnnbench.errors import BadInput
from rnnbench.experiment import log_spaced, resolve
from rnnbench.spec import RunSpec

SPEC: dict[str, Any] = {"task": {"name": "adding", "T": 10}, "cell": {"name": "rnn", "hidden": 4}}


def digest(**changed: Any) -> str:
    return resolve(RunSpec.parse({**SPEC, **changed}, "spec")).digest


def test_a_default_written_out_is_the_same_experiment() -> None:
    assert digest() == digest(
        task={"name": "adding", "T": 10, "markers": "halves"},
        cell={"name": "rnn", "hidden": 4, "activation": "tanh"},
        optimizer={"name": "adam", "lr": 0.001},
        device="cpu",
        seed=0,
    )
    assert digest(device="cuda:1") == digest(device="cuda:0") == digest(device="cuda")


@pytest.mark.parametrize(
    "changed",
    [
        {"task": {"name": "adding", "T": 11}},
        {"cell": {"name": "rnn", "hidden": 5}},
        {"optimizer": {"name": "adam", "lr": 0.002}},
        {"techniques": ["clip_norm"]},
        {"network": {"layers": 2}},
        {"data": {"batch_size": 33}},
        {"backend": "jax"},
        {"device": "cuda"},
        {"precision": "float64"},
        {"path": "reference"},
        {"seed": 1},
        {"data_seed": 1},
        {"eval": {"n": 999}},
        {"stop": {"threshold": 0.1}},
        {"budget": {"steps": 999}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_part_of_a_spec_is_in_the_digest(changed: dict[str, Any]) -> None:
    assert digest(**changed) != digest()


def forecast(path: Path) -> dict[str, Any]:
    return {"name": "forecast", "file": str(path), "window": 4}


def test_a_users_file_counts_by_its_content_and_name_not_by_its_place(tmp_path: Path) -> None:
    rows = "y\n" + "\n".join(str(i * i % 17) for i in range(60)) + "\n"
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "series.csv").write_text(rows)
    here, there = (resolve(RunSpec.parse({**SPEC, "task": forecast(tmp_path / name / "series.csv")}, "spec"))
                   for name in ("here", "there"))  # fmt: skip
    assert here.digest == there.digest
    assert here.canonical()["task"] == {"name": "forecast", "file": "series.csv", "window": 4}
    assert here.spec.task.params["file"] == str(tmp_path / "here" / "series.csv")  # it has to be found again
    (tmp_path / "there" / "series.csv").write_text(rows.replace("16", "15"))
    assert digest(task=forecast(tmp_path / "there" / "series.csv")) != here.digest


@pytest.mark.parametrize("kind", ["cell", "backend"])
def test_an_edited_file_of_the_users_is_another_experiment(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = (
        "from rnnbench.cells.rnn import RNN\nfrom rnnbench.backends.torch import TorchBackend\n"
        "class Mine(RNN):\n    pass\nclass Own(TorchBackend):\n    pass\n"
    )
    file = Path(f"edited_{kind}.py")
    file.write_text(source)
    changed = {kind: f"{file.stem}:{'Mine' if kind == 'cell' else 'Own'}"}
    first = digest(**changed)
    assert digest(**changed) == first
    file.write_text(source + "# edited\n")
    assert digest(**changed) != first


def test_built_in_names_leave_the_import_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's could otherwise stand before a library of the same name that is imported later."""
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    digest()
    assert sys.path == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimizer": {"name": "sgd", "nesterov": True}}, "set momentum above 0"),
        ({"stop": {"metric": "acuracy", "threshold": 0.5}}, "stop.metric"),
        ({"eval": {"metric": "mze"}}, "did you mean mse"),
    ],
)
def test_what_does_not_fit_together_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        digest(**changed)


def test_recorded_steps_are_evenly_spaced_in_their_logarithm() -> None:
    assert list(log_spaced(2, 100)) == [1, 3, 10, 32, 100]
    assert list(log_spaced(20, 12)) == list(range(1, 13))
    assert list(log_spaced(1, 1)) == [1]
    steps = list(log_spaced(20, 10**6))
    assert steps[0] == 1
    assert steps[-1] == 10**6
    assert len(steps) == len(set(steps))
    assert sum(10**4 < step <= 10**5 for step in steps) == 20


class Nameless(RNN):
    """A cell whose class has no name of its own would show as its base; here it is taken away."""

    name = None  # type: ignore[assignment]  # the mistake under test


class Headless(RNN):
    """A cell that names no output."""

    name = "headless"

    def states(self) -> tuple[State, ...]:
        return (State("h", self.hidden),)


@pytest.mark.parametrize(("cell", "text"), [("Nameless", "has no name"), ("Headless", "0 states with output=True")])
def test_a_cell_that_cannot_serve_is_refused_in_one_line(cell: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "users_cells", sys.modules[__name__])
    spec = RunSpec.parse({"task": "adding", "cell": f"users_cells:{cell}"}, "")
    with pytest.raises(BadInput, match=text):
        resolve(spec)
