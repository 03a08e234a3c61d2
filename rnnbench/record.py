"""What came of a run: `RunRecord`, the `Environment` that it ran in, and the strict JSON that both are kept as.

A record is a fact about one run of one spec. It is written once, last of all, and names every file beside it by hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import Field, JsonValue, StringConstraints, field_validator

from rnnbench.component import Frozen
from rnnbench.errors import BadInput, CorruptData, NewerSchema, quoted

RECORD_SCHEMA = 1

Model = TypeVar("Model", bound=Frozen)

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema version to the function that turns its record into one of the next version."""

DISTRIBUTIONS = ("rnnbench", "numpy", "torch", "jax", "jaxlib", "optax", "scipy", "pyarrow", "safetensors")
"""What the environment lists the version of, where it is installed."""

SUITE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0)]
Fact = Annotated[str, StringConstraints(max_length=200)]


class Status(StrEnum):
    """How a run ended. The first four are final; a failed or interrupted run is retried."""

    SOLVED = "solved"
    COMPLETED = "completed"
    DIVERGED = "diverged"
    TIME_LIMIT = "time_limit"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def final(self) -> bool:
        """Whether running the same thing again does nothing."""
        return self not in (Status.FAILED, Status.INTERRUPTED)


class Environment(Frozen):
    """Where a run ran: an allow-list of facts that can change its numbers or its speed.

    There is no field that a host name, a user name or a path would go in.
    """

    python: Fact
    system: Fact = Field(description="operating system and its kernel's kind, e.g. Linux")
    machine: Fact = Field(description="instruction set, e.g. x86_64")
    cpu: Fact = Field(description="the processor's own model name")
    cores: Annotated[int, Field(ge=1)] | None = Field(None, description="physical cores")
    logical_cores: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] = Field(description="threads that the run was given")
    versions: dict[Fact, Fact] = Field({}, description="installed distributions that take part in a run")
    gpu: Fact | None = Field(None, description="the accelerator's model name")
    driver: Fact | None = Field(None, description="the accelerator's driver version")
    libraries: dict[Fact, Fact] = Field({}, description="versions of CUDA, cuDNN, MKL and their like")
    allocator: Fact | None = None
    precision: dict[Fact, bool | int | Fact | None] = Field({}, description="flags that change rounding")

    @classmethod
    def capture(cls, threads: int, backend_facts: Mapping[str, Any] | None = None) -> Self:
        """Describe this machine, importing no framework.

        Args:
            threads: how many threads the run was given.
            backend_facts: what only a backend knows: gpu, driver, libraries, allocator, precision.

        Raises:
            BadInput: when a backend offers a fact that is not on the list.
        """
        import psutil

        allowed = {"gpu", "driver", "libraries", "allocator", "precision"}
        facts = dict(backend_facts or {})
        if extra := sorted(facts.keys() - allowed):
            raise BadInput(f"environment: {quoted(extra[0])} is not a fact that is kept; kept: {sorted(allowed)}")
        return cls.parse(
            {
                "python": f"{platform.python_implementation()} {platform.python_version()}",
                "system": platform.system(),
                "machine": platform.machine(),
                "cpu": cpu_model(),
                "cores": psutil.cpu_count(logical=False),
                "logical_cores": psutil.cpu_count(logical=True),
                "threads": threads,
                "versions": installed_versions(),
                **facts,
            },
            "environment",
        )


def cpu_model() -> str:
    """Return the processor's model name, or its instruction set where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].split())[:200]
    except OSError:
        pass
    return (platform.processor() or platform.machine())[:200]


def installed_versions(names: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """Return the versions of those of `names` that are installed, without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class FileHash(Frozen):
    """What a file's bytes must be."""

    sha256: Sha256
    bytes: Count


class Resolved(Frozen):
    """What a spec left open, and what it became."""

    device: Fact
    path: Fact = Field(description="the kernel that ran: reference, fused, ...")
    precision: Fact
    components: dict[str, JsonValue] = Field({}, description="versions of task, cell, techniques and optimizer")
    data: dict[str, JsonValue] = Field({}, description="what the data is: hashes, sizes, whether canonical")


class Timings(Frozen):
    """Where the time went, in seconds."""

    compile_s: Seconds = 0.0
    train_s: Seconds = 0.0
    eval_s: Seconds = 0.0
    data_s: Seconds = 0.0
    probe_s: Seconds = 0.0
    total_s: Seconds = 0.0


def _finite_or_null(values: Any) -> Any:
    """JSON has no NaN: a score that is not a number is null."""
    if isinstance(values, Mapping):
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
    return values


class Summary(Frozen):
    """The run's score: each metric's value at `step`, null where it was not a finite number."""

    metrics: dict[str, float | None] = Field({}, description="metric -> value; null when it was not finite")
    metric: Fact | None = Field(None, description="the metric that the run is judged by")
    better: Literal["lower", "higher"] | None = Field(None, description="which way that metric is good")
    select: Fact = Field("last", description="which parameters the score is of: last, best_valid or best_test")
    step: Count | None = None

    _finite = field_validator("metrics", mode="before")(_finite_or_null)


class RunRecord(Frozen):
    """One run, whole: what was asked, what it became, how it ended, and the hash of every file beside it."""

    schema_version: Annotated[int, Field(ge=1)] = RECORD_SCHEMA
    digest: Sha256
    suite: str
    spec: dict[str, JsonValue] = Field(description="the canonical spec, defaults omitted")
    resolved: Resolved
    first_batch_sha256: Sha256 | None = None
    matched: bool = Field(description="whether the run is the same experiment on every backend")
    parameters: Count | None = Field(None, description="trained numbers in the model")
    environment: Environment
    status: Status
    error: str | None = Field(None, description="one line on what went wrong")
    first_bad_step: Count | None = Field(None, description="the first step whose loss or gradient was not finite")
    steps: Count
    sequences: Count
    steps_to_solve: Count | None = None
    timings: Timings = Timings()
    summary: Summary = Summary()
    baselines: dict[str, dict[str, float | None]] = Field({}, description="metric -> baseline -> value")
    resumed: tuple[Count, ...] = Field((), description="the steps that the run was resumed at")
    resumed_inexact: tuple[str, ...] = Field((), description="why a resumed run may differ from an unbroken one")
    notes: tuple[str, ...] = Field((), description="what did not work and did not end the run, a line each")
    files: dict[str, FileHash] = Field({}, description="every file beside this one")
    left_out: dict[str, FileHash] = Field({}, description="files that a lean record does not carry")
    created: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]

    @field_validator("suite")
    @classmethod
    def _suite(cls, value: str) -> str:
        if not SUITE_NAME.fullmatch(value):
            raise ValueError("a suite's name is letters, digits and _ . + -, up to 200, and starts with none of . + -")
        return value

    @field_validator("baselines", mode="before")
    @classmethod
    def _baselines(cls, value: Any) -> Any:
        return {key: _finite_or_null(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value

    @field_validator("error", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        return " ".join(value.split())[:1000] if isinstance(value, str) else value

    @field_validator("notes", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(line, str) for line in value):
            return value
        return tuple(" ".join(line.split())[:1000] for line in value)

    @field_validator("files", "left_out")
    @classmethod
    def _names(cls, value: dict[str, FileHash]) -> dict[str, FileHash]:
        for name in value:
            if not FILE_NAME.fullmatch(name) or name == "run.json":
                raise ValueError(f"{quoted(name)} is not the name of a file in a run's folder")
        return value

    def lean(self, keep: Callable[[str], bool]) -> RunRecord:
        """Return the record of the same run that carries only the files that `keep` holds true for."""
        left = {name: fact for name, fact in self.files.items() if not keep(name)}
        kept = {name: fact for name, fact in self.files.items() if keep(name)}
        return self.model_copy(update={"files": kept, "left_out": dict(sorted({**self.left_out, **left}.items()))})

    def same_run(self, other: RunRecord) -> bool:
        """Whether both tell of the very same run, whichever files each of them carries."""
        mine, theirs = ({**record.files, **record.left_out} for record in (self, other))
        bare: dict[str, Any] = {"files": {}, "left_out": {}}
        return mine == theirs and self.model_copy(update=bare) == other.model_copy(update=bare)

    def to_json(self) -> bytes:
        """Return the bytes of ``run.json``."""
        return write_sealed(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, data: bytes, place: str) -> RunRecord:
        """Read the bytes of a ``run.json``, upgrading one of an older schema.

        Raises:
            CorruptData: when it is empty, truncated, edited, no strict JSON, of a newer schema or not a record.
        """
        values, text = read_sealed(data, place, RECORD_SCHEMA)
        if values["schema_version"] != RECORD_SCHEMA:
            text = write_json(_upgraded(values, place))
        return validated(cls, text, place)


def now() -> str:
    """Return the time in UTC, to the second, as a record holds it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def validated(model: type[Model], data: bytes, place: str) -> Model:
    """Validate strict JSON that has been through `read_json` as a `model`.

    Raises:
        CorruptData: naming the first thing that is wrong.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = quoted(".".join(str(part) for part in fault["loc"]))
        raise CorruptData(f"{place}: {where}: {fault['msg'].removeprefix('Value error, ')}") from None


def _upgraded(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Bring a record of an older schema up to the present one."""
    version = values["schema_version"]
    while version < RECORD_SCHEMA:
        if version not in UPGRADES:
            raise CorruptData(
                f"{place}: schema version {version} is older than any that this rnnbench reads; run it again"
            )
        try:
            values = UPGRADES[version](values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptData(f"{place}: cannot be brought from schema version {version} on; {error!r}") from None
        version += 1
        values["schema_version"] = version
    return values


def write_json(value: Any) -> bytes:
    """Return `value` as strict, readable JSON, ending in a newline.

    Raises:
        ValueError: when it holds a NaN or an infinity.
    """
    return (json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def write_sealed(values: Mapping[str, Any]) -> bytes:
    """Return a table as JSON whose last key, ``sha256``, is the hash of the rest, so that any change shows.

    Raises:
        ValueError: when it holds a NaN or an infinity.
    """
    return write_json({**values, "sha256": hashlib.sha256(_compact(values)).hexdigest()})


def read_sealed(data: bytes, place: str, newest: int) -> tuple[dict[str, Any], bytes]:
    """Read what `write_sealed` wrote; return the table and its JSON, both without the hash.

    Raises:
        CorruptData: when it is no strict JSON, its ``schema_version`` is none, or something in it was changed.
        NewerSchema: when its ``schema_version`` is above `newest`.
    """
    values = read_json(data, place)
    if not isinstance(values, dict):
        raise CorruptData(f"{place}: holds {type(values).__name__}, not a table of facts")
    version = values.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CorruptData(f"{place}: schema_version {quoted(version)} is not a version number")
    if version > newest:
        raise NewerSchema(
            f"{place}: schema version {version} is newer than {newest}, the newest that this rnnbench reads; "
            "install a newer rnnbench"
        )
    seal = values.pop("sha256", None)
    text = _compact(values)
    if seal != hashlib.sha256(text).hexdigest():
        raise CorruptData(f"{place}: was changed after it was written; its own sha256 does not fit it")
    return values, text


def _compact(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode()


def read_json(data: bytes, place: str) -> Any:
    """Read strict JSON: UTF-8, no NaN or infinity, no key twice, nothing after the end.

    Raises:
        CorruptData: naming `place` and what is wrong with it.
    """
    if not data.strip():
        raise CorruptData(f"{place}: is empty")
    try:
        return json.loads(
            data.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise CorruptData(f"{place}: nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise CorruptData(f"{place}: not strict JSON (truncated or edited?); {reason}") from None


def _no_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is not allowed; a value that is not finite is null")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token[:40]} is no finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {quoted(twice)} is there twice")
    return table
