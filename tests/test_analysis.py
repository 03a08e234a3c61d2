"""Analyses: which runs belong together, what is measured on demand and kept, and what goes wrong about it."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import rnnbench
from rnnbench import registry
from rnnbench.analysis import Analysis, Asked, _labelled, _Run, analyze_folders, draw_pictures
from rnnbench.engine.ondemand import LEAN, point_of, probe_class, rebuild
from rnnbench.errors import BadInput
from rnnbench.evidence import Evidence
from rnnbench.findings import Finding, Severity
from rnnbench.record import RunRecord, Status
from rnnbench.signals import Signal
from rnnbench.spec import Ref, RunSpec
from rnnbench.store import RunFolder, Store
from rnnbench.store.frames import run_folders
from rnnbench.store.probed import FOLDER

MakeRun = Callable[..., RunFolder]
NONE = Asked(probes=())


def height(value: float, step: int = 7) -> Signal:
    return Signal("level.height", (), "m", step, np.asarray(value))


def seen_by(fakes: Any, *wanted: RunFolder, asked: Asked = NONE) -> list[Evidence]:
    """Return the evidence that an analyzer is given."""
    given: list[Evidence] = []

    def look(evidence: Evidence) -> list[Finding]:
        given.append(evidence)
        return []

    sys.modules["fake_things"].look = look  # type: ignore[attr-defined]  # made by the fixture
    fakes.analyzers["look"] = "fake_things:look"
    analyze_folders(wanted, asked)
    return given


def test_runs_that_differ_by_seed_alone_are_one_arm(make_run: MakeRun, fakes: Any) -> None:
    stop = {"metric": "accuracy", "threshold": 0.9}
    runs = [make_run(seed, stop=stop, data={"batch_size": 16}) for seed in (2, 0, 1)]
    (evidence,) = seen_by(fakes, *runs)
    assert [run.seed for run in evidence.runs] == [0, 1, 2]
    assert [run.digest for run in evidence.runs] == [runs[i].digest for i in (1, 2, 0)]
    assert evidence.subject == "copy rnn · torch"
    assert (evidence.task, evidence.length, evidence.lag) == ("copy", 25, 15)
    assert (evidence.metric, evidence.better, evidence.threshold) == ("accuracy", "higher", 0.9)
    assert (evidence.precision, evidence.batch_size) == ("float32", 16)
    assert "seed" not in evidence.spec
    run = evidence.runs[0]
    assert (run.status, run.steps, run.final, run.baselines) == ("completed", 7, 0.25, {"guess": 0.125})
    assert run.metrics is not None
    assert run.metrics[["step", "split", "metric", "value"]].to_numpy().tolist() == [[7, "valid", "loss", 0.5]]


def test_a_threshold_on_another_metric_is_none(make_run: MakeRun, fakes: Any) -> None:
    (evidence,) = seen_by(fakes, make_run(stop={"metric": "loss", "threshold": 0.9}))
    assert evidence.threshold is None


def test_arms_are_named_by_what_tells_them_apart(make_run: MakeRun, fakes: Any) -> None:
    runs = [
        make_run(cell={"name": "rnn", "hidden": 3}),
        make_run(cell={"name": "rnn", "hidden": 4}),
        make_run(cell={"name": "rnn", "hidden": 4}, backend="jax"),
        make_run(cell={"name": "gru", "hidden": 4}),
        make_run(cell={"name": "rnn", "hidden": 3}, suite="other"),
        make_run(data_seed=1),
    ]
    subjects = {evidence.subject for evidence in seen_by(fakes, *runs)}
    assert subjects == {
        "mine: copy rnn hidden=3 data_seed=default · torch",
        "mine: copy rnn hidden=3 data_seed=1 · torch",
        "mine: copy rnn hidden=4 data_seed=default · torch",
        "mine: copy rnn hidden=4 data_seed=default · jax",
        "mine: copy gru · torch",
        "other: copy rnn · torch",
    }


def test_a_registered_suite_names_its_arms_in_its_order(fakes: Any) -> None:
    folders = run_folders(Path(__file__).parents[1] / "results" / "quickstart")
    subjects = [evidence.subject for evidence in seen_by(fakes, *folders)]
    assert len(subjects) == 24
    assert subjects[:3] == ["adding T=50 rnn · jax", "adding T=50 rnn · torch", "adding T=50 lstm · jax"]
    assert subjects[-1] == "El Nino +3 months gru · torch"


def test_runs_of_different_code_are_different_arms(make_run: MakeRun, fakes: Any) -> None:
    """The same spec and seed under two versions of a cell are two experiments, and no two seeds of one."""
    first = make_run()
    record = first.record()
    assert record is not None
    digest = "ab" * 32
    second = Store(first.path.parent.parent).folder("mine", digest)
    second.path.mkdir()
    resolved = record.resolved.model_copy(update={"components": {**record.resolved.components, "cell": 0}})
    other = record.model_copy(update={"digest": digest, "resolved": resolved, "files": {}})
    (second.path / "run.json").write_bytes(other.to_json())
    subjects = [evidence.subject for evidence in seen_by(fakes, first, second)]
    assert sorted(subjects) == sorted(f"copy rnn · torch ({digest[:8]})" for digest in (first.digest, "ab" * 32))


def test_what_was_not_recorded_is_measured_once(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(seed) for seed in (0, 1)]
    first = analyze_folders(runs, Asked())
    assert [(digest, step) for digest, step, _, _ in fakes.calls] == [(run.digest, 7) for run in runs]
    again = analyze_folders(runs, Asked())
    assert len(fakes.calls) == 2
    assert again.findings == first.findings
    assert [(f.code, f.value, f.seeds) for f in first.findings] == [("gradient-vanishing", 1.0, 2)]
    assert first.notes == first.damaged == []


def test_what_was_recorded_at_the_end_is_not_measured(make_run: MakeRun, fakes: Any) -> None:
    recorded = make_run(0, signals=(height(30.0),))
    early = make_run(1, signals=(height(50.0, step=3),))
    found = analyze_folders([recorded, early], Asked())
    assert [digest for digest, _, _, _ in fakes.calls] == [early.digest]
    assert [f.value for f in found.findings] == [2.0]
    assert [f.value for f in analyze_folders([recorded], NONE).findings] == [30.0]


def test_probes_that_are_asked_for_take_the_place_of_what_was_recorded(make_run: MakeRun, fakes: Any) -> None:
    run = make_run(signals=(height(30.0, step=3), height(30.0)))
    asked = Asked(probes=(Ref(name="level", params={"scale": 20.0}),), device="cpu")
    (evidence,) = seen_by(fakes, run, asked=asked)
    assert [(s.step, float(s.values)) for s in evidence.runs[0].signals] == [(3, 30.0), (7, 20.0)]
    assert fakes.calls[0][2:] == ([Ref(name="level", params={"scale": 20.0})], "cpu")
    analyze_folders([run], Asked(probes=(Ref(name="level", params={"scale": 21.0}),)))
    assert len(fakes.calls) == 2  # another parameter is another measurement


def test_a_new_version_of_a_probe_measures_anew(make_run: MakeRun, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    analyze_folders([run], Asked())
    monkeypatch.setattr(probe_class(Ref(name="level")), "version", 2)
    analyze_folders([run], Asked())
    monkeypatch.setattr("rnnbench.engine.ondemand.ENGINE_VERSION", 10**6)
    analyze_folders([run], Asked())
    assert len(fakes.calls) == 3


def test_starting_parameters_leave_out_what_came_later(make_run: MakeRun, fakes: Any) -> None:
    run = make_run(signals=(height(30.0),))
    (evidence,) = seen_by(fakes, run, asked=Asked(parameters="start"))
    assert [signal.step for signal in evidence.runs[0].signals] == [0]
    assert fakes.calls[0][1] == 0


def test_an_interrupted_run_is_analyzed_at_its_checkpoint(make_run: MakeRun, fakes: Any) -> None:
    interrupted, done = make_run(0, status=Status.INTERRUPTED), make_run(1)
    assert analyze_folders([interrupted, done], Asked()).notes == ["1 run passed over, not finished or failed"]
    found = analyze_folders([interrupted, done], Asked(parameters="checkpoint"))
    assert [digest for digest, _, _, _ in fakes.calls] == [done.digest, interrupted.digest]
    assert found.notes == ["1 run not measured: it has no checkpoint; a run that has ended keeps none"]


def lean(folder: RunFolder) -> None:
    record = folder.record()
    assert record is not None
    slim = record.lean(lambda name: name.startswith("metrics-"))
    for name in slim.left_out:
        (folder.path / name).unlink()
    (folder.path / "run.json").write_bytes(slim.to_json())


def test_lean_records_are_counted_once(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(seed) for seed in range(3)]
    for run in runs:
        lean(run)
    found = analyze_folders(runs, Asked())
    assert fakes.calls == []
    assert found.notes == [f"3 runs not measured: {LEAN}"]
    assert [arm.headline for arm in found.arms] == ["no findings: nothing that was recorded is read by any analyzer"]


@pytest.mark.parametrize(
    ("which", "reason"),
    [("best", "it has no best parameters; it selects none"), ("checkpoint", "it has no checkpoint")],
)
def test_parameters_that_are_not_there(which: Any, reason: str, make_run: MakeRun, fakes: Any) -> None:
    found = analyze_folders([make_run()], Asked(parameters=which))
    assert [reason in note for note in found.notes] == [True]


def test_parameters_that_are_not_finite_are_not_measured(make_run: MakeRun, fakes: Any) -> None:
    run = make_run(status=Status.DIVERGED, parameters={"w": np.array([1.0, np.nan])})
    assert analyze_folders([run], Asked()).notes == ["1 run not measured: its final parameters are not finite numbers"]
    assert fakes.calls == []


def test_a_damaged_run_is_named_and_the_others_are_analyzed(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(seed) for seed in range(4)]
    (runs[0].path / "run.json").write_bytes(b"{")
    data = (runs[1].path / "final.safetensors").read_bytes()
    (runs[1].path / "final.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (runs[2].path / "metrics-00000.parquet").unlink()
    found = analyze_folders(runs, Asked())
    assert len(found.damaged) == 3
    for run in runs[:3]:
        assert sum(run.digest[:12] in line for line in found.damaged) == 1
    assert found.arms[0].digests == (runs[3].digest,)


def test_a_whole_arm_that_is_damaged_is_left_out(make_run: MakeRun, fakes: Any) -> None:
    run = make_run()
    (run.path / "run.json").write_bytes(b"")
    found = analyze_folders([run], Asked())
    assert (found.arms, len(found.damaged)) == ([], 1)


@pytest.mark.parametrize("part", ["parquet", "json"])
def test_a_damaged_cache_is_measured_anew_with_a_note(part: str, make_run: MakeRun, fakes: Any) -> None:
    run = make_run()
    before = analyze_folders([run], Asked()).findings
    (file,) = (run.path.parent.parent / FOLDER).glob(f"*.{part}")
    file.write_bytes(file.read_bytes()[:-3])
    found = analyze_folders([run], Asked())
    assert (len(fakes.calls), found.findings) == (2, before)
    assert len(found.notes) == 1
    assert "is measured anew" in found.notes[0]
    assert analyze_folders([run], Asked()).notes == []
    assert len(fakes.calls) == 2


def test_a_place_that_cannot_be_written_to_is_noted_once(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(seed) for seed in (0, 1)]
    (runs[0].path.parent.parent / FOLDER).write_text("in the way")
    found = analyze_folders(runs, Asked())
    assert len(fakes.calls) == 2
    assert [note.partition(": ")[2] for note in found.notes] == [
        "cannot be read; what an earlier analysis kept is measured anew",
        "what is measured is not kept for the next time; it may not be written to",
    ]


def test_what_cannot_be_measured_keeps_what_it_recorded(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(0, signals=(height(20.0, step=2),)), make_run(1)]
    fakes.error = RuntimeError("a layer\nbroke")
    found = analyze_folders(runs, Asked())
    assert found.notes == ["2 runs not measured by probe level: measuring it failed; RuntimeError: a layer broke"]
    assert [f.value for f in found.findings] == [20.0]
    fakes.error = BadInput("level: it needs the sea")
    with pytest.raises(BadInput, match="none of 2 runs could be measured; level: it needs the sea"):
        analyze_folders(runs, Asked(probes=(Ref(name="level"),)))


def test_one_failing_probe_takes_no_others_signals_along(
    make_run: MakeRun, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnnbench.engine import probing

    measure: Any = probing.probe_run
    broken: list[Exception] = [MemoryError("no room")]

    def some_fail(experiment: Any, params: Any, step: int, probes: Any, **options: Any) -> list[Signal]:
        if probes[0].name == "adjoint" and broken:
            raise broken[0]
        found: list[Signal] = measure(experiment, params, step, probes, **options)
        return found

    monkeypatch.setattr(probing, "probe_run", some_fail)
    monkeypatch.setattr(probing, "DEFAULT", (Ref(name="adjoint"), Ref(name="level")))
    runs = [make_run(seed) for seed in (0, 1)]
    for _ in range(2):  # the second time out of what was kept
        found = analyze_folders(runs, Asked())
        assert found.notes == [
            "2 runs not measured by probe adjoint: measuring it failed; MemoryError: no room; fewer `sequences` of "
            "probe adjoint need less memory"
        ]
        assert [f.value for f in found.findings] == [1.0]
        assert [ref.name for _, _, probes, _ in fakes.calls for ref in probes] == ["level"] * 2
    asked = Asked(probes=(Ref(name="adjoint"), Ref(name="level")))
    assert [f.value for f in analyze_folders(runs, asked).findings] == [1.0]
    broken.clear()
    assert analyze_folders(runs, Asked()).notes == []
    assert [ref.name for _, _, probes, _ in fakes.calls for ref in probes] == ["level"] * 2 + ["adjoint"] * 2


def test_what_was_recorded_in_part_is_measured(make_run: MakeRun, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was recorded without the outputs' Jacobian gets it; one that has all that is read is left alone."""
    monkeypatch.setattr("rnnbench.engine.probing.DEFAULT", (Ref(name="adjoint"),))
    names = probe_class(Ref(name="adjoint")).wanted
    assert "adjoint.logit_log_norm" in names

    def signals(kinds: tuple[str, ...]) -> tuple[Signal, ...]:
        values = np.zeros((2, 3))
        return tuple(Signal(f"{kind}/layers.0.forward.h", ("time", "batch"), "ln", 7, values) for kind in kinds)

    part, whole = make_run(0, signals=signals(names[:-1])), make_run(1, signals=signals(names))
    analyze_folders([part, whole], Asked())
    assert [digest for digest, _, _, _ in fakes.calls] == [part.digest]


def test_what_went_wrong_while_a_run_ran_is_a_note(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(seed) for seed in (0, 1)]
    note = "probe level failed at step 3 and was dropped: ValueError: it is dark"
    for run in runs:
        record = run.record()
        assert record is not None
        (run.path / "run.json").write_bytes(edited(record, notes=(note,)).to_json())
    assert analyze_folders(runs, NONE).notes == [f"2 runs: {note}"]


def test_an_interruption_keeps_what_was_measured(make_run: MakeRun, fakes: Any) -> None:
    runs = [make_run(seed) for seed in (0, 1)]
    analyze_folders(runs[:1], Asked())
    fakes.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        analyze_folders(runs, Asked())
    fakes.error = None
    analyze_folders(runs, Asked())
    assert [digest for digest, _, _, _ in fakes.calls] == [run.digest for run in runs]


def edited(record: RunRecord, **changes: Any) -> RunRecord:
    return record.model_copy(update=changes)


def test_rebuilding_says_what_has_changed(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_cell_for_analysis.py").write_text(
        'from rnnbench.cells.rnn import RNN\nclass Mine(RNN):\n    """Mine."""\n    name = "mine"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    record = make_run(cell={"name": "own_cell_for_analysis:Mine", "hidden": 3}).record()
    assert record is not None
    assert rebuild(record).digest == record.digest
    with (tmp_path / "own_cell_for_analysis.py").open("a") as file:
        file.write("# edited\n")
    with pytest.raises(BadInput, match=r"another experiment by now; changed since: cell\.file"):
        rebuild(record)
    moved = edited(record, spec={**record.spec, "cell": {"name": "gone_for_good:Mine"}})
    with pytest.raises(BadInput, match="cannot be rebuilt; cell: no module named 'gone_for_good'"):
        rebuild(moved)


def test_rebuilding_fetches_no_data(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_run().record()
    assert record is not None
    monkeypatch.delenv("RNNBENCH_DATA", raising=False)
    monkeypatch.setattr("rnnbench.engine.ondemand.data_root", lambda: tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it went to the network"))
    with pytest.raises(BadInput, match="mnist: no train-images"):
        rebuild(edited(record, spec={"task": {"name": "mnist"}, "cell": {"name": "rnn"}}))
    assert "RNNBENCH_DATA" not in os.environ


def test_starting_parameters_of_a_whole_model_are_its_own(make_run: MakeRun) -> None:
    folder = make_run()
    record = folder.record()
    assert record is not None
    with pytest.raises(BadInput, match="draws its own"):
        point_of(folder, edited(record, spec={"task": {"name": "copy"}, "model": "a:b"}), "start")


def test_a_broken_analyzer_is_one_line_and_spoils_no_other(make_run: MakeRun, fakes: Any) -> None:
    things = sys.modules["fake_things"]
    things.breaks = lambda _evidence: 1 / 0  # type: ignore[attr-defined]  # made by the fixture
    things.strange = lambda _evidence: ["no finding"]  # type: ignore[attr-defined]
    things.number = 3  # type: ignore[attr-defined]
    fakes.analyzers |= {name: f"fake_things:{name}" for name in ("breaks", "strange", "number", "absent")}
    runs = [make_run(), make_run(cell={"name": "gru", "hidden": 3})]
    found = analyze_folders(runs, Asked())
    assert len(found.findings) == 2
    assert [note for note in found.notes if "failed" in note] == [
        "analyzer breaks failed on 2 arms, the first copy gru · torch; ZeroDivisionError: division by zero",
        "analyzer strange failed on 2 arms, the first copy gru · torch; TypeError: it returned 'str' where a Finding "
        "belongs",
    ]
    assert [note for note in found.notes if "failed" not in note] == [
        "analyzer: 'number' is not a function of the evidence",
        next(note for note in found.notes if "unknown name 'absent'" in note),
    ]
    with pytest.raises(BadInput, match="'absent'"):
        analyze_folders(runs, Asked(probes=(), analyzers=("number", "absent")))


def test_hostile_names_become_plain_text(make_run: MakeRun, fakes: Any) -> None:
    folder = make_run()
    record = folder.record()
    assert record is not None
    spec = {**record.spec, "model": "m:x", "cell": None}
    label = analysis_label(folder, edited(record, spec={**spec, "task": {"name": "copy\x1b[2J\n" + "x" * 300}}))
    assert label.isprintable()
    assert len(label) < 150


def analysis_label(folder: RunFolder, record: RunRecord) -> str:
    run = _Run(folder, record, RunSpec.parse({"task": "copy", "cell": "rnn"}, ""))
    ((subject, _),) = _labelled([[run]])
    return subject


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({"parameters": "fnal"}, "did you mean final"),
        ({"probes": (Ref(name="levle"),)}, "did you mean level"),
        ({"probes": (Ref(name="level", params={"scal": 2.0}),)}, "did you mean scale"),
        ({"probes": (Ref(name="rnnbench.cells.rnn:RNN"),)}, "is not a probe"),
        ({"analyzers": ("heigths",)}, "did you mean heights"),
        ({"device": "gpu"}, "a device is cpu, cuda"),
    ],
)
@pytest.mark.usefixtures("fakes")
def test_misspelt_names(asked: dict[str, Any], parts: str) -> None:
    with pytest.raises(BadInput, match=parts):
        Asked(**asked)


def test_a_probe_that_follows_training_has_nothing_to_say_later(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_class(Ref(name="level")), "in_training", True)
    with pytest.raises(BadInput, match="follows training"):
        Asked(probes=(Ref(name="level"),))


def test_nothing_to_analyze(make_run: MakeRun, fakes: Any) -> None:
    with pytest.raises(BadInput, match="none of the 1 run has ended"):
        analyze_folders([make_run(status=Status.FAILED)], Asked())


def test_needs_of_data_are_measured_once_a_task_and_kept(
    make_run: MakeRun, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def reference(task: Any, source: Any, *, split: str) -> dict[str, Any]:
        asked.append(split)
        return {"lags": [0, 1], "losses": [2.0, 1.0], "need": 1, "model": "ridge"}

    monkeypatch.setattr("rnnbench.context.reference_context", reference)
    task = {"task": {"name": "digits"}, "eval": {"split": "test"}}
    runs = [make_run(cell={"name": name, "hidden": 3}, **task) for name in ("rnn", "gru")]
    assert [e.context for e in seen_by(fakes, *runs, asked=Asked())] == [{}, {}]  # no analyzer reads it
    fakes.analyzers["reach"] = "fake_things:judge"
    for _ in range(2):
        found = seen_by(fakes, *runs, asked=Asked())
        assert [evidence.context["need"] for evidence in found] == [1, 1]
    assert asked == ["test"]
    assert seen_by(fakes, *runs, asked=Asked(context=False))[0].context == {}
    assert seen_by(fakes, make_run(), asked=Asked())[0].context == {}  # its definition says what it needs


def test_needs_that_cannot_be_measured_are_a_note(
    make_run: MakeRun, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reference(*_: Any, **__: Any) -> dict[str, Any]:
        raise BadInput("context: 3 training sequences are too few")

    monkeypatch.setattr("rnnbench.context.reference_context", reference)
    fakes.analyzers["reach"] = "fake_things:judge"
    found = analyze_folders([make_run(task={"name": "digits"}), make_run(1, task={"name": "digits"})], Asked())
    assert found.notes == [
        "digits rnn · torch: how much past the task needs was not measured; context: 3 training sequences are too few"
    ]


def test_json_holds_everything(make_run: MakeRun, fakes: Any) -> None:
    run = make_run()
    values = json.loads(json.dumps(analyze_folders([run], Asked()).as_json(), allow_nan=False))
    (arm,) = values["arms"]
    assert arm["digests"] == [run.digest]
    assert arm["worst"] == "problem"
    assert arm["needs_reach_use"] == "The lowest height is 1 m."
    (found,) = analyze_folders([run], Asked()).findings
    assert [Finding.model_validate_json(json.dumps(each)) for each in arm["findings"]] == [found]
    assert values["versions"]["rnnbench"] == rnnbench.__version__


def test_pictures_are_drawn_and_a_broken_one_spoils_no_other(
    make_run: MakeRun, fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = sys.modules["fake_things"]

    def draw(evidence: Any) -> Figure:
        figure = Figure()
        figure.add_subplot().set_title(evidence[0].subject)
        return figure

    things.draw, things.nothing = draw, lambda _evidence: None  # type: ignore[attr-defined]
    things.breaks = lambda _evidence: 1 / 0  # type: ignore[attr-defined]
    pictures = {"curves": "fake_things:breaks", "good": "fake_things:draw", "none": "fake_things:nothing"}
    monkeypatch.setitem(registry.BUILT_IN, "pictures", {**pictures, "bad": "fake_things:breaks"})
    found = analyze_folders([make_run(), make_run(suite="other")], Asked(keep=True))
    notes: list[str] = []
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        files = draw_pictures(found.arms, tmp_path / "pictures", kind, notes)  # type: ignore[arg-type]
        assert [file.name for file in files] == [f"mine-good.{kind}", f"other-good.{kind}"]
        assert all(file.read_bytes().startswith(magic) for file in files)
    assert set(notes) == {"picture bad could not be drawn; ZeroDivisionError: division by zero"}
    (file,) = draw_pictures(found.arms[:1], tmp_path / "one", "png", notes)
    assert file.name == "good.png"


def test_from_python(make_run: MakeRun, fakes: Any, tmp_path: Path) -> None:
    runs = [make_run(0), make_run(9, suite="other")]
    assert [f.value for f in rnnbench.analyze(tmp_path / "results")] == [1.0, 10.0]
    assert [f.severity for f in rnnbench.analyze(tmp_path / "results")] == [Severity.PROBLEM, Severity.OK]
    assert [f.value for f in rnnbench.analyze(tmp_path / "results", suite="other")] == [10.0]
    assert [f.value for f in rnnbench.analyze(runs[0].path)] == [1.0]
    assert [f.value for f in rnnbench.analyze(runs[1].path.parent)] == [10.0]
    assert rnnbench.analyze(tmp_path / "results", probes=[]) == []
    (found,) = rnnbench.analyze(runs[0].path, probes=[{"name": "level", "scale": 3.0}])
    assert found.value == 3.0
    with pytest.raises(BadInput, match="did you mean other"):
        rnnbench.analyze(tmp_path / "results", suite="othr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="there are no runs in it"):
        rnnbench.analyze(tmp_path / "empty")
    (runs[0].path / "run.json").write_bytes(b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [f.value for f in rnnbench.analyze(tmp_path / "results")] == [10.0]
    assert [runs[0].digest[:12] in str(warning.message) for warning in caught] == [True]


def test_an_empty_analysis_is_well() -> None:
    assert (Analysis().findings, Analysis().worst) == ([], Severity.OK)
