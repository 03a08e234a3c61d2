"""From a spec to an experiment: names looked up, parameters checked, combinations refused, the digest taken."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rnnbench import registry
from rnnbench.cells.base import Cell
from rnnbench.cells.network import Network
from rnnbench.component import Component
from rnnbench.errors import BadInput, quoted, unknown
from rnnbench.probes.base import Probe
from rnnbench.spec import Ref, RunSpec, digest_of
from rnnbench.streams import DERIVATION
from rnnbench.tasks.base import Metric, Source, Task
from rnnbench.techniques.base import Technique
from rnnbench.techniques.update.optimizers import Optimizer

ENGINE_VERSION = 1
"""Raised whenever networks, starting values, losses, metrics or the loop come to other numbers for the same spec."""

ComponentT = TypeVar("ComponentT", bound=Component)


@dataclass(frozen=True)
class Experiment:
    """A spec with everything that it names.

    Attributes:
        spec: as given, the components' parameters reduced to those that differ from their defaults.
        task: the task.
        cell: the cell; None for a user's whole model.
        techniques: in order.
        optimizer: the optimizer.
        probes: what looks at the model during training.
        digest: 64 hexadecimal digits; equal digests are the same experiment.
        versions: the components' versions, by kind and name.
    """

    spec: RunSpec
    task: Task
    cell: Cell | None
    techniques: tuple[Technique, ...]
    optimizer: Optimizer
    probes: tuple[Probe, ...]
    digest: str
    versions: dict[str, int | str]

    @property
    def metric(self) -> str:
        """The metric that selects and summarizes."""
        return self.spec.eval.metric or self.task.metric

    @property
    def steps(self) -> int | None:
        """Training steps at most; None when only the clock decides."""
        return self.spec.budget.steps_at(self.spec.data.batch_size)

    def network(self, masked: bool = False) -> Network:
        """Put the network together; only where there is a cell.

        Args:
            masked: hold states from where a sequence ends, also for a task whose sequences all end at T at full
                difficulty: a curriculum needs it.
        """
        assert self.cell is not None
        return Network(
            self.cell,
            self.spec.network,
            self.task.n_in,
            self.task.n_out,
            self.task.length,
            self.task.readout == "last",
            masked or self.task.variable_length,
        )

    def source(self) -> Source:
        """Open the task's batches."""
        spec = self.spec
        return self.task.open(spec.seed, spec.data_seed, spec.data, spec.eval.n)

    def canonical(self) -> dict[str, Any]:
        """Return the spec as the digest and the record have it: defaults omitted, files by their names alone."""
        return _canonical(self.spec, self.task)

    def group(self) -> str:
        """Name what runs share that differ by seed only: they can use the same compiled program."""
        values = self.spec.canonical()
        return digest_of({key: value for key, value in values.items() if key not in ("seed", "data_seed")})

    def metric_of(self, name: str) -> Metric:
        """Return the definition of a metric; ``loss`` is an error, lower being better."""
        if name == "loss":
            return Metric("mse" if self.task.loss == "mse" else "cross_entropy", "lower")
        return self.task.metrics[name]


def resolve(spec: RunSpec) -> Experiment:
    """Look up everything that `spec` names, check that it fits together, and read the task's data.

    Raises:
        BadInput: for an unknown name, a parameter out of range, or a combination that makes no sense.
        CorruptData: when a data file is not what it should be.
    """
    task: Task = _component("tasks", spec.task, "task", Task)  # type: ignore[type-abstract]  # abstractness is checked
    cell: Cell | None = None
    if spec.cell is not None:
        cell = _component("cells", spec.cell, "cell", Cell)  # type: ignore[type-abstract]  # as above
    optimizer = _component("optimizers", spec.optimizer, "optimizer", Optimizer)
    techniques = tuple(_component("techniques", ref, "technique", Technique) for ref in spec.techniques)
    probes = make_probes(spec.record.probes, "record.probes")
    if spec.backend not in registry.names("backends") and ":" not in spec.backend:
        raise unknown("backend", spec.backend, registry.names("backends"))
    _check_metrics(spec, task)
    if spec.network.bidirectional and not task.bidirectional_allowed:
        raise BadInput(f"network.bidirectional: task {task.name} would be given away by reading backwards")
    task.prepare()
    versions: dict[str, int | str] = dict(_versions(spec, task, cell, techniques, optimizer, probes))
    reduced = spec.model_copy(
        update={
            "task": Ref(name=spec.task.name, params=task.changed()),
            "cell": spec.cell and cell and Ref(name=spec.cell.name, params=cell.changed()),
            "optimizer": Ref(name=spec.optimizer.name, params=optimizer.changed()),
            "techniques": tuple(
                Ref(name=ref.name, params=technique.changed())
                for ref, technique in zip(spec.techniques, techniques, strict=True)
            ),
            "record": spec.record.model_copy(
                update={
                    "probes": tuple(
                        Ref(name=ref.name, params=probe.changed())
                        for ref, probe in zip(spec.record.probes, probes, strict=True)
                    )
                }
            ),
        }
    )
    digest = digest_of({"spec": _canonical(reduced, task), "versions": versions, "data": task.data_hash()})
    return Experiment(reduced, task, cell, techniques, optimizer, probes, digest, versions)


def make_probes(refs: Iterable[Ref], place: str) -> tuple[Probe, ...]:
    """Look up probes by name and check their parameters.

    Raises:
        BadInput: for an unknown name or a parameter that will not do.
    """
    return tuple(_component("probes", ref, place, Probe) for ref in refs)  # type: ignore[type-abstract]  # as in resolve


def _canonical(spec: RunSpec, task: Task) -> dict[str, Any]:
    return spec.canonical() | {"task": {"name": spec.task.name, **task.identity()}}


def log_spaced(per_decade: int, last: int | None) -> Iterator[int]:
    """Yield the steps that are recorded: 1, and on to `last`, `per_decade` of them in each tenfold, without repeats."""
    previous, exponent = 0, 0
    while last is None or previous < last:
        step = round(10 ** (exponent / per_decade))
        exponent += 1
        if last is not None and step >= last:
            yield last
            return
        if step > previous:
            yield step
            previous = step


def _component(kind: str, ref: Ref, place: str, base: type[ComponentT]) -> ComponentT:
    found = registry.load(kind, ref.name, place)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise BadInput(f"{place}: {quoted(ref.name)} is not a {base.__name__}; a class derived from it is needed")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise BadInput(f"{place}: {quoted(ref.name)} lacks {missing}")
    if not isinstance(getattr(found, "name", None), str):
        raise BadInput(f"{place}: {quoted(ref.name)} has no name; give the class one: name = ...")
    made = found.parse(ref.params, place)
    if isinstance(made, Cell) and (outputs := sum(state.output for state in made.states())) != 1:
        raise BadInput(f"{place}: {quoted(ref.name)} has {outputs} states with output=True; exactly one is the output")
    return made


def _check_metrics(spec: RunSpec, task: Task) -> None:
    known = ["loss", *task.metrics]
    if spec.eval.metric is not None and spec.eval.metric not in known:
        raise unknown("eval.metric", spec.eval.metric, known)
    if spec.stop is not None:
        if spec.stop.metric not in known:
            raise unknown("stop.metric", spec.stop.metric, known)
        if not math.isfinite(spec.stop.threshold):
            raise BadInput(f"stop.threshold: {spec.stop.threshold} is no threshold")


def _versions(
    spec: RunSpec,
    task: Task,
    cell: Cell | None,
    techniques: tuple[Technique, ...],
    optimizer: Optimizer,
    probes: tuple[Probe, ...],
) -> Iterator[tuple[str, int | str]]:
    """Yield what else identifies the code that computes: versions, and hashes of a user's own files."""
    parts: list[tuple[str, str, Any]] = [("task", spec.task.name, task), ("optimizer", spec.optimizer.name, optimizer)]
    if spec.cell is not None:
        parts.append(("cell", spec.cell.name, cell))
    parts += [
        (f"technique.{ref.name}", ref.name, technique)
        for ref, technique in zip(spec.techniques, techniques, strict=True)
    ]
    parts += [(f"probe.{ref.name}", ref.name, probe) for ref, probe in zip(spec.record.probes, probes, strict=True)]
    yield "engine", ENGINE_VERSION
    yield "streams", DERIVATION
    for kind, name, component in parts:
        yield kind, component.version
        if ":" in name:
            yield f"{kind}.file", file_hash(type(component), kind)
    if ":" in spec.backend:
        yield "backend.file", file_hash(registry.load("backends", spec.backend, "backend"), "backend")
    if spec.model is not None:
        build = registry.load_attribute(spec.model, "model")
        if not callable(build):
            raise BadInput(f"model: {spec.model} is {quoted(type(build).__name__)}, not a function of (n_in, n_out)")
        yield "model.file", file_hash(build, "model")


def file_hash(thing: Any, place: str) -> str:
    """Return the SHA-256 of the file that `thing` is defined in, so that editing it is a new experiment."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    except (TypeError, OSError):
        raise BadInput(
            f"{place}: the file that defines {quoted(getattr(thing, '__name__', thing))} is not readable"
        ) from None
