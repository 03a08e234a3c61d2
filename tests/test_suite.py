"""Suites: what a file may hold, how its runs come about, and how each misuse is answered."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnbench import registry
from rnnbench.errors import BadInput
from rnnbench.spec import RunSpec
from rnnbench.suite import MAX_BYTES, SuiteSpec, load_suite, merged, parse_suite, suite_origin

BASE = 'base.task = "copy"\nbase.cell = "lstm"\n'


def suite(text: str) -> SuiteSpec:
    return parse_suite(text.encode(), "my.toml", "my")


def refused(text: str | bytes, *parts: str) -> None:
    """Assert that a file is refused, by reading or by expanding it, in one line with the given parts."""
    with pytest.raises(BadInput) as caught:
        parse_suite(text if isinstance(text, bytes) else text.encode(), "my.toml", "my").expand()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    for part in parts:
        assert part in message


def answer(action: Callable[[], object]) -> str:
    """Return the message that `action` is refused with; nothing when it is not. Any other exception comes out."""
    try:
        action()
    except BadInput as error:
        return str(error)
    return ""


def test_a_base_alone_is_one_run() -> None:
    (arm,) = suite(BASE).expand()
    assert arm.label == "copy lstm"
    assert arm.spec == RunSpec.parse({"task": "copy", "cell": "lstm"}, "")


def test_runs_are_the_product_in_order_with_seeds_adjacent() -> None:
    text = (
        BASE + 'seeds = [7, 3]\nbackends = ["torch", "jax"]\n[grid]\n"cell.hidden" = [8, 16]\n"task.delay" = [5, 6]\n'
    )
    text += '[[arms]]\nlabel = "a"\n[[arms]]\nlabel = "b"\ncell = "gru"\n'
    spec = suite(text)
    runs = spec.expand()
    assert len(runs) == spec.count() == 2 * 2 * 2 * 2 * 2
    naive = [
        (f"{arm} hidden={hidden} delay={delay}", cell, hidden, delay, backend, seed)
        for (arm, cell), hidden, delay, backend, seed in itertools.product(
            [("a", "lstm"), ("b", "gru")], [8, 16], [5, 6], ["torch", "jax"], [7, 3]
        )
    ]
    found = []
    for run in runs:
        assert run.spec.cell is not None
        hidden, delay = run.spec.cell.params["hidden"], run.spec.task.params["delay"]
        found.append((run.label, run.spec.cell.name, hidden, delay, run.spec.backend, run.spec.seed))
    assert found == naive
    # What model_copy builds is what validation would have built.
    assert all(RunSpec.model_validate_json(run.spec.model_dump_json()) == run.spec for run in runs)


def test_a_number_of_seeds_counts_from_zero() -> None:
    assert [run.spec.seed for run in suite(BASE + "seeds = 3").expand()] == [0, 1, 2]


def test_labels_tell_runs_apart_even_when_their_values_begin_alike() -> None:
    runs = suite(BASE + f"grid.task.file = ['{'x' * 60}a', '{'x' * 60}b']").expand()
    assert len({run.label for run in runs}) == 2
    assert {run.label for run in suite(BASE + "grid.task.file = [1, '1']").expand()} == {
        "copy lstm file=1#1",
        "copy lstm file=1#2",
    }


def test_dotted_and_nested_keys_mean_the_same() -> None:
    dotted = suite('[base]\n"task.name" = "copy"\n"task.delay" = 5\ncell = "gru"\n[grid]\n"cell.hidden" = [1, 2]')
    nested = suite('[base.task]\nname = "copy"\ndelay = 5\n[base.cell]\nname = "gru"\n[grid]\ncell.hidden = [1, 2]')
    assert [run.spec for run in dotted.expand()] == [run.spec for run in nested.expand()]


@pytest.mark.parametrize(
    ("base", "setting", "expected"),
    [
        ({"cell": "lstm"}, {"cell": "gru"}, {"cell": {"name": "gru"}}),
        (
            {"cell": {"name": "lstm", "hidden": 8, "peepholes": True}},
            {"cell": {"name": "gru"}},
            {"cell": {"name": "gru"}},
        ),
        (
            {"cell": {"name": "lstm", "hidden": 8}},
            {"cell": {"name": "lstm", "biases": 2}},
            {"cell": {"name": "lstm", "hidden": 8, "biases": 2}},
        ),
        (
            {"cell": {"name": "lstm", "params": {"hidden": 8}}},
            {"cell": {"hidden": 9}},
            {"cell": {"name": "lstm", "hidden": 9}},
        ),
        ({"cell": "lstm"}, {"cell.hidden": 4}, {"cell": {"name": "lstm", "hidden": 4}}),
        ({"cell": "lstm"}, {"model": "a:b"}, {"model": "a:b"}),
        ({"model": "a:b"}, {"cell": "gru"}, {"cell": {"name": "gru"}}),
        ({"eval": {"n": 5, "every": 2}}, {"eval": {"n": 6}}, {"eval": {"n": 6, "every": 2}}),
        ({"eval": {"n": 5}}, {"eval.every": 3}, {"eval": {"n": 5, "every": 3}}),
        ({"budget": {"steps": 5}}, {"budget.seconds": 2.0}, {"budget": {"seconds": 2.0}}),
        ({"budget": {"steps": 5}}, {"budget": {"sequences": 9}}, {"budget": {"sequences": 9}}),
        ({"techniques": ["clip_norm"]}, {"techniques": ["clip_value"]}, {"techniques": ["clip_value"]}),
        (
            {"techniques": ["clip_norm", {"name": "clip_value", "limit": 2}]},
            {"techniques.clip_norm.max": 3},
            {"techniques": [{"name": "clip_norm", "max": 3}, {"name": "clip_value", "limit": 2}]},
        ),
        (
            {"techniques": ["my.mod:Clip"]},
            {"techniques.my.mod:Clip.max": 3},
            {"techniques": [{"name": "my.mod:Clip", "max": 3}]},
        ),
    ],
)
def test_merging(base: dict[str, Any], setting: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr(base)
    assert merged(base, setting) == expected
    assert repr(base) == before


def test_a_technique_that_is_not_there_cannot_be_set() -> None:
    with pytest.raises(BadInput, match=r"techniques: unknown name 'clip_nrm'; did you mean clip_norm\?"):
        merged({"techniques": ["clip_norm"]}, {"techniques.clip_nrm.max": 1})


def test_an_arm_may_have_its_own_backends() -> None:
    text = (
        BASE
        + 'backends = ["torch", "jax"]\n[[arms]]\nlabel = "a"\n[[arms]]\nlabel = "m"\nmodel = "x:y"\nbackends = ["jax"]'
    )
    assert [(run.label, run.spec.backend) for run in suite(text).expand()] == [
        ("a", "torch"),
        ("a", "jax"),
        ("m", "jax"),
    ]
    assert suite(text).count() == 3


def test_overrides_lie_on_top_of_arms_and_grid() -> None:
    text = (
        BASE + 'backends = ["jax"]\nseeds = 9\n[grid]\n"cell.hidden" = [8, 16]\n[[arms]]\nlabel = "a"\ntask.delay = 5'
    )
    changed = suite(text).overridden({"cell.hidden": [3], "task.delay": [1, 2]}, ["torch"], [4])
    runs = changed.expand()
    assert [(run.label, run.spec.backend, run.spec.seed) for run in runs] == [
        ("a delay=1", "torch", 4),
        ("a delay=2", "torch", 4),
    ]
    assert {run.spec.cell.params["hidden"] for run in runs if run.spec.cell} == {3}
    assert suite(text).overridden() == suite(text)


def test_labels_name_whole_components_and_lists() -> None:
    text = (
        BASE
        + '[grid]\ncell = ["lstm", {name = "gru", reset = "before"}]\ntechniques = [[], ["clip_norm", "clip_value"]]'
    )
    assert [run.label for run in suite(text).expand()] == [
        "copy lstm techniques=none",
        "copy lstm techniques=clip_norm+clip_value",
        "copy gru techniques=none",
        "copy gru techniques=clip_norm+clip_value",
    ]
    text = BASE + '[grid]\ncell = ["gru", {name = "gru", reset = "before"}]'
    assert [run.label for run in suite(text).expand()] == ["copy cell=gru", "copy cell=gru(reset=before)"]
    text = BASE + '[grid]\n"task.n" = [1, 2]\n"eval.n" = [3, 4]'
    assert suite(text).expand()[0].label == "copy lstm task.n=1 eval.n=3"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seeds = [1, 2, 1]", ["seeds", "1 is given twice"]),
        ("seeds = -1", ["seeds", "-1"]),
        ("seeds = 0", ["seeds", "from 1 to 2**32"]),
        ("seeds = [-1]", ["seed -1", "0 to 2**32 - 1"]),
        ("seeds = [4294967296]", ["seed 4294967296", "0 to 2**32 - 1"]),
        ("seeds = [true]", ["seed True"]),
        ("seeds = true", ["seeds"]),
        ("seeds = [0.5]", ["seed 0.5"]),
        ("seeds = []", ["seeds", "nothing to run"]),
        ('seeds = "3"', ["seeds"]),
        ("seeds = 1000000000", ["1,000,000,000 runs", "100,000"]),
        ("seeds = 0x" + "f" * 10_000, ["my.toml"]),
        ("seeds = " + "9" * 5_000, ["my.toml: not TOML", "4300 digits"]),
        ("backends = []", ["backends", "nothing to run"]),
        ('backends = ["jax", "jax"]', ["backend", "jax is given twice"]),
        ('backends = ["../x"]', ["backends", "'../x'"]),
        ("arms = 3", ["arms"]),
        ("[[arms]]\ncell = 'gru'", ["arms.0.label", "missing"]),
        ("[[arms]]\nlabel = 'a'\n[[arms]]\nlabel = 'a'\ncell = 'gru'", ["arms", "a is given twice"]),
        ("[[arms]]\nlabel = 'a'\n[[arms]]\nlabel = 'b'", ["'a' and 'b' are the same run"]),
        ('[[arms]]\nlabel = "a\\nb"', ["label", "printable"]),
        ("[[arms]]\nlabel = 'a'\ncel = 'gru'", ["arm a", "unknown key 'cel'", "cell"]),
        ("[[arms]]\nlabel = 'a'\nbackends = []", ["arm a", "nothing to run"]),
        ("grid.cell.hidden = []", ["cell.hidden", "nothing to run"]),
        ("grid.cell.hidden = [1, 2, 1]", ["'copy lstm hidden=1' and 'copy lstm hidden=1' are the same run"]),
        ("grid.cell.hidden = 3", ["'cell.hidden' needs a list"]),
        ("grid.cel.hidden = [3]", ["unknown key 'cel'", "did you mean cell"]),
        ("grid.cell.hidden = [nan]", ["cell.hidden", "nan is not a finite number"]),
        ("base.optimizer = {name = 'adam', lr = inf}", ["optimizer.lr", "inf is not a finite number"]),
        ("grid.seed = [1]", ["--seed"]),
        ("base.backend = 'jax'", ["--backend"]),
        ('grid."cell..hidden" = [1]', ["'cell..hidden' is not a dotted key"]),
        ('grid."" = [1]', ["'' is not a dotted key"]),
        ("\n".join(f"grid.cell.k{i} = [0,1,2,3,4,5,6,7,8,9]" for i in range(9)), ["1,000,000,000 runs"]),
        ("base.precision = 'float16'", ["precision", "'float16'"]),
        ("base.device = 'gpu'", ["device", "'gpu'", "cuda"]),
        ("base.budget = {steps = 5, seconds = 3.0}", ["budget", "exactly one"]),
        ("base.date = 2020-01-01", ["my.toml", "not plain data"]),
        ("optimizr = 'adam'", ["unknown key"]),
        ("refrences = []", ["did you mean references?"]),
        ("references = [{value = 1}]", ["reference 1 does not say its source"]),
        ("name = '../x'", ["name", "'../x'"]),
        ("name = '-x'", ["name", "'-x'"]),
        ('name = "a\\nb"', ["name"]),
        ('name = "a\\n"', ["name"]),
        ('name = "a\\u0000b"', ["name"]),
        ("name = ''", ["name"]),
        (f"name = '{'a' * 300}'", ["name", "300 characters"]),
        ("name = 3", ["name"]),
    ],
)
def test_refusals(text: str, parts: list[str]) -> None:
    top = text.startswith(("base", "grid", "[[")) or "\n" in text
    refused(BASE + text if top else text + "\n" + BASE, *parts)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["task: missing"]),
        (b"base.task = 'copy'", ["either a cell or a model: neither given"]),
        (b"base = 3", ["base"]),
        (b"\xff\xfe", ["my.toml, line 1: byte 0xff is not UTF-8"]),
        (b"a = 1\nb = '\xff'", ["my.toml, line 2: byte 0xff"]),
        (b"a\0 = 1", ["my.toml: not TOML", "line 1"]),
        (b'a = "\0"', ["not TOML"]),
        (b"a = 1\na = 2", ["my.toml: not TOML"]),
        (b"a = 'x", ["not TOML"]),
        (b"<!DOCTYPE html>", ["not TOML", "line 1"]),
        (b"#" * (MAX_BYTES + 1), ["larger than 1,000,000 bytes"]),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, ["nested too deeply"]),
        (b"a = " + b"[" * 20_000, ["nested too deeply"]),
        (b"a = " + b"{a = " * 20_000 + b"1" + b"}" * 20_000, ["nested too deeply"]),
        (b".".join([b"a"] * 20_000) + b" = 1", ["line 1: nested too deeply"]),
        (b"\n[" + b".".join([b"a"] * 20_000) + b"]", ["line 2: nested too deeply"]),
        (b"a = {" + b" . ".join([b"'a.b'"] * 20_000) + b" = 1}", ["nested too deeply"]),
    ],
    ids=lambda value: str(value)[:24],
)
def test_files_that_are_no_suites(data: bytes, parts: list[str]) -> None:
    refused(data, *parts)


def test_long_lines_of_prose_and_numbers_are_not_deep() -> None:
    prose = "One. " * 100
    numbers = ", ".join(f"{i}.5" for i in range(1, 200))
    text = BASE + f'[grid]\n"optimizer.lr" = [{numbers}]\n'
    assert suite(f'description = "{prose}"\n' + text).count() == 199


@given(st.binary(max_size=200))
def test_no_bytes_get_past_as_anything_but_a_suite_or_one_line(data: bytes) -> None:
    assert answer(lambda: parse_suite(data, "my.toml", "my").expand()).isprintable()


@given(
    st.dictionaries(
        st.sampled_from(
            ["task", "cell", "model", "optimizer", "techniques", "budget", "eval.n", "cell.hidden", "stop"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "params", "n", "steps"]), inner)
            ),
            max_leaves=5,
        ),
        max_size=4,
    )
)
def test_no_settings_get_past_as_anything_but_runs_or_one_line(settings: dict[str, Any]) -> None:
    start = SuiteSpec.parse({"name": "x", "base": {"task": "copy", "cell": "rnn"}}, "")
    grid = {key: [value] for key, value in settings.items()}
    assert answer(lambda: start.overridden(grid).expand()).isprintable()


def test_a_file_is_read_and_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_suite(file).name == load_suite(str(file)).name == "mine"
    assert len(load_suite(file).expand()) == 1


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    for path, part in [
        ("missing.toml", "there is no such file"),
        ("folder.toml", "is a folder"),
        ("folder.toml/x.toml", "no such file"),
        ("loop.toml", "cannot be read"),
        ("a\0b.toml", "embedded null byte"),
        ("a\nb.toml", "a\\nb.toml': there is no such file"),
        (f"{'a' * 300}.toml", "name too long"),
    ]:
        with pytest.raises(BadInput) as caught:
            load_suite(f"{tmp_path}/{path}")
        assert part in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(BASE)
    file.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        load_suite(file)


@pytest.mark.parametrize("name", ["nope", "quickstrt", "", "-x", "a\nb", "a" * 300])
def test_unknown_suites(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_suite(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", registry.names("suites"))
def test_every_registered_suite_expands(name: str) -> None:
    spec = load_suite(name)
    assert spec.name == name
    assert spec.title
    assert len(spec.expand()) == spec.count() > 0
    assert suite_origin(name).endswith(".toml")


def test_seeds_at_the_edge() -> None:
    assert [run.spec.seed for run in suite("seeds = [0, 4294967295]\n" + BASE).expand()] == [0, 4294967295]


def test_parameters_given_before_a_name_are_kept() -> None:
    suite = SuiteSpec.parse(
        {
            "name": "s",
            "grid": {"cell": ["rnn", "lstm"]},
            "arms": [{"label": "a", "task": "copy", "cell.hidden": 7, "optimizer.lr": 0.5}],
        },
        "",
    )
    assert [arm.spec.canonical()["cell"] for arm in suite.expand()] == [
        {"name": "rnn", "hidden": 7},
        {"name": "lstm", "hidden": 7},
    ]
    named = suite.overridden({"optimizer": ["sgd"]})
    assert {arm.spec.canonical()["optimizer"]["name"] for arm in named.expand()} == {"sgd"}
    assert {arm.spec.canonical()["optimizer"]["lr"] for arm in named.expand()} == {0.5}


def test_the_quickstart_runs_what_its_file_says() -> None:
    hidden = {arm.label.rsplit(" ", 1)[0]: arm.spec.cell.params["hidden"] for arm in load_suite("quickstart").expand()}
    assert hidden == {"adding T=50": 32, "copy delay=20": 64, "digits T=64": 32, "El Nino +3 months": 16}
