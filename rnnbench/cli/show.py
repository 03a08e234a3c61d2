"""``rnnbench show``: one thing in full."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import rich_click as click

from rnnbench import registry
from rnnbench.cli.common import console, emit_json, escaped, json_option, print_table, printable
from rnnbench.errors import BadInput, RnnbenchError, quoted, unknown
from rnnbench.findings import CODES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from rnnbench.component import Component
    from rnnbench.suite import SuiteSpec
    from rnnbench.tasks.base import Task


@click.command()
@click.argument("thing", metavar="[THING|KIND/THING|FILE.toml|MODULE:ATTRIBUTE]", required=False)
@json_option
def show(thing: str | None, as_json: bool) -> None:
    """Show one thing: what it is, its equation, source and parameters.

    A task also shows its shape, metrics and baselines, a suite its runs, a probe its signals, a finding's code its
    causes and remedies. Where a name stands for several things, write the kind before it: cells/lstm.
    """
    if thing is None:
        raise BadInput("show: say what, e.g. lstm, tasks/copy, quickstart or my_module:MyCell")
    facts = describe_thing(thing)
    if as_json:
        emit_json(facts)
    else:
        _print(facts)


def describe_thing(thing: str) -> dict[str, Any]:
    """Return the facts of a thing as JSON values.

    Raises:
        BadInput: when there is none of that name, when there are several, or when it cannot be loaded.
    """
    from rnnbench.suite import load_suite

    if thing.endswith(".toml"):
        return _suite_facts(load_suite(thing), thing)
    head, slash, rest = thing.partition("/")
    if head in ("finding", "findings") and slash:
        return _code_facts(rest)
    if not slash and ":" in thing:
        return _thing_facts(None, thing, registry.load_attribute(thing, "show"))
    if slash:
        kinds: tuple[str, ...] = tuple(kind for kind in registry.KINDS if head in (kind, kind.removesuffix("s")))
        if not kinds:
            raise unknown("show", head, registry.KINDS)
        name = rest
    else:
        kinds = tuple(kind for kind in registry.KINDS if thing in registry.names(kind))
        name = thing
    if not kinds and thing in CODES:
        return _code_facts(thing)
    if not kinds:
        raise unknown("show", thing, {name for kind in registry.KINDS for name in registry.names(kind)} | CODES.keys())
    if len(kinds) > 1:
        raise BadInput(
            f"show: {quoted(thing)} is more than one thing; write {' or '.join(f'{k}/{thing}' for k in kinds)}"
        )
    kind = kinds[0]
    if kind == "suites":
        from rnnbench.suite import suite_origin

        return _suite_facts(load_suite(name), suite_origin(name))
    return _thing_facts(kind, name, registry.load(kind, name))


def _thing_facts(kind: str | None, name: str, thing: Any) -> dict[str, Any]:
    from rnnbench.cli.catalog import origin_of, summary_of
    from rnnbench.component import Component
    from rnnbench.probes.base import Probe
    from rnnbench.tasks.base import Task

    doc = inspect.getdoc(thing) or ""
    facts: dict[str, Any] = {
        "kind": (kind or _kind_of(thing)).removesuffix("s"),
        "name": name,
        "version": getattr(thing, "version", None),
        "summary": summary_of(thing),
        "description": "\n".join(doc.splitlines()[1:]).strip(),
        "origin": origin_of(kind, name) if kind else "yours",
    }
    if kind == "backends":
        backend = thing()
        facts["version"] = ", ".join(f"{package} {version}" for package, version in backend.versions().items())
    if isinstance(thing, type) and issubclass(thing, Component):
        facts |= {"equation": thing.equation, "source": thing.source, "parameters": _parameters(thing)}
    if isinstance(thing, type) and issubclass(thing, Task):
        facts |= _task_facts(thing)
    if isinstance(thing, type) and issubclass(thing, Probe):
        facts["signals"] = [
            {
                "name": kind.name,
                "axes": list(kind.axes),
                "unit": kind.unit,
                "of": kind.of,
                "meaning": kind.meaning,
                "cost": kind.cost,
            }
            for kind in thing.signals
        ]
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _code_facts(code: str) -> dict[str, Any]:
    """Return what a finding's code means."""
    if code not in CODES:
        raise unknown("show", code, CODES)
    found = CODES[code]
    return {
        "kind": "finding",
        "name": code,
        "origin": f"docs/findings/{code}.md",
        "summary": found.title,
        "severity": str(found.severity),
        "causes": list(found.causes),
        "remedies": list(found.remedies),
        "source": found.reference,
    }


def _kind_of(thing: Any) -> str:
    """Tell a user's own thing by what it is made from."""
    for base in getattr(thing, "__mro__", ()):
        room = base.__module__.removeprefix("rnnbench.").partition(".")[0]
        if base.__module__.startswith("rnnbench.") and room in registry.KINDS:
            return str(room)
    return "thing"


def _task_facts(thing: type[Task]) -> dict[str, Any]:
    """Return shape, metrics and baselines at the default parameters."""
    try:
        task = thing.parse({}, "task")
    except BadInput as error:
        return {"shape": None, "note": f"needs parameters before it has a shape: {error}"}
    try:
        baselines = {
            name: {"metric": baseline.metric, "value": baseline.value, "how": baseline.how}
            for name, baseline in _baselines(task).items()
        }
        note = None
    except RnnbenchError as error:
        baselines, note = None, f"baselines need the data: {error}"
    return {
        "shape": {"steps": task.length, "inputs": task.n_in, "outputs": task.n_out},
        "loss": task.loss,
        "readout": task.readout,
        "metrics": {name: metric.kind for name, metric in task.metrics.items()},
        "metric": task.metric,
        "baselines": baselines,
        "note": note,
    }


def _baselines(task: Task) -> Any:
    import os

    from rnnbench.spec import DataSpec, EvalSpec
    from rnnbench.tasks.datasets import ENVIRONMENT, data_root

    # With a directory named, a data set that is not on this machine is an error and not a download.
    os.environ.setdefault(ENVIRONMENT, str(data_root()))
    task.prepare()
    return task.baselines(task.open(0, 0, DataSpec(), EvalSpec().n))


def _suite_facts(suite: SuiteSpec, file: str) -> dict[str, Any]:
    labels: dict[str, int] = {}
    for arm in suite.expand():
        labels[arm.label] = labels.get(arm.label, 0) + 1
    return {
        "kind": "suite",
        "name": suite.name,
        "summary": suite.title,
        "description": suite.description.strip(),
        "file": file,
        "runs": suite.count(),
        "backends": list(suite.backends),
        "seeds": len(suite.seed_list),
        "arms": [{"label": label, "runs": runs} for label, runs in labels.items()],
        "references": [dict(reference) for reference in suite.references],
    }


def _parameters(component: type[Component]) -> list[dict[str, Any]]:
    from pydantic_core import to_jsonable_python

    return [
        {
            "name": name,
            "type": type_text(field.annotation) + _bounds(field),
            "default": None
            if field.is_required()
            else to_jsonable_python(field.get_default(call_default_factory=True)),
            "required": field.is_required(),
            "description": field.description or "",
        }
        for name, field in component.model_fields.items()
    ]


def type_text(annotation: Any) -> str:
    """Return a type as a user writes values of it: ``int``, ``A | B``, ``list of str``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in args)
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(part) for part in args)
    if annotation is type(None):
        return "none"
    if origin in (list, tuple, set, frozenset):
        inner = ", ".join(dict.fromkeys(type_text(part) for part in args if part is not Ellipsis))
        return f"list of {inner}" if inner else "list"
    if hasattr(annotation, "__metadata__"):
        return type_text(args[0])
    return str(getattr(annotation, "__name__", annotation))


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {getattr(part, name):g}"
        for part in field.metadata
        for name, sign in signs.items()
        if isinstance(getattr(part, name, None), (int, float))
    ]
    return f" {', '.join(found)}" if found else ""


def _print(facts: dict[str, Any]) -> None:
    out = console()
    width = out.width
    version = f", version {facts['version']}" if facts.get("version") else ""
    out.print(printable(f"{facts['kind']} {facts['name']}{version} ({facts.get('origin') or facts.get('file')})"))
    out.print(reflow(facts.get("summary", ""), width))
    if facts.get("description"):
        out.print("\n" + reflow(facts["description"], width))
    if facts.get("equation"):
        out.print("\nequation\n" + "\n".join(f"  {escaped(line)}" for line in facts["equation"].splitlines()))
    if facts.get("severity"):
        out.print(f"as a rule: {facts['severity']}")
    for heading, lines in (("usual causes", facts.get("causes")), ("what usually helps", facts.get("remedies"))):
        if lines:
            listed = "\n".join(f"- {line}" for line in lines)
            out.print(f"\n{heading}\n" + textwrap.indent(reflow(listed, width - 2), "  "))
    if facts.get("source"):
        out.print(
            "\nsource\n" + textwrap.fill(printable(facts["source"]), width, initial_indent="  ", subsequent_indent="  ")
        )
    if facts.get("parameters"):
        out.print()
        print_table(
            [("parameter", "name"), ("type", "text"), ("default", "name"), ("meaning", "text")],
            [[p["name"], p["type"], _default(p), p["description"]] for p in facts["parameters"]],
        )
    if facts.get("shape"):
        shape = facts["shape"]
        out.print(f"\nwith the defaults: {shape['steps']} steps, {shape['inputs']} inputs, {shape['outputs']} outputs")
        out.print(f"loss {facts['loss']}, read at {'every step' if facts['readout'] == 'each' else 'the last step'}")
        out.print(f"judged by {facts['metric']}; metrics: {', '.join(facts['metrics'])}")
    if facts.get("baselines"):
        out.print()
        print_table(
            [("baseline", "name"), ("metric", "name"), ("value", "number"), ("predictor", "text")],
            [[name, b["metric"], f"{b['value']:.6g}", b["how"]] for name, b in facts["baselines"].items()],
        )
    for signal in facts.get("signals", ()):
        name = f"{signal['name']}/{signal['of'].upper()}" if signal["of"] else signal["name"]
        unit = f" in {signal['unit']}" if signal["unit"] else ""
        out.print(printable(f"\nsignal {name} [{', '.join(signal['axes'])}]{unit}"))
        out.print(textwrap.indent(reflow(f"{signal['meaning']}; cost: {signal['cost']}", width - 2), "  "))
    if facts.get("note"):
        out.print(printable(facts["note"]))
    if facts["kind"] == "suite":
        _print_suite(facts)


def _print_suite(facts: dict[str, Any]) -> None:
    out = console()
    out.print(f"{facts['runs']} runs; backends {', '.join(facts['backends'])}; {facts['seeds']} seeds")
    print_table([("arm", "name"), ("runs", "number")], [[arm["label"], arm["runs"]] for arm in facts["arms"]])
    for reference in facts["references"]:
        rest = ", ".join(f"{key}: {value}" for key, value in reference.items() if key != "source")
        out.print(printable(f"reference: {rest} [{reference['source']}]"))


def _default(parameter: dict[str, Any]) -> str:
    if parameter["required"]:
        return "(required)"
    value = parameter["default"]
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def reflow(text: str, width: int) -> str:
    """Wrap a docstring's paragraphs and list items to `width` columns; tables and indented blocks stay as they are."""
    blocks = []
    for block in re.split(r"\n\s*\n", text):
        lines = [escaped(line) for line in block.splitlines()]
        if any(line.startswith(("=", "    ")) for line in lines):
            blocks.append("\n".join(lines))
            continue
        items: list[str] = []
        for line in lines:
            if items and not line.startswith("- "):
                items[-1] += " " + line.strip()
            else:
                items.append(line)
        wrapped = [textwrap.fill(item, width, subsequent_indent="  " * item.startswith("- ")) for item in items]
        blocks.append("\n".join(wrapped).replace("``", "`"))
    return "\n\n".join(blocks)
