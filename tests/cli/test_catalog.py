"""``list``, ``show`` and ``devices``: everything registered is there, and a broken plug-in hides nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from click.testing import Result

from rnnbench import registry
from rnnbench.cli.show import reflow, type_text
from rnnbench.findings import CODES

Invoke = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Failed = Callable[..., None]

THINGS = [(kind, name) for kind in registry.KINDS for name in registry.BUILT_IN[kind]]


def strict(text: str) -> Any:
    """Parse JSON that may hold no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_list_has_every_name_whole(kind: str, invoke: Invoke) -> None:
    result = invoke("list", kind)
    assert (result.exit_code, result.stderr) == (0, "")
    for name in registry.BUILT_IN[kind]:
        assert any(line.split()[0] == name for line in result.stdout.splitlines())
    rows = strict(invoke("list", kind, "--json").stdout)
    assert {row["name"] for row in rows} >= set(registry.BUILT_IN[kind])
    assert all(row["summary"] and "error" not in row for row in rows)


@pytest.mark.parametrize(("kind", "name"), THINGS)
def test_show_knows_every_thing(kind: str, name: str, invoke: Invoke) -> None:
    result = invoke("show", f"{kind}/{name}")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{kind.removesuffix('s')} {name}")
    facts = strict(invoke("show", f"{kind.removesuffix('s')}/{name}", "--json").stdout)
    assert (facts["kind"], facts["name"]) == (kind.removesuffix("s"), name)
    if kind in ("tasks", "cells", "techniques", "optimizers"):
        assert facts["equation"] in result.stdout.replace("\n  ", "\n")
        assert facts["source"]
        thing = registry.load(kind, name)
        assert [parameter["name"] for parameter in facts["parameters"]] == list(thing.model_fields)
        assert all(parameter["description"] for parameter in facts["parameters"])
        for parameter in facts["parameters"]:
            assert parameter["description"] in result.stdout


@pytest.mark.parametrize("name", ["copy", "adding", "temporal_order", "digits"])
def test_show_of_a_task_has_shape_and_baselines(name: str, invoke: Invoke) -> None:
    facts = strict(invoke("show", name, "--json").stdout)
    task = registry.load("tasks", name).parse({}, "task")
    assert facts["shape"] == {"steps": task.length, "inputs": task.n_in, "outputs": task.n_out}
    assert facts["metric"] in facts["metrics"]
    assert facts["baselines"]
    for baseline in facts["baselines"].values():
        assert f"{baseline['value']:.6g}" in invoke("show", name).stdout


def test_show_of_absent_data_says_so_and_fetches_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it went to the network"))
    result = invoke("show", "mnist")
    assert result.exit_code == 0
    assert "baselines need the data: mnist: no train-images" in result.stdout


def test_show_of_a_suite_counts_its_runs(invoke: Invoke) -> None:
    facts = strict(invoke("show", "quickstart", "--json").stdout)
    assert facts["file"] == "rnnbench_suites/quickstart.toml"
    assert sum(arm["runs"] for arm in facts["arms"]) == facts["runs"] > 0


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN["probes"]))
def test_show_of_a_probe_has_its_signals(name: str, invoke: Invoke) -> None:
    facts = strict(invoke("show", f"probes/{name}", "--json").stdout)
    text = " ".join(invoke("show", f"probes/{name}").stdout.split())
    assert [signal["name"] for signal in facts["signals"]] == [
        kind.name for kind in registry.load("probes", name).signals
    ]
    for signal in facts["signals"]:
        assert f"signal {signal['name']}" in text
        assert signal["meaning"] in text
    assert all(parameter["description"] for parameter in facts["parameters"])


@pytest.mark.parametrize("code", sorted(CODES))
def test_show_of_a_finding_has_causes_and_remedies(code: str, invoke: Invoke) -> None:
    result = invoke("show", code)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == invoke("show", f"finding/{code}").stdout == invoke("show", f"findings/{code}").stdout
    text = " ".join(result.stdout.split())
    for part in (CODES[code].title, CODES[code].reference, *CODES[code].causes, *CODES[code].remedies):
        assert part in text
    facts = strict(invoke("show", code, "--json").stdout)
    assert (facts["kind"], facts["name"], facts["severity"]) == ("finding", code, CODES[code].severity)


def test_show_of_ones_own(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_suite.toml").write_text('title = "Mine"\nbase.task = "copy"\nbase.cell = "rnn"\nseeds = 2')
    assert "2 runs" in invoke("show", "own_suite.toml").stdout
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_cells.py").write_text(
        'from rnnbench.cells.rnn import RNN\nclass Mine(RNN):\n    """My cell."""\n    name = "mine"\n'
    )
    result = invoke("show", "own_cells:Mine")
    assert result.stdout.startswith("cell own_cells:Mine, version 1 (yours)\nMy cell\n")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["list"], ["list: say what", "tasks", "devices"]),
        (["list", "taks"], ["'taks'", "did you mean tasks or tables?"]),
        (["list", "a\nb\0"], ["'a\\nb\\x00'"]),
        (["show"], ["show: say what"]),
        (["show", "lstn"], ["did you mean lstm?"]),
        (["show", "cells/lstn"], ["did you mean lstm?"]),
        (["show", "gradient-vanishin"], ["did you mean gradient-vanishing"]),
        (["show", "findings/gradient-vanishin"], ["did you mean gradient-vanishing"]),
        (["show", "reach"], ["more than one thing", "analyzers/reach", "pictures/reach"]),
        (["show", "cels/lstm"], ["did you mean cells?"]),
        (["show", "../../etc/passwd"], ["'..'"]),
        (["show", "x.toml"], ["x.toml: there is no such file"]),
        (["show", "no_such_module:Cell"], ["no module named 'no_such_module'"]),
        (["show", "json:nothing"], ["'nothing'"]),
        (["show", ":"], ["show"]),
        (["show", "a:"], ["show"]),
        (["show", "a" * 300], ["300 characters"]),
        (["show", "a\nb"], ["'a\\nb'"]),
        (["show", ""], ["''"]),
        (["show", "--", "-x"], ["'-x'"]),
    ],
)
def test_misspelt_names(args: list[str], parts: list[str], invoke: Invoke, failed: Failed) -> None:
    failed(invoke(*args), 2, *parts)


@pytest.fixture
def plugged(tmp_path: Path) -> str:
    """Return a path that brings one plug-in that works, and ones that are broken in several ways."""
    site = tmp_path / "site"
    info = site / "someones-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[rnnbench.cells]\ngood = someones_cells:Good\nraises = someones_broken:Cell\nabsent = someones_absent:Cell\n"
        "exits = someones_exits:Cell\nlstm = someones_cells:Good\nempty = someones_cells:Nothing\n"
        "[rnnbench.suites]\nodd = someones_cells:odd.toml\ngone = someones_gone:x.toml\n"
        "[rnnbench.backends]\nbad = someones_broken:Backend\n"
    )
    (site / "someones_cells").mkdir()
    (site / "someones_cells" / "__init__.py").write_text(
        "from rnnbench.cells.rnn import RNN\n"
        'class Good(RNN):\n    """Someone\'s [red]cell[/red]."""\n    name = "good"\n'
    )
    (site / "someones_cells" / "odd.toml").write_text('name = "../odd"')
    (site / "someones_broken.py").write_text('raise RuntimeError("a\\nb\\x1b[31m")')
    (site / "someones_exits.py").write_text("raise SystemExit(0)")
    return str(site)


def test_a_broken_plugin_is_reported_and_hides_nothing(plugged: str, shell: Shell) -> None:
    done = shell("list", "cells", "--json", path=plugged)
    assert done.returncode == 0
    rows = {row["name"]: row for row in strict(done.stdout)}
    assert set(rows) == {"rnn", "lstm", "gru", "good", "raises", "absent", "exits", "empty"}
    assert rows["good"]["summary"] == "Someone's [red]cell[/red]"
    assert rows["good"]["origin"] == "someones 1.2"
    assert rows["lstm"]["origin"] == "built in"  # a plug-in never takes a built-in name
    assert "RuntimeError: a b" in rows["raises"]["error"]
    assert "someones_absent" in rows["absent"]["error"]
    assert "Nothing" in rows["empty"]["error"]
    assert "error" in rows["exits"]
    assert len(done.stderr.splitlines()) == 4
    assert done.stderr.replace("\n", "").isprintable()

    text = shell("list", "cells", path=plugged).stdout
    assert "Someone's [red]cell[/red]" in text
    assert "cannot be loaded: " in text
    assert text.replace("\n", "").isprintable()


def test_broken_suites_and_backends_are_reported(plugged: str, shell: Shell) -> None:
    rows = {row["name"]: row for row in strict(shell("list", "suites", "--json", path=plugged).stdout)}
    assert "'../odd'" in rows["odd"]["error"]
    assert "someones_gone" in rows["gone"]["error"]
    assert rows["quickstart"]["runs"] > 0
    done = shell("devices", "--json", path=plugged)
    devices = strict(done.stdout)
    assert done.returncode == 0
    assert [row["detail"] for row in devices if row["backend"] == "bad"] != []
    assert {row["backend"] for row in devices} == {"bad", "torch", "jax", "numpy"}


def test_show_of_a_broken_plugin_is_bad_input(plugged: str, shell: Shell, failed: Failed) -> None:
    failed(shell("show", "raises", path=plugged), 2, "plug-in 'raises'", "RuntimeError: a b")


def test_devices_say_why_not(invoke: Invoke) -> None:
    rows = strict(invoke("devices", "--json").stdout)
    assert rows == strict(invoke("list", "devices", "--json").stdout)
    found = {(row["backend"], row["device"]): row for row in rows}
    assert found["torch", "cpu"]["available"]
    assert found["jax", "cpu"]["available"]
    assert "torch_xla" in found["torch", "tpu"]["detail"]
    assert all(row["detail"] for row in rows)
    text = invoke("devices").stdout
    assert all(row["detail"] in text for row in rows)


@pytest.mark.parametrize("missing", ["torch", "jax", "optax"])
def test_a_framework_that_is_missing_names_its_cure(
    missing: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    there = importlib.util.find_spec
    hide = lambda name, *rest: None if name == missing else there(name, *rest)  # noqa: E731
    for module in ("torch", "jax"):
        monkeypatch.setattr(f"rnnbench.backends.{module}.find_spec", hide)
    rows = strict(invoke("devices", "--json").stdout)
    backend = "torch" if missing == "torch" else "jax"
    (row,) = [row for row in rows if row["backend"] == backend]
    assert not row["available"]
    assert f"pip install 'rnnbench[{backend}]'" in row["detail"]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int | none"),
        (Literal["a", "b"], "a | b"),
        (tuple[str, ...], "list of str"),
        (list[Annotated[int, "x"]] | None, "list of int | none"),
        (dict, "dict"),
    ],
)
def test_types_are_shown_as_values_are_written(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


def test_reflow_wraps_prose_and_leaves_tables() -> None:
    text = "One two\nthree four.\n\n- an item\n  that goes on\n- another\n\n====  ====\na     b\n====  ===="
    assert (
        reflow(text, 12)
        == "One two\nthree four.\n\n- an item\n  that goes\n  on\n- another\n\n====  ====\na     b\n====  ===="
    )
