from __future__ import annotations

import contextlib
import getpass
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnbench import record as record_module
from rnnbench.errors import BadInput, CorruptData
from rnnbench.record import (
    RECORD_SCHEMA,
    Environment,
    FileHash,
    RunRecord,
    Status,
    Summary,
    read_json,
    write_json,
    write_sealed,
)

Make = Callable[..., RunRecord]


def test_a_record_survives_the_round_trip_and_its_bytes_are_stable(make_record: Make) -> None:
    record = make_record(
        files={"metrics-00000.parquet": FileHash(sha256="0" * 64, bytes=9)},
        baselines={"loss": {"memoryless": 0.17, "broken": float("nan")}},
        resumed=(1, 2),
        resumed_inexact=("threads 2, was 4",),
    )
    text = record.to_json()
    again = RunRecord.from_json(text, "run.json")
    assert again == record
    assert again.to_json() == text
    assert again.baselines["loss"]["broken"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_null(value: float, make_record: Make) -> None:
    record = make_record(summary=Summary(metrics={"loss": value, "accuracy": 0.5}))
    assert record.summary.metrics == {"loss": None, "accuracy": 0.5}
    assert b"NaN" not in record.to_json()
    assert b"Infinity" not in record.to_json()


def test_which_statuses_are_final() -> None:
    assert [str(status) for status in Status if status.final] == ["solved", "completed", "diverged", "time_limit"]
    assert not Status.FAILED.final
    assert not Status.INTERRUPTED.final


def test_an_error_is_kept_on_one_line(make_record: Make) -> None:
    assert make_record(error="first\nsecond\r\n  third").error == "first second third"


BAD: list[tuple[str, Callable[[str], str], str]] = [
    ("empty", lambda text: "", "is empty"),
    ("blank", lambda text: " \n", "is empty"),
    ("truncated", lambda text: text[: len(text) // 2], "not strict JSON"),
    ("twice", lambda text: text + text, "not strict JSON"),
    ("NaN", lambda text: text.replace('"loss": 0.25', '"loss": NaN'), "NaN is not allowed"),
    ("Infinity", lambda text: text.replace('"loss": 0.25', '"loss": -Infinity'), "Infinity is not allowed"),
    ("overflow", lambda text: text.replace('"loss": 0.25', '"loss": 1e999'), "no finite number"),
    ("digits", lambda text: text.replace('"steps": 3', '"steps": ' + "9" * 5000), "not strict JSON"),
    ("key twice", lambda text: text.replace('"steps": 3', '"steps": 3, "steps": 4'), "'steps' is there twice"),
    ("a list", lambda text: "[1, 2]", "holds list, not a table"),
    ("deep", lambda text: "[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ("newer", lambda text: text.replace('"schema_version": 1', '"schema_version": 999'), "install a newer rnnbench"),
    ("version 0", lambda text: text.replace('"schema_version": 1', '"schema_version": 0'), "not a version number"),
    ("version x", lambda text: text.replace('"schema_version": 1', '"schema_version": "1"'), "not a version number"),
    ("version true", lambda text: text.replace('"schema_version": 1', '"schema_version": true'), "not a version"),
    ("missing key", lambda text: text.replace('"steps": 3,', ""), "steps"),
    ("unknown key", lambda text: text.replace('"steps": 3', '"stepz": 3, "steps": 3'), "stepz"),
    ("text for number", lambda text: text.replace('"steps": 3', '"steps": "3"'), "steps"),
    ("negative", lambda text: text.replace('"steps": 3', '"steps": -3'), "steps"),
    ("status", lambda text: text.replace('"status": "completed"', '"status": "done"'), "status"),
    ("suite", lambda text: text.replace('"suite": "suite"', '"suite": "../evil"'), "suite"),
    (
        "file",
        lambda text: text.replace('"files": {}', '"files": {"../x": {"sha256": "%s", "bytes": 1}}' % ("0" * 64)),
        "files",
    ),
]


@pytest.mark.parametrize(("change", "says"), [(c, s) for _, c, s in BAD], ids=[name for name, _, _ in BAD])
def test_what_is_no_record_is_refused_in_one_line(change: Callable[[str], str], says: str, make_record: Make) -> None:
    text = make_record().to_json().decode()
    changed = change(text)
    assert changed != text
    with contextlib.suppress(CorruptData, TypeError):  # sealed anew, so that not the seal speaks
        values = read_json(changed.encode(), "x")
        values.pop("sha256", None)
        changed = write_sealed(values).decode()
    with pytest.raises(CorruptData, match=says) as caught:
        RunRecord.from_json(changed.encode(), "results/run.json")
    message = str(caught.value)
    assert message.startswith("results/run.json: ")
    assert "\n" not in message
    assert len(message) < 500


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(CorruptData, match="not strict JSON"):
        read_json(b'{"a": "\xff"}', "x")


@pytest.mark.parametrize("cut", range(0, 1200, 37))
def test_every_truncation_is_refused(cut: int, make_record: Make) -> None:
    text = make_record().to_json()
    with pytest.raises(CorruptData):
        RunRecord.from_json(text[: cut * len(text) // 1200], "run.json")


def test_every_changed_character_is_noticed(make_record: Make) -> None:
    text = make_record().to_json()
    record = RunRecord.from_json(text, "run.json")
    for place in range(len(text)):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        try:
            found = RunRecord.from_json(changed, "run.json")
        except CorruptData:
            continue
        assert found == record  # white space between the facts


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_strict_json_reads_what_it_wrote(value: Any) -> None:
    assert read_json(write_json(value) or b" ", "x") == value


def test_writing_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"a": float("nan")})


def test_an_older_record_is_upgraded_step_by_step(make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    old = json.loads(make_record().to_json())
    del old["sha256"]
    old["step_count"] = old.pop("steps")
    monkeypatch.setattr(record_module, "RECORD_SCHEMA", 3)
    with pytest.raises(CorruptData, match="older than any"):
        RunRecord.from_json(write_sealed(old), "run.json")

    def rename(values: dict[str, Any]) -> dict[str, Any]:
        return {("steps" if key == "step_count" else key): value for key, value in values.items()}

    monkeypatch.setitem(record_module.UPGRADES, 1, rename)
    monkeypatch.setitem(record_module.UPGRADES, 2, lambda values: {**values, "sequences": values["sequences"] * 2})
    upgraded = RunRecord.from_json(write_sealed(old), "run.json")
    assert (upgraded.steps, upgraded.sequences, upgraded.schema_version) == (3, 192, 3)

    monkeypatch.setitem(record_module.UPGRADES, 2, lambda values: values["no such key"])
    with pytest.raises(CorruptData, match="cannot be brought from schema version 2 on"):
        RunRecord.from_json(write_sealed(old), "run.json")


def test_lean_and_full_are_the_same_run(make_record: Make) -> None:
    files = {
        name: FileHash(sha256=f"{n}" * 64, bytes=n) for n, name in enumerate(("final.safetensors", "metrics-0.parquet"))
    }
    full = make_record(files=files)
    lean = full.lean(lambda name: name.startswith("metrics-"))
    assert set(lean.files) == {"metrics-0.parquet"}
    assert set(lean.left_out) == {"final.safetensors"}
    assert full.same_run(lean)
    assert lean.same_run(full)
    assert not full.same_run(make_record(files=files, steps=4))
    assert not full.same_run(make_record(files={"final.safetensors": files["final.safetensors"]}))


def test_the_environment_tells_nothing_of_the_place() -> None:
    captured = Environment.capture(2, {"gpu": "NVIDIA H200", "driver": "580.1", "precision": {"tf32": False}})
    text = captured.model_dump_json()
    for secret in (str(Path.home()), str(Path.cwd()), f"/{getpass.getuser()}", sys.prefix):
        assert secret not in text
    assert not {"host", "hostname", "user", "path", "node"} & set(Environment.model_fields)
    assert captured.threads == 2
    assert captured.precision == {"tf32": False}
    assert captured.versions["numpy"]
    assert captured.versions["rnnbench"]
    assert RECORD_SCHEMA >= 1


@pytest.mark.parametrize("facts", [{"hostname": "a"}, {"user": "b"}, {"gpu": 3}, {"gpu": "x" * 300}])
def test_facts_off_the_list_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="environment"):
        Environment.capture(1, facts)


def test_capturing_imports_no_framework() -> None:
    code = (
        "import sys, rnnbench; from rnnbench.record import Environment; Environment.capture(1); import rnnbench.store; "
        "from rnnbench.cli import results; "
        "print([name for name in ('torch', 'jax', 'pandas', 'pyarrow', 'scipy', 'seaborn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
