"""From options to runs."""

from __future__ import annotations

from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rnnbench.cli.spec_options import Choice, parse_setting, parse_value, spec_options, specs_from_options
from rnnbench.errors import BadInput

DEEP = "[" * 100 + "a" + "]" * 100


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cell.hidden=32,64", [32, 64]),
        ("cell.hidden= 32 , 64 ", [32, 64]),
        ("optimizer.lr=0.1,1e-3,.5,1.,-.5e1", [0.1, 0.001, 0.5, 1.0, -5.0]),
        ("eval.n=1_000", [1000]),
        ("cell.peepholes=true,false", [True, False]),
        ("task.layout=A,B", ["A", "B"]),
        ('task.layout="A,B",C', ["A,B", "C"]),
        ("task.columns=[a,b],[c]", [["a", "b"], ["c"]]),
        ("task.columns=[]", [[]]),
        ('task.columns=["a]b", c]', [["a]b", "c"]]),
        ("cell=lstm,{name='gru',reset='before'}", ["lstm", {"name": "gru", "reset": "before"}]),
        ("task.start=2020-01-01", ["2020-01-01"]),
        ("task.file=my data.csv", ["my data.csv"]),
        ("task.file=a#b,5#x", ["a#b", "5#x"]),
        ("task.file=it's", ["it's"]),
        ("task.file=a=b", ["a=b"]),
        ("task.file='a # b'", ["a # b"]),
    ],
)
def test_values_are_read_as_toml_or_else_as_they_stand(text: str, values: list[Any]) -> None:
    _, found = parse_setting(text)
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cell.hidden", "'cell.hidden' is not KEY=VALUE"),
        ("=3", "'=3' is not KEY=VALUE"),
        ("", "'' is not KEY=VALUE"),
        ("cell.hidden=", "--set cell.hidden: a value is missing"),
        ("cell.hidden= ", "a value is missing"),
        ("cell.hidden=1,,2", "a value is missing"),
        ("cell.hidden=1,", "a value is missing"),
        ("cell.hidden=[1,2", "brackets"),
        ("cell.hidden='a", "quotation marks"),
        ("cell.hidden={a", "brackets"),
        ("cell.hidden=1]\nb=[2", "control characters"),
        ("cell.hidden=\x00", "control characters"),
        ("cell.hidden=" + "[" * 20_000, "brackets"),
        ("cell.hidden=" + DEEP, "nested too deeply"),
        ("cel.hidden=3", "unknown key 'cel'; did you mean cell"),
        ("cell..hidden=3", "is not a dotted key"),
        ("-x=3", "unknown key '-x'"),
        ("a\nb=3", "is not a dotted key"),
        ("seed=3", "--seed"),
        ("backend=jax", "--backend"),
    ],
)
def test_settings_that_are_refused(text: str, part: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_setting(text)
    assert part in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.text(alphabet="ab1.,[]{}'\"#=-_ \\\n", max_size=12))
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    answer = ""
    try:
        parse_value(text, "x")
    except BadInput as error:
        answer = str(error)
    assert answer.isprintable()


def test_options_become_runs() -> None:
    choice = Choice(
        task="copy,adding",
        cell="rnn,lstm",
        techniques=("clip_norm", "clip_value"),
        optimizer="sgd",
        backend="torch,jax",
        device="cpu",
        precision="float64",
        path="reference",
        steps=7,
        seed="3,9",
        settings=("cell.hidden=8,16", "eval.n=5"),
    )
    arms = specs_from_options(choice)
    assert len(arms) == 2 * 2 * 2 * 2 * 2
    assert [arms[i].label for i in (0, 4, 8, 16)] == [
        "copy rnn hidden=8",
        "copy rnn hidden=16",
        "copy lstm hidden=8",
        "adding rnn hidden=8",
    ]
    spec = arms[-1].spec
    assert (spec.task.name, spec.backend, spec.seed, spec.precision, spec.path) == (
        "adding",
        "jax",
        9,
        "float64",
        "reference",
    )
    assert spec.cell is not None
    assert spec.cell.model_dump() == {"name": "lstm", "hidden": 16}
    assert [technique.name for technique in spec.techniques] == ["clip_norm", "clip_value"]
    assert (spec.optimizer.name, spec.budget.steps, spec.eval.n) == ("sgd", 7, 5)


def test_the_defaults_are_one_run() -> None:
    (arm,) = Choice(task="copy", cell="rnn").arms()
    assert (arm.label, arm.spec.backend, arm.spec.seed) == ("copy rnn", "torch", 0)
    assert [arm.spec.backend for arm in Choice(task="copy", cell="rnn").arms(("torch", "jax"))] == ["torch", "jax"]
    assert [arm.spec.seed for arm in Choice(task="copy", cell="rnn", seeds=3).arms()] == [0, 1, 2]


def test_a_whole_model_takes_the_place_of_a_cell() -> None:
    (arm,) = Choice(task="copy", model="mine.net:build").arms()
    assert arm.spec.model == "mine.net:build"
    assert not arm.spec.matched


def test_a_suite_is_overridden() -> None:
    choice = Choice(suite_name="quickstart", backend="jax", seed="5", steps=3, settings=("cell=gru",))
    arms = choice.arms()
    assert {(a.spec.backend, a.spec.seed, a.spec.budget.steps, a.spec.cell and a.spec.cell.name) for a in arms} == {
        ("jax", 5, 3, "gru")
    }
    assert choice.suite().name == "quickstart"


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        (Choice(), "give a suite, a TOML file, or --task"),
        (Choice(task="copy"), "give either --cell or --model"),
        (Choice(task="copy", cell="rnn", model="a:b"), "not both"),
        (Choice(task="copy", model="a"), "model: 'a' will not do"),
        (Choice(task="copy,", cell="rnn"), "--task: 'copy,' has an empty name"),
        (Choice(task="copy", cell="rnn,rnn"), "--cell: 'rnn' is given twice"),
        (Choice(task="../x", cell="rnn"), "'../x'"),
        (Choice(task="a\nb", cell="rnn"), "'a\\nb'"),
        (Choice(task="a\0", cell="rnn"), "'a\\x00'"),
        (Choice(task="-x", cell="rnn"), "'-x'"),
        (Choice(task="a" * 300, cell="rnn"), "300 characters"),
        (Choice(task="copy", cell="rnn", techniques=("a,b",)), "--technique: one name each"),
        (Choice(task="copy", cell="rnn", seeds=3, seed="1"), "not both"),
        (Choice(task="copy", cell="rnn", seed="1,1"), "--seed: '1' is given twice"),
        (Choice(task="copy", cell="rnn", seed="1,01"), "1 is given twice"),
        (Choice(task="copy", cell="rnn", seed="-1"), "seed -1"),
        (Choice(task="copy", cell="rnn", seed="4294967296"), "seed 4294967296"),
        (Choice(task="copy", cell="rnn", seed="9" * 5000), "--seed: '9999"),
        (Choice(task="copy", cell="rnn", seed="a"), "--seed: 'a' is not an integer"),
        (Choice(task="copy", cell="rnn", seed="٣"), "is not an integer"),
        (Choice(task="copy", cell="rnn", seed="1,"), "empty name"),
        (Choice(task="copy", cell="rnn", seeds=0), "seeds: 0 will not do"),
        (Choice(task="copy", cell="rnn", seeds=10**9), "1,000,000,000 runs"),
        (Choice(task="copy", cell="rnn", backend="torch,torch"), "--backend: 'torch' is given twice"),
        (Choice(task="copy", cell="rnn", device="gpu"), "device: 'gpu' will not do"),
        (Choice(task="copy", cell="rnn", precision="half"), "precision: 'half' will not do"),
        (Choice(task="copy", cell="rnn", steps=0), "budget.steps: 0 will not do"),
        (Choice(task="copy", cell="rnn", settings=("data.batch_size=0",)), "data.batch_size: 0 will not do"),
        (Choice(task="copy", cell="rnn", settings=("optimizer.lr=nan",)), "optimizer.lr: nan is not a finite number"),
        (Choice(task="copy", cell="rnn", settings=("eval.n=1", "eval.n=2")), "--set: eval.n is set twice"),
        (Choice(task="copy", cell="rnn", steps=3, settings=("budget.steps=2",)), "budget.steps is set twice"),
        (Choice(task="copy", cell="rnn", settings=("eval.nn=1",)), "eval.nn: unknown key"),
        (Choice(suite_name="quickstart", task="copy"), "--task: a suite names its own"),
        (Choice(suite_name="quickstrt"), "did you mean quickstart?"),
        (Choice(suite_name="x.toml"), "x.toml: there is no such file"),
    ],
)
def test_refusals(choice: Choice, part: str) -> None:
    with pytest.raises(BadInput) as caught:
        choice.arms()
    assert part in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_decorator_hands_over_one_choice() -> None:
    seen: list[tuple[Choice, bool]] = []

    @click.command()
    @spec_options
    @click.option("--fast", is_flag=True)
    def act(choice: Choice, fast: bool) -> None:
        """Act."""
        seen.append((choice, fast))

    arguments = "quickstart --fast --backend jax --seeds 2 --set a=1 --set b=2 --technique x --technique y --steps 5"
    result = CliRunner().invoke(act, arguments.split())
    assert result.exit_code == 0, result.output
    assert seen == [
        (
            Choice(
                suite_name="quickstart",
                backend="jax",
                seeds=2,
                settings=("a=1", "b=2"),
                techniques=("x", "y"),
                steps=5,
            ),
            True,
        )
    ]
    assert "Act." in CliRunner().invoke(act, ["--help"]).output
