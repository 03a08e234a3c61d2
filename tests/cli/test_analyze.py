"""``rnnbench analyze``: what it prints, in words and in JSON, what it refuses, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rnnbench.cli.analyze import evidence_line
from rnnbench.cli.exits import Terminated
from rnnbench.cli.spec_options import parse_probe
from rnnbench.errors import BadInput
from rnnbench.findings import CODES, Finding, Severity, finding
from rnnbench.record import Status
from rnnbench.spec import Ref
from rnnbench.store import RunFolder

Invoke = Callable[..., Result]
MakeRun = Callable[..., RunFolder]
Failed = Callable[..., None]

pytestmark = pytest.mark.usefixtures("fakes")


def test_findings_in_words_one_line_each(make_run: MakeRun, invoke: Invoke) -> None:
    make_run(0)
    make_run(1)
    make_run(9, cell={"name": "gru", "hidden": 3})
    result = invoke("analyze", "results")
    assert (result.exit_code, result.stderr) == (0, "")
    code = CODES["gradient-vanishing"]
    assert result.stdout.splitlines() == [
        "copy gru · torch (1 seed): nothing is wrong by what was measured",
        "  [+]  ok: The lowest height is 10 m.",
        "      evidence: height 10 m [9.5, inf] at 95 %; judged against 10 m; of the tide; at training step 7; 1 seed; "
        "from level.height",
        f"      see: docs/findings/gradient-healthy.md; {CODES['gradient-healthy'].reference}",
        "",
        "copy rnn · torch (2 seeds): the gradient has vanished over the lag that the task needs",
        "  [!!] problem: The lowest height is 1 m.",
        "      evidence: height 1 m [0.5, inf] at 95 %; judged against 10 m; of the tide; at training step 7; 2 seeds; "
        "from level.height",
        f"      likely cause: {'; or '.join(code.causes)}",
        f"      what helps: {'; or '.join(code.remedies)}",
        f"      see: docs/findings/gradient-vanishing.md; {code.reference}",
        "",
        "2 arms, by their worst finding: 1 problem, 1 ok",
    ]


def test_as_json(make_run: MakeRun, invoke: Invoke) -> None:
    run = make_run()
    result = invoke("analyze", "results", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    values = json.loads(result.stdout)
    assert values["arms"][0]["digests"] == [run.digest]
    assert values["arms"][0]["findings"][0]["code"] == "gradient-vanishing"
    assert (values["notes"], values["damaged"], values["pictures"]) == ([], [], [])


def test_one_suite_one_run_one_folder(make_run: MakeRun, invoke: Invoke) -> None:
    runs = [make_run(0), make_run(1, suite="other"), make_run(2, suite="other")]

    def heights(*args: str) -> list[float]:
        found = json.loads(invoke("analyze", *args, "--json").stdout)
        return [f["value"] for arm in found["arms"] for f in arm["findings"]]

    assert heights("results") == [1.0, 2.0]
    assert heights("results", "--suite", "other") == [2.0]
    assert heights("results/mine") == [1.0]
    assert heights(f"results/other/{runs[2].digest}") == [3.0]
    assert heights("results", "--run", runs[2].digest[:10], "--run", runs[0].digest[:10]) == [1.0, 3.0]
    assert heights("results", "--backend", "torch", "--task", "copy", "--cell", "rnn") == [1.0, 2.0]
    assert heights("results", "--no-probe") == []
    assert heights("results", "--probe", "level:scale=100.0") == [100.0, 200.0]
    assert heights("results", "--analyzer", "heights") == [1.0, 2.0]


@pytest.mark.parametrize(("level", "status"), [("info", 1), ("warning", 1), ("problem", 1), (None, 0)])
def test_fail_on(level: str | None, status: int, make_run: MakeRun, invoke: Invoke) -> None:
    make_run()
    result = invoke("analyze", "results", *(["--fail-on", level] if level else []))
    assert result.exit_code == status
    assert "The lowest height is 1 m." in result.stdout
    if level:
        assert result.stderr == f"rnnbench: 1 finding at {level} or worse\n"


def test_what_is_well_fails_on_nothing(make_run: MakeRun, invoke: Invoke) -> None:
    make_run(9)
    assert invoke("analyze", "results", "--fail-on", "info").exit_code == 0


def test_a_damaged_run_is_status_3_and_hides_no_other(make_run: MakeRun, invoke: Invoke) -> None:
    runs = [make_run(0), make_run(1)]
    (runs[0].path / "run.json").write_bytes(b"{}")
    result = invoke("analyze", "results", "--fail-on", "info")
    assert result.exit_code == 3
    assert "The lowest height is 2 m." in result.stdout
    first, last = result.stderr.splitlines()
    assert runs[0].digest in first
    assert last == "rnnbench: 1 of 2 runs are damaged and were left out"
    again = invoke("analyze", "results", "--json")
    assert again.exit_code == 3
    assert len(json.loads(again.stdout)["damaged"]) == 1


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["nowhere"], ["nowhere", "no such folder of results"]),
        ([""], ["an empty name"]),
        (["a\nb"], ["'a\\nb'"]),
        (["results", "--suite", "mne"], ["did you mean mine?"]),
        (["results", "--cell", "rn"], ["did you mean rnn?"]),
        (["results", "--status", "complete"], ["did you mean completed?"]),
        (["results", "--status", "diverged"], ["no run in it passes the filters"]),
        (["results", "--run", "xyz"], ["'xyz'", "fits none of the 1 runs"]),
        (["results", "--run", ""], ["''"]),
        (["results", "--probe", "levle"], ["did you mean level?"]),
        (["results", "--probe", "level:scal=2.0"], ["did you mean scale?"]),
        (["results", "--probe", "level:scale=x"], ["scale", "'x' will not do"]),
        (["results", "--probe", "level:scale=1.0,scale=2.0"], ["'scale' is given twice"]),
        (["results", "--probe", "level:=2"], ["is not KEY=VALUE"]),
        (["results", "--probe", "level:scale"], ["level"]),
        (["results", "--probe", "=2"], ["is not NAME"]),
        (["results", "--probe", ""], ["''"]),
        (["results", "--probe", "a\x1b[2J:b=1"], ["--probe"]),
        (["results", "--probe", "level", "--no-probe"], ["not both"]),
        (["results", "--parameters", "finl"], ["did you mean final?"]),
        (["results", "--analyzer", "height"], ["did you mean heights?"]),
        (["results", "--format", "jpg"], ["'jpg'", "png"]),
        (["results", "--fail-on", "warn"], ["did you mean warning?"]),
        (["results", "--device", "gpu"], ["a device is cpu"]),
        (["results", "--plots", "results/mine/../../file"], ["is not a folder"]),
        (["results", "--plots", " "], ["is not a folder's name"]),
        (["results", "--data-dir", "nowhere"], ["no folder 'nowhere'"]),
        (["results", "--prob", "level"], ["no such option", "--probe"]),
        ([], ["missing argument", "RESULTS"]),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], parts: list[str], make_run: MakeRun, invoke: Invoke, failed: Failed, tmp_path: Path
) -> None:
    make_run()
    (tmp_path / "file").write_text("")
    failed(invoke("analyze", *args), 2, *parts)
    assert not (tmp_path / "results" / ".probed").exists()


def test_nothing_that_has_ended(make_run: MakeRun, invoke: Invoke, failed: Failed) -> None:
    make_run(status=Status.FAILED)
    failed(invoke("analyze", "results"), 2, "none of the 1 run has ended")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (Terminated(), 143)])
def test_an_interruption_says_that_what_was_measured_is_kept(
    error: BaseException, status: int, make_run: MakeRun, invoke: Invoke, failed: Failed, fakes: Any
) -> None:
    make_run()
    fakes.error = error
    failed(invoke("analyze", "results"), status, "what was measured by now is kept")


def test_what_could_not_be_done_is_on_stderr(make_run: MakeRun, invoke: Invoke, fakes: Any) -> None:
    sys.modules["fake_things"].breaks = lambda _evidence: 1 / 0  # type: ignore[attr-defined]  # made by the fixture
    fakes.analyzers["breaks"] = "fake_things:breaks"
    fakes.error = BadInput("level: it needs the sea\x1b[2J")
    make_run()
    result = invoke("analyze", "results")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "rnnbench: warning: 1 run not measured by probe level: level: it needs the sea\\x1b[2J",
        "rnnbench: warning: analyzer breaks failed on copy rnn · torch; ZeroDivisionError: division by zero",
    ]


def test_hostile_words_do_not_reach_the_terminal(make_run: MakeRun, invoke: Invoke, fakes: Any) -> None:
    hostile = "a\x1b[31mred\x07\nsecond[bold]x[/bold]\u202e"

    def judge(evidence: Any) -> list[Finding]:
        named = ("code", "subject", "claim", "measure", "unit", "of", "reference")
        fields: dict[str, Any] = {"value": 1.0, **dict.fromkeys(named, hostile)}
        return [
            Finding(severity=Severity.WARNING, causes=(hostile,), remedies=(hostile,), evidence=(hostile,), **fields)
        ]

    sys.modules["fake_things"].judge = judge  # type: ignore[attr-defined]  # made by the fixture
    make_run(suite="mine")
    result = invoke("analyze", "results")
    assert result.exit_code == 0
    assert result.stdout.replace("\n", "").isprintable()
    assert "second[bold]x[/bold]" in result.stdout
    assert invoke("analyze", "results", "--json").stdout.isascii()


def test_pictures(make_run: MakeRun, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    from rnnbench import registry

    sys.modules["fake_things"].draw = lambda _evidence: Figure()  # type: ignore[attr-defined]  # made by the fixture
    monkeypatch.setitem(registry.BUILT_IN, "pictures", {"nice": "fake_things:draw", "gone": "fake_things:gone"})
    make_run()
    result = invoke("analyze", "results", "--plots", "deep/pictures", "--format", "svg")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "picture: deep/pictures/nice.svg"
    assert "picture gone could not be drawn" in result.stderr
    assert [path.name for path in (tmp_path / "deep" / "pictures").iterdir()] == ["nice.svg"]


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("level", "level", {}),
        ("level:scale=2.5", "level", {"scale": 2.5}),
        ("adjoint:vectors=true,loss_step=3", "adjoint", {"vectors": True, "loss_step": 3}),
        ("mine.py_things:Probe", "mine.py_things:Probe", {}),
        ("mine:Probe:file='a:b=c',n=[1, 2]", "mine:Probe", {"file": "a:b=c", "n": [1, 2]}),
    ],
)
def test_probes_are_read(text: str, name: str, params: dict[str, Any]) -> None:
    assert parse_probe(text) == Ref(name=name, params=params)


def test_the_evidence_line_says_what_there_is() -> None:
    bare = finding("seed-lottery", "x", "Two of five.")
    assert evidence_line(bare) == ""
    assert evidence_line(bare.model_copy(update={"measure": "share"})) == "share"
    assert evidence_line(bare.model_copy(update={"value": 0.25, "high": 0.5})) == "measured 0.25 [-inf, 0.5]"
    level = bare.model_copy(update={"value": 10.0, "low": 3.0, "high": 99.0, "level": 1 - 2 / 64})
    assert evidence_line(level) == "measured 10 [3, 99] at 96.9 %"
