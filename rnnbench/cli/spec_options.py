"""The options that say what to run, shared by the commands that run something.

A command is decorated with `spec_options` and receives a `Choice`; `Choice.suite` and `Choice.arms` give the runs.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import rich_click as click

from rnnbench.errors import BadInput, quoted

if TYPE_CHECKING:
    from rnnbench.spec import Ref
    from rnnbench.suite import Arm, SuiteSpec

ADHOC = "adhoc"
"""Name of the suite, and so of the folder, of runs that are put together from options."""

_MAX_DEPTH = 32
_NUMBER = re.compile(r"[+-]?(\d+\.|\.\d+)([eE][+-]?\d+)?")
_QUOTES = "\"'"


@dataclass(frozen=True)
class Choice:
    """What the options ask for; None or empty where an option was not given."""

    suite_name: str | None = None
    task: str | None = None
    cell: str | None = None
    model: str | None = None
    techniques: tuple[str, ...] = ()
    optimizer: str | None = None
    backend: str | None = None
    device: str | None = None
    precision: str | None = None
    path: str | None = None
    steps: int | None = None
    seeds: int | None = None
    seed: str | None = None
    probes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def suite(self, backends: Sequence[str] = ("torch",)) -> SuiteSpec:
        """Return the suite that is asked for, with all overrides.

        Args:
            backends: on which the runs are done where neither an option nor a suite says so.

        Raises:
            BadInput: when options contradict each other or a value will not do.
        """
        from rnnbench.suite import SuiteSpec, load_suite

        start: SuiteSpec
        if self.suite_name is not None:
            for option in ("task", "cell", "model"):
                if getattr(self, option) is not None:
                    raise BadInput(
                        f"--{option}: a suite names its own; use --set {option}.KEY=VALUE to change a setting"
                    )
            start = load_suite(self.suite_name)
        else:
            if self.task is None:
                raise BadInput("give a suite, a TOML file, or --task with --cell or --model")
            arms = [
                {"label": f"{task} {name}"[:80], "settings": {"task": task, key: name}}
                for task in _listed("--task", self.task)
                for key, name in self._networks()
            ]
            start = SuiteSpec.parse({"name": ADHOC, "arms": arms, "backends": list(backends)}, "")
        chosen = None if self.backend is None else _listed("--backend", self.backend)
        return start.overridden(self._overrides(), chosen, self._seeds())

    def arms(self, backends: Sequence[str] = ("torch",)) -> list[Arm]:
        """Return every run that is asked for; see `suite`."""
        return self.suite(backends).expand(None if self.suite_name is not None else "")

    def _networks(self) -> list[tuple[str, str]]:
        if (self.cell is None) == (self.model is None):
            raise BadInput("give either --cell or --model" + (", not both" if self.cell else ""))
        key, names = ("cell", self.cell) if self.cell is not None else ("model", self.model)
        return [(key, name) for name in _listed(f"--{key}", names or "")]

    def _overrides(self) -> dict[str, list[Any]]:
        given: dict[str, list[Any]] = {}
        for key, value in (
            ("optimizer", self.optimizer),
            ("device", self.device),
            ("precision", self.precision),
            ("path", self.path),
        ):
            if value is not None:
                given[key] = list(_listed(f"--{key}", value))
        if self.steps is not None:
            given["budget.steps"] = [self.steps]
        if self.techniques:
            if any("," in name for name in self.techniques):
                raise BadInput("--technique: one name each; repeat the option for techniques that act together")
            given["techniques"] = [list(self.techniques)]
        if self.probes:
            given["record.probes"] = [[parse_probe(text).model_dump(mode="json") for text in self.probes]]
        for text in self.settings:
            key, values = parse_setting(text)
            if key in given:
                raise BadInput(f"--set: {key} is set twice; a=1,2 runs both values")
            given[key] = values
        return given

    def _seeds(self) -> int | list[int] | None:
        if self.seed is None:
            return self.seeds
        if self.seeds is not None:
            raise BadInput("give either --seeds (how many) or --seed (which), not both")
        return [_integer("--seed", text) for text in _listed("--seed", self.seed)]


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument SUITE and the options that say what to run; the command gets them as `choice`, a `Choice`."""
    names = [field.name for field in fields(Choice)]

    @functools.wraps(command)
    def with_choice(*args: Any, **kwargs: Any) -> Any:
        choice = Choice(**{name: kwargs.pop(name) for name in names if name in kwargs})
        return command(*args, choice=choice, **kwargs)

    for option in reversed(_OPTIONS):
        with_choice = option(with_choice)
    return with_choice


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.argument("suite_name", metavar="[SUITE|FILE.toml]", required=False),
    click.option("--task", metavar="NAME[,NAME…]", help="A task, or several to run one after another."),
    click.option("--cell", metavar="NAME[,NAME…]", help="A cell, or several."),
    click.option("--model", metavar="MODULE:BUILD", help="Your whole model in place of a cell; an unmatched arm."),
    click.option("--technique", "techniques", metavar="NAME", multiple=True, help="A technique; repeat for several."),
    click.option("--optimizer", metavar="NAME", help="An optimizer (adam unless the suite says otherwise)."),
    click.option("--backend", metavar="NAME[,NAME]", help="torch, jax, or both."),
    click.option("--device", metavar="NAME", help="cpu, cuda[:n] or tpu[:n]."),
    click.option("--precision", metavar="NAME", help="float64, float32, tf32 or bfloat16."),
    click.option("--path", metavar="NAME", help="auto, reference, or a backend's own way to compute, e.g. fused."),
    click.option("--steps", type=int, metavar="N", help="Training steps."),
    click.option("--seeds", type=int, metavar="N", help="How many seeds: 0 to N-1."),
    click.option("--seed", metavar="N[,N…]", help="Which seeds."),
    click.option(
        "--set",
        "settings",
        metavar="KEY=VALUE[,VALUE…]",
        multiple=True,
        help="Any setting by dotted key, e.g. task.delay=200; several values are run each.",
    ),
)


def specs_from_options(choice: Choice, backends: Sequence[str] = ("torch",)) -> list[Arm]:
    """Return every run that the options ask for.

    Raises:
        BadInput: when options contradict each other or a value will not do.
    """
    return choice.arms(backends)


def parse_setting(text: str) -> tuple[str, list[Any]]:
    """Read ``key=value`` or ``key=value,value``: the dotted key and its values.

    Raises:
        BadInput: when it is not of that form, or the key is not one that a run has.
    """
    from rnnbench.suite import check_key

    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise BadInput(f"--set: {quoted(text)} is not KEY=VALUE, e.g. task.delay=200")
    try:
        check_key("--set", key)
    except ValueError as error:
        raise BadInput(str(error)) from None
    return key, [parse_value(piece, f"--set {key}") for piece in split_commas(value, f"--set {key}")]


def parse_probe(text: str) -> Ref:
    """Read ``NAME`` or ``NAME:KEY=VALUE,…``; a name may itself be a user's ``module:Class``.

    Raises:
        BadInput: when it is not of that form.
    """
    from rnnbench import registry
    from rnnbench.spec import Ref

    before, equals, _ = text.partition("=")
    name = before.rpartition(":")[0] if equals else text
    if not name.strip():
        raise BadInput(f"--probe: {quoted(text)} is not NAME or NAME:KEY=VALUE, e.g. spectrum:exponents=8")
    if "," in name or (not equals and name.partition(":")[0] in registry.names("probes") and ":" in name):
        raise BadInput(
            f"--probe: {quoted(text)} is not NAME or NAME:KEY=VALUE,KEY=VALUE; repeat the option for several probes"
        )
    params: dict[str, Any] = {}
    for piece in split_commas(text[len(name) + 1 :], f"--probe {name}") if equals else []:
        key, sign, value = piece.partition("=")
        if not sign or not key.strip():
            raise BadInput(f"--probe {quoted(name)}: {quoted(piece)} is not KEY=VALUE")
        if key.strip() in params:
            raise BadInput(f"--probe {quoted(name)}: {quoted(key.strip())} is given twice")
        params[key.strip()] = parse_value(value, f"--probe {quoted(name)} {quoted(key.strip())}")
    return Ref.parse({"name": name, "params": params}, "--probe")


def parse_value(text: str, place: str, depth: int = 0) -> Any:
    """Read a value as TOML would (200, 0.1, true, "x", [1, 2]); what is no TOML value is a string as it stands.

    Raises:
        BadInput: when nothing stands there, or a bracket or a quotation mark is not closed.
    """
    text = text.strip()
    if not text:
        raise BadInput(f"{place}: a value is missing")
    if not text.isprintable() or depth > _MAX_DEPTH:
        raise BadInput(
            f"{place}: {quoted(text)} will not do; " + ("nested too deeply" if depth else "control characters")
        )
    if "#" not in text or text[0] in _QUOTES:  # unquoted, what follows a # would be lost as a comment
        found = _toml(text)
        if isinstance(found, (str, int, float, list, dict)):  # a date stays the text that it was
            return found
    if _NUMBER.fullmatch(text):
        return float(text)
    if text[0] == "[" and text[-1] == "]":
        inner = text[1:-1].strip()
        return [parse_value(piece, place, depth + 1) for piece in split_commas(inner, place)] if inner else []
    if text[0] in "[{" or text[0] in _QUOTES:
        raise BadInput(f"{place}: {quoted(text)} is not a value; check its brackets and quotation marks")
    return text


def _toml(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return None
    return table["value"] if len(table) == 1 else None


def split_commas(text: str, place: str) -> list[str]:
    """Cut `text` at the commas that stand outside brackets and quotation marks."""
    pieces, start, depth, quote = [], 0, 0, ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[at - 1] != "\\" else quote
        elif char in _QUOTES and not text[start:at].strip(" [{,="):
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            pieces.append(text[start:at])
            start = at + 1
    if not text.strip():
        raise BadInput(f"{place}: a value is missing")
    return [*pieces, text[start:]]


def _listed(place: str, text: str) -> list[str]:
    """Return the names of a comma list; none may be empty or stand there twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise BadInput(f"{place}: {quoted(text)} has an empty name")
    for name in names:
        if not name.isprintable():
            raise BadInput(f"{place}: {quoted(name)} is not a name")
        if names.count(name) > 1:
            raise BadInput(f"{place}: {quoted(name)} is given twice")
    return names


def _integer(place: str, text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
        raise BadInput(f"{place}: {quoted(text)} is not an integer")
    return int(text)
