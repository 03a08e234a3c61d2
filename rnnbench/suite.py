"""What to run, in bulk: a suite is a base setting, arms that change it, a grid that sweeps it, backends and seeds.

A suite is a TOML file. `SuiteSpec.expand` turns it into runs. Settings are put together in this order, later ones on
top: ``base``, then the arm, then the grid's values (and with them whatever the command line sets). The rules:

- Tables merge key by key; numbers, strings and lists replace what was there.
- ``task``, ``cell`` and ``optimizer`` are components. A different ``name`` replaces the whole component, so that no
  parameter of the old one is left over; the same name, or none, changes the parameters that are given and no others.
  Parameters given before any name, such as ``cell.hidden`` in ``base`` where the grid names the cells, are kept.
- ``cell`` takes the place of ``model`` and the other way round.
- Of ``budget``'s steps, sequences and seconds, the last one given takes the place of the others.
- ``techniques`` is a list and is replaced whole; ``techniques.NAME.PARAMETER`` changes one parameter of the one called
  NAME.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from rnnbench import registry
from rnnbench.component import Frozen
from rnnbench.errors import BadInput, quoted, unknown
from rnnbench.spec import Name, RunSpec, canonical_json
from rnnbench.streams import SEED_LIMIT, check_seed

MAX_RUNS = 100_000
MAX_BYTES = 1_000_000
MAX_DEPTH = 64

Table = dict[str, Any]
ParsedT = TypeVar("ParsedT", bound=Frozen)

SuiteName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=80)]

_COMPONENTS = ("task", "cell", "optimizer")
_BUDGETS = ("steps", "sequences", "seconds")
_OWN_LISTS = {
    "seed": "seeds have a list of their own: `seeds` in a suite, --seed or --seeds on the command line",
    "backend": "backends have a list of their own: `backends` in a suite, --backend on the command line",
}


@dataclass(frozen=True)
class Arm:
    """One run of a suite.

    Attributes:
        label: the arm's name and what the grid sets in it; the same for runs that differ by backend or seed only.
        spec: the run.
    """

    label: str
    spec: RunSpec


class ArmSpec(Frozen):
    """One way of doing things, to be compared with the suite's others."""

    label: Label = Field(description="what tables and figures call it")
    backends: tuple[Name, ...] | None = Field(None, description="where this arm runs, if not where the others do")
    settings: dict[str, JsonValue] = Field({}, description="what it changes in the base, by (dotted) key")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        """Accept the settings beside the label, as they stand in a file."""
        if not isinstance(value, Mapping):
            return value
        own = {key: entry for key, entry in value.items() if key in ("label", "backends")}
        if isinstance(own.get("backends"), list):
            own["backends"] = tuple(own["backends"])  # strict from here on, where only JSON's own lists pass for tuples
        if isinstance(value.get("settings"), Mapping):
            return {**own, "settings": value["settings"]}
        return {**own, "settings": {key: entry for key, entry in value.items() if key not in own}}

    @field_validator("label")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip():
            raise ValueError("a label is printable text without spaces around it")
        return value


class SuiteSpec(Frozen):
    """A set of runs: the product of arms, grid, backends and seeds."""

    name: SuiteName = Field(description="also the name of its folder among the results")
    title: str = Field("", description="one line for lists and tables")
    description: str = Field("", description="what it is for and what it is after")
    base: dict[str, JsonValue] = Field({}, description="settings that all runs share")
    grid: dict[str, list[JsonValue]] = Field({}, description="lists of values by dotted key; every combination is run")
    arms: tuple[ArmSpec, ...] = Field((), description="variants of the base; without any, the base is the only one")
    backends: tuple[Name, ...] = Field(("torch",), description="each run is done on each of them")
    seeds: int | tuple[int, ...] = Field(1, description="a number n for the seeds 0 to n-1, or a list of seeds")
    references: tuple[dict[str, JsonValue], ...] = Field(
        (), description="published figures to set beside the results, each with its source"
    )

    @field_validator("grid", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """Accept nested tables for dotted keys: ``cell.hidden = [32, 64]``."""
        if not isinstance(value, Mapping):
            return value
        pairs = list(_flattened(value, ()))
        _refuse_repeated("key", [key for key, _ in pairs])
        return dict(pairs)

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= SEED_LIMIT:
                raise ValueError("a number of seeds is from 1 to 2**32 (a list names the seeds themselves)")
            return value
        if not isinstance(value, list):
            raise ValueError("a number of seeds, or a list of them")
        if not value:
            raise ValueError("an empty list leaves nothing to run")
        try:
            checked = [check_seed("seeds", seed) for seed in value]
        except BadInput as error:
            raise ValueError(str(error)) from None
        _refuse_repeated("seed", checked)
        return tuple(checked)

    @field_validator("references")
    @classmethod
    def _sourced(cls, value: tuple[dict[str, JsonValue], ...]) -> tuple[dict[str, JsonValue], ...]:
        for number, reference in enumerate(value, start=1):
            if not isinstance(reference.get("source"), str) or not str(reference["source"]).strip():
                raise ValueError(f"reference {number} does not say its source")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for place, settings in self._settings():
            for key, value in settings.items():
                check_key(place, key)
                _refuse_infinite(f"{place}: {key}", value)
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {key} has no values, so there is nothing to run")
        _refuse_repeated("arms", [arm.label for arm in self.arms])
        for place, backends in [("backends", self.backends), *((f"arm {a.label}", a.backends) for a in self.arms)]:
            if backends is not None and not backends:
                raise ValueError(f"{place}: an empty list of backends leaves nothing to run")
            _refuse_repeated(f"{place}: backend", backends or ())
        return self

    def _settings(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        yield "base", self.base
        yield "grid", self.grid
        for arm in self.arms:
            yield f"arm {arm.label}", arm.settings

    @property
    def seed_list(self) -> Sequence[int]:
        """The seeds, in order."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    def count(self) -> int:
        """Return the number of runs without making them."""
        arms = sum(len(arm.backends or self.backends) for arm in self.arms) if self.arms else len(self.backends)
        return arms * math.prod(len(values) for values in self.grid.values()) * len(self.seed_list)

    def overridden(
        self,
        settings: Mapping[str, Sequence[Any]] | None = None,
        backends: Sequence[str] | None = None,
        seeds: int | Sequence[int] | None = None,
    ) -> SuiteSpec:
        """Return the suite with `settings` (lists of values by dotted key) on top of everything.

        Args:
            settings: joins the grid; a key that is swept already gets these values instead.
            backends: takes the place of the suite's and of every arm's.
            seeds: a count or a list, in place of the suite's.

        Raises:
            BadInput: when a key, a backend or a seed will not do.
        """
        values = self.model_dump(mode="json")
        wanted = settings or {}
        values["grid"] = {key: entry for key, entry in values["grid"].items() if key not in wanted}
        values["grid"] |= {key: list(entry) for key, entry in wanted.items()}
        if backends is not None:
            values["backends"] = list(backends)
            values["arms"] = [{**arm, "backends": None} for arm in values["arms"]]
        if seeds is not None:
            values["seeds"] = seeds if isinstance(seeds, int) else list(seeds)
        return SuiteSpec.parse(values, "")

    def expand(self, place: str | None = None) -> list[Arm]:
        """Return every run, those that differ by seed only next to one another.

        The order is that of arms, then of the grid (its last key changes fastest), then backends, then seeds.

        Args:
            place: what errors begin with; by default the suite's name.

        Raises:
            BadInput: when there are more than 100,000 runs, when two are the same, or when a setting will not do.
        """
        where = f"suite {self.name}" if place is None else place
        total = self.count()
        if total > MAX_RUNS:
            raise BadInput(f"{where or 'grid'}: {total:,} runs are more than the {MAX_RUNS:,} that one suite may have")
        swept = [key for key, values in self.grid.items() if len(values) > 1]
        pieces = {key: _pieces(key, swept, self.grid[key]) for key in swept}
        runs: list[Arm] = []
        taken: dict[tuple[str, str], str] = {}
        for arm in self.arms or (None,):
            settings = arm.settings if arm else {}
            start = merged(merged({}, self.base, where), settings, where)
            for indices in itertools.product(*(range(len(values)) for values in self.grid.values())):
                at = dict(zip(self.grid, indices, strict=True))
                point = {key: self.grid[key][index] for key, index in at.items()}
                here = f"{where}: arm {arm.label}" if arm and where else where
                table = merged(start, point, here)
                named = arm.label if arm else _default_label({k: v for k, v in start.items() if k not in swept})
                label = " ".join([named, *(pieces[key][at[key]] for key in swept)]).strip()
                first = _parsed(RunSpec, table, here)
                content = canonical_json(first.canonical())
                for backend in (arm.backends if arm else None) or self.backends:
                    if (twin := taken.get((content, backend))) is not None:
                        raise BadInput(f"{where or 'grid'}: {quoted(twin)} and {quoted(label)} are the same run")
                    taken[content, backend] = label
                    runs += [
                        Arm(label, first.model_copy(update={"backend": backend, "seed": seed}))
                        for seed in self.seed_list
                    ]
        return runs


def load_suite(name_or_path: str | Path) -> SuiteSpec:
    """Read a suite: a registered name, or the path of a TOML file (one that ends in ``.toml`` or has a slash).

    A file that names no `name` gets its stem.

    Raises:
        BadInput: when there is no such suite or file, or when it cannot be used, with the place in the file.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return parse_suite(read_limited(Path(text)), quoted_path(text), Path(text).stem)
    return parse_suite(_registered(text), f"suite {text}", text)


def suite_origin(name: str) -> str:
    """Return where a registered suite stands, as ``package/file.toml``.

    Raises:
        BadInput: when there is none of that name.
    """
    if name in registry.BUILT_IN["suites"]:
        return registry.BUILT_IN["suites"][name].replace(":", "/")
    if name in registry.plugins("suites"):
        return registry.plugins("suites")[name].value.replace(":", "/")
    raise unknown("suite", name, registry.names("suites"))


def parse_suite(data: bytes, place: str, default_name: str) -> SuiteSpec:
    """Build a suite from the bytes of a TOML file; see `load_suite`."""
    if len(data) > MAX_BYTES:
        raise BadInput(f"{place}: larger than {MAX_BYTES:,} bytes, which no suite needs")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{place}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text") from None
    _refuse_deep_keys(text, place)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise BadInput(f"{place}: nested too deeply") from None
    except ValueError as error:
        raise BadInput(f"{place}: not TOML; {' '.join(str(error).partition(';')[0].split())[:200]}") from None
    values.setdefault("name", default_name)
    return _parsed(SuiteSpec, values, place)


def read_limited(path: Path) -> bytes:
    """Return the bytes of a suite file, one more than may be used at most.

    Raises:
        BadInput: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{quoted_path(path)}: there is no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{quoted_path(path)}: is a folder, not a TOML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{quoted_path(path)}: cannot be read; {reason}") from None


def quoted_path(path: str | Path) -> str:
    """Show a path as it is when it is plain, and escaped when it is long or holds anything odd."""
    text = str(path)
    return text if text.isprintable() and text.isascii() and 0 < len(text) <= 120 else quoted(text, 120)


def check_key(place: str, key: str) -> None:
    """Refuse a dotted key that no run has.

    Raises:
        ValueError: with the reason and the nearest key.
    """
    parts = key.split(".")
    if not all(parts) or len(parts) > MAX_DEPTH or not key.isprintable():
        raise ValueError(f"{place}: {quoted(key)} is not a dotted key such as cell.hidden")
    if parts[0] in _OWN_LISTS:
        raise ValueError(f"{place}: {key}: {_OWN_LISTS[parts[0]]}")
    if parts[0] not in RunSpec.model_fields:
        options = sorted(RunSpec.model_fields.keys() - _OWN_LISTS.keys())
        raise ValueError(str(unknown(place, parts[0], options)).replace("unknown name", "unknown key"))


def merged(table: Mapping[str, Any], settings: Mapping[str, Any], place: str = "") -> Table:
    """Return `table` with `settings` (by dotted key) put on top, by the rules at the head of this module.

    Raises:
        BadInput: when a setting names a technique that is not there.
    """
    result = dict(table)
    for key, value in settings.items():
        head, *rest = key.split(".")
        if head == "techniques" and len(rest) >= 2:
            result[head] = _technique_set(result.get(head, []), ".".join(rest[:-1]), rest[-1], value, place)
            continue
        nested = value
        for part in reversed(rest):
            nested = {part: nested}
        result[head] = _combined(head, result.get(head), nested)
        if head == "model":
            result.pop("cell", None)
        elif head == "cell" and "name" in _component(nested):
            result.pop("model", None)
    return result


def _combined(head: str, old: Any, new: Any) -> Any:
    if head in _COMPONENTS and isinstance(new, (str, Mapping)):
        before, after = _component(old), _component(new)
        # parameters that were set before any name was are meant for whichever component is named
        same = "name" not in after or "name" not in before or before["name"] == after["name"]
        return _deep(before, after) if same else after
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if head == "budget" and any(key in new for key in _BUDGETS):
            old = {key: value for key, value in old.items() if key not in _BUDGETS}
        return _deep(old, new)
    return new


def _component(value: Any) -> Table:
    """Return a component in its flat form, ``{"name": ..., parameter: ...}``."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        return {}
    params = value.get("params")
    if not isinstance(params, Mapping):
        return dict(value)
    return {**{key: entry for key, entry in value.items() if key != "params"}, **params}


def _deep(old: Mapping[str, Any], new: Mapping[str, Any]) -> Table:
    result = dict(old)
    for key, value in new.items():
        kept: Any = result.get(key)
        both = isinstance(kept, Mapping) and isinstance(value, Mapping)
        result[key] = _deep(dict(kept), value) if both else value
    return result


def _technique_set(techniques: Any, name: str, parameter: str, value: Any, place: str) -> list[Table]:
    known = [_component(technique) for technique in techniques] if isinstance(techniques, (list, tuple)) else []
    if not any(technique.get("name") == name for technique in known):
        here = ": ".join(part for part in (place, "techniques") if part)
        raise unknown(here, name, [str(technique.get("name")) for technique in known])
    return [{**entry, parameter: value} if entry.get("name") == name else entry for entry in known]


def _flattened(value: Mapping[str, Any], above: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    for key, entry in value.items():
        path = (*above, key)
        if isinstance(entry, Mapping) and len(path) <= MAX_DEPTH:
            yield from _flattened(entry, path)
        elif isinstance(entry, list):
            yield ".".join(path), entry
        else:
            raise ValueError(f"{quoted('.'.join(path))} needs a list of values")


def _refuse_repeated(place: str, values: Iterable[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{place}: {value} is given twice")
        seen.add(value)


def _refuse_deep_keys(text: str, place: str) -> None:
    """Refuse dotted keys of very many parts before they reach tomllib, whose memory grows with their square."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.count(".") <= MAX_DEPTH:
            continue
        bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", line)
        if any(piece.count(".") > MAX_DEPTH for piece in re.split(r"[=,#{}\[\]]", bare)):
            raise BadInput(f"{place}, line {number}: nested too deeply (more than {MAX_DEPTH} parts in a key)")


def _registered(name: str) -> bytes:
    reference = suite_origin(name)
    package, _, file = reference.partition("/")
    try:
        return resources.files(package).joinpath(file).read_bytes()
    except Exception as error:
        raise BadInput(f"suite {name}: {quoted(reference)} cannot be read; {registry.one_line(error)}") from error


def _refuse_infinite(place: str, value: Any) -> None:
    """Refuse nan and inf: JSON has no word for them, so no spec could hold them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: {value} is not a finite number")
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        _refuse_infinite(place if isinstance(value, list) else f"{place}.{key}", entry)


def _parsed(model: type[ParsedT], values: Mapping[str, Any], place: str) -> ParsedT:
    """Validate, with errors that begin with a place in words (`Frozen.parse` joins places with dots)."""
    try:
        return model.parse(values, "")
    except BadInput as error:
        text = str(error).removeprefix(": ").replace("; use sys.set_int_max_str_digits() to increase the limit", "")
        raise BadInput(f"{place}: {text}" if place else text) from None


def _default_label(table: Mapping[str, Any]) -> str:
    named = [_component(table.get(key)).get("name") for key in ("task", "cell")]
    return " ".join(str(name) for name in [*named, table.get("model")] if name)


def _pieces(key: str, swept: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Say each value of a swept key in a label: components by name where that tells them apart, others as key=value.

    The key is cut down to its last part, unless another swept key ends alike.
    """
    if key in _COMPONENTS:
        names = [str(_component(value).get("name")) for value in values]
        if len(set(names)) == len(names):
            return names
    last = key.rpartition(".")[2]
    alike = sum(other.rpartition(".")[2] == last for other in swept) > 1
    texts = [_brief(value) for value in values]
    if len(set(texts)) < len({canonical_json(value) for value in values}):  # cut to one beginning, or 1 beside "1"
        texts = [f"{text}#{number}" for number, text in enumerate(texts, start=1)]
    return [f"{key if alike else last}={text}" for text in texts]


def _brief(value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, Mapping) and "name" in value:
        rest = ",".join(f"{key}={_brief(entry)}" for key, entry in _component(value).items() if key != "name")
        text = f"{value['name']}({rest})" if rest else str(value["name"])
    elif isinstance(value, (list, tuple)):
        text = "+".join(_brief(entry) for entry in value) or "none"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value)
    return text if len(text) <= 40 else f"{text[:36]}…"
