"""From records to findings: runs gathered by arm and backend, what they lack measured, every analyzer asked."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rnnbench import registry
from rnnbench.engine.ondemand import PARAMETERS, OnDemand, Parameters, Prober, data_at_hand, probe_class, rebuild
from rnnbench.errors import BadInput, CorruptData, RnnbenchError, quoted, unknown
from rnnbench.evidence import Evidence, Observed
from rnnbench.experiment import Experiment, resolve
from rnnbench.findings import CODES, Finding, Severity, ordered, worst
from rnnbench.record import RunRecord, Status, installed_versions
from rnnbench.signals import Signals
from rnnbench.spec import Ref, RunSpec, canonical_json
from rnnbench.store import RunFolder
from rnnbench.store.files import make_folders, shown, write_file
from rnnbench.store.frames import flat_spec, run_folders
from rnnbench.store.probed import Keeper, Probed, key_of
from rnnbench.suite import load_suite
from rnnbench.tasks.base import Task

PictureFormat = Literal["png", "pdf", "svg"]

CURVES = "curves"
"""The one picture that is drawn of frames and not of evidence; ``rnnbench run`` draws it."""

CONTEXT_VERSION = 1
"""Raised when `rnnbench.context` comes to other numbers for the same task."""

DOTS_PER_INCH = 150


@dataclass
class Watcher:
    """What is told of progress; each field may be replaced."""

    begin: Callable[[int], None] = field(default=lambda _runs: None)
    at: Callable[[str], None] = field(default=lambda _what: None)
    done: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Asked:
    """What an analysis is asked for.

    Attributes:
        probes: to measure on demand, whether recorded or not; None for the usual ones where they were not recorded;
            none for an empty tuple.
        parameters: which are measured: final, best, start or checkpoint.
        analyzers: their names; None for all.
        context: measure how much past a task of data needs, where an analyzer reads it.
        device: to measure on; None for each run's own.
        keep: the evidence, to draw pictures of it.
    """

    probes: tuple[Ref, ...] | None = None
    parameters: Parameters = "final"
    analyzers: tuple[str, ...] | None = None
    context: bool = True
    device: str | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        """Look up everything that is named.

        Raises:
            BadInput: for a name that there is not, with the nearest.
        """
        if self.parameters not in PARAMETERS:
            raise unknown("parameters", self.parameters, PARAMETERS)
        for ref in self.probes or ():
            probe_class(ref)
        if self.device is not None:
            RunSpec.parse({"task": "any", "cell": "any", "device": self.device}, "")
        for name in self.analyzers or ():
            registry.load("analyzers", name, "analyzer")


@dataclass(frozen=True)
class Arm:
    """The runs of one arm on one backend, and what is to be said of them.

    Attributes:
        subject: the arm and its backend.
        suite, task, backend: what they are of.
        seeds, digests: of the runs, by ascending seed.
        findings: worst first.
        evidence: what was judged; None unless it was asked for.
    """

    subject: str
    suite: str
    task: str
    backend: str
    seeds: tuple[int, ...]
    digests: tuple[str, ...]
    findings: tuple[Finding, ...]
    evidence: Evidence | None = None

    @property
    def headline(self) -> str:
        """The worst finding in plain words; what is only worth knowing is no headline where the task was learned."""
        if not self.findings:
            return "no findings: nothing that was recorded is read by any analyzer"
        learned = [found for found in self.findings if found.code == "task-learned"]
        first = learned[0] if learned and self.findings[0].severity is Severity.INFO else self.findings[0]
        if first.severity is Severity.OK and first is self.findings[0]:
            return "nothing is wrong by what was measured"
        title = CODES[first.code].title if first.code in CODES else first.claim
        return title[:1].lower() + title[1:]

    @property
    def horizon(self) -> Finding | None:
        """The finding that holds how far back the task needs, the gradients reach and the model uses; None without."""
        return next((found for found in self.findings if {"need", "reach", "use"} <= found.details.keys()), None)


@dataclass
class Analysis:
    """What an analysis came to.

    Attributes:
        arms: in the order of their suites.
        notes: what could not be done, a line each.
        damaged: runs that were left out because they are not what was written, a line each.
    """

    arms: list[Arm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All findings, worst first."""
        return ordered([finding for arm in self.arms for finding in arm.findings])

    @property
    def worst(self) -> Severity:
        """The highest severity."""
        return worst(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "versions": installed_versions(),
            "arms": [
                {
                    "subject": arm.subject,
                    "suite": arm.suite,
                    "task": arm.task,
                    "backend": arm.backend,
                    "seeds": list(arm.seeds),
                    "digests": list(arm.digests),
                    "worst": str(worst(arm.findings)),
                    "needs_reach_use": None if arm.horizon is None else arm.horizon.claim,
                    "findings": [finding.model_dump(mode="json") for finding in arm.findings],
                }
                for arm in self.arms
            ],
            "notes": self.notes,
            "damaged": self.damaged,
        }


@dataclass(frozen=True)
class _Run:
    folder: RunFolder
    record: RunRecord
    spec: RunSpec

    @property
    def name(self) -> str:
        """Suite and digest, cut short."""
        return f"{self.folder.suite}/{self.folder.digest[:12]}"

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.spec.seed

    @property
    def backend(self) -> str:
        """Its backend."""
        return self.spec.backend

    def arm(self, backend: bool) -> dict[str, Any]:
        """Return what runs share that differ by seed (and, unless `backend`, by backend) alone."""
        dropped = {"seed"} if backend else {"seed", "backend"}
        return {key: value for key, value in self.record.spec.items() if key not in dropped}


def analyze(
    path: str | Path,
    *,
    suite: str | None = None,
    probes: Sequence[str | Mapping[str, Any] | Ref] | None = None,
    parameters: Parameters = "final",
    analyzers: Sequence[str] | None = None,
    context: bool = True,
    device: str | None = None,
) -> list[Finding]:
    """Ask every analyzer what recorded runs have to say, and return the findings, worst first.

    Args:
        path: a folder of results, or one suite's or one run's folder in it.
        suite: only runs of this suite.
        probes: what to measure on demand, by name or as ``{"name": ..., parameter: ...}``; by default the usual
            probes where a run has not recorded their signals; an empty list measures nothing.
        parameters: which are measured: ``final``, ``best``, ``start`` or ``checkpoint``.
        analyzers: which; by default all.
        context: measure how much past a task of data needs.
        device: to measure on; by default each run's own.

    Returns:
        The findings of all arms. Whatever could not be done, and every run that is damaged and was therefore left out,
        is the subject of a warning.

    Raises:
        BadInput: when there is no such folder, no run in it, or no such name.
    """
    asked = Asked(
        None if probes is None else tuple(_ref(probe) for probe in ([probes] if isinstance(probes, str) else probes)),
        parameters,
        None if analyzers is None else tuple(analyzers),
        context,
        device,
    )
    folders = run_folders(path)
    if suite is not None:
        folders = [folder for folder in folders if folder.suite == suite] or _no_such_suite(suite, folders)
    if not folders:
        raise BadInput(f"{shown(Path(path))}: there are no runs in it")
    found = analyze_folders(folders, asked)
    for line in [*found.damaged, *found.notes]:
        warnings.warn(line, stacklevel=2)
    return found.findings


def _ref(probe: str | Mapping[str, Any] | Ref) -> Ref:
    if isinstance(probe, Ref):
        return probe
    return Ref.parse({"name": probe} if isinstance(probe, str) else probe, "probes")


def _no_such_suite(suite: str, folders: Iterable[RunFolder]) -> list[RunFolder]:
    raise unknown("suite", suite, {folder.suite for folder in folders})


def analyze_folders(
    folders: Sequence[RunFolder], asked: Asked, watcher: Watcher | None = None, prober: Prober | None = None
) -> Analysis:
    """Analyze the runs in `folders`.

    A damaged run is named and left out; a run that cannot be measured keeps what it recorded.

    Args:
        folders: of one folder of results.
        asked: what for.
        watcher: told of progress.
        prober: measures in place of `rnnbench.engine.probing.probe_run`.

    Raises:
        BadInput: when there is no run to analyze, or when a probe that was asked for serves none of them.
    """
    return _Analysis(folders, asked, watcher or Watcher(), prober).run()


class _Analysis:
    """One analysis under way."""

    def __init__(self, folders: Sequence[RunFolder], asked: Asked, watcher: Watcher, prober: Prober | None) -> None:
        self._asked, self._watcher = asked, watcher
        self._result = Analysis()
        root = folders[0].path.parent.parent if folders else Path()
        self._keeper = Keeper(Probed(root), self._result.notes.append)
        self._analyzers = self._loaded()
        self._lacks: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()
        self._broken: dict[tuple[str, str], list[str]] = {}
        self._served = self._unserved = 0
        self._contexts: dict[str, dict[str, Any]] = {}
        self._runs = self._ended(folders)
        measures = asked.probes is None or asked.probes
        self._on_demand = (
            OnDemand(asked.probes, asked.parameters, self._keeper, asked.device, prober)
            if measures and self._runs
            else None
        )

    def run(self) -> Analysis:
        """Analyze arm by arm: the signals of one arm at a time are in memory, unless they are to be kept."""
        arms = _labelled(_grouped(self._runs))
        self._watcher.begin(sum(len(runs) for _, runs in arms))
        for subject, runs in arms:
            arm = self._arm(subject, runs)
            if arm is not None:
                self._result.arms.append(arm)
        self._conclude()
        return self._result

    def _ended(self, folders: Sequence[RunFolder]) -> list[_Run]:
        """Return the runs that have something to analyze."""
        found: list[_Run] = []
        unfinished = 0
        for folder in folders:
            try:
                record = folder.described()
            except RnnbenchError as error:
                self._result.damaged.append(str(error))
                continue
            if record is None or not (record.status.final or self._goes_on(record)):
                unfinished += 1
                continue
            try:
                found.append(_Run(folder, record, RunSpec.parse(record.spec, "")))
            except BadInput as error:  # the record is whole, so this is a setting that this rnnbench does not know
                self._result.notes.append(f"{folder.suite}/{folder.digest[:12]}: its spec cannot be read; {error}")
        if unfinished:
            self._result.notes.append(f"{_runs(unfinished)} passed over, not finished or failed")
        if unfinished == len(folders):
            raise BadInput(
                f"none of the {_runs(len(folders))} has ended; --parameters checkpoint looks at what they have by now"
            )
        return found

    def _goes_on(self, record: RunRecord) -> bool:
        """Whether a run that was interrupted is analyzed at its checkpoint."""
        return self._asked.parameters == "checkpoint" and record.status is Status.INTERRUPTED

    def _loaded(self) -> dict[str, Callable[[Evidence], Any]]:
        """Return the analyzers by name; one that cannot be loaded is noted, unless it was asked for."""
        built_in = registry.BUILT_IN["analyzers"]
        names = self._asked.analyzers or (*built_in, *registry.plugins("analyzers"))
        found: dict[str, Callable[[Evidence], Any]] = {}
        for name in names:
            try:
                loaded = registry.load("analyzers", name)
                if not callable(loaded):
                    raise BadInput(f"analyzer: {quoted(name)} is not a function of the evidence")
                found[name] = loaded
            except BadInput as error:
                if self._asked.analyzers:
                    raise
                self._result.notes.append(str(error))
        return found

    def _arm(self, subject: str, runs: Sequence[_Run]) -> Arm | None:
        observed: list[Observed] = []
        kept: list[_Run] = []
        for run in runs:
            self._watcher.at(f"{subject}, seed {run.seed}")
            try:
                observed.append(self._observed(run))
                kept.append(run)
            except CorruptData as error:
                self._result.damaged.append(f"{run.name}: left out; {error}")
            self._watcher.done()
        if not kept:
            return None
        evidence = self._evidence(subject, kept, observed)
        return Arm(
            subject,
            kept[0].folder.suite,
            evidence.task,
            kept[0].backend,
            tuple(run.seed for run in kept),
            tuple(run.folder.digest for run in kept),
            tuple(ordered(list(self._findings(evidence)))),
            evidence if self._asked.keep else None,
        )

    def _observed(self, run: _Run) -> Observed:
        folder, record = run.folder, run.record
        signals = folder.signals()
        metrics = folder.metrics().to_pandas()
        if self._on_demand is not None:
            measured = self._on_demand.signals(folder, record, signals)
            signals = measured.signals
            self._lacks.update(measured.lacks)
            self._served += measured.served
            self._unserved += not measured.served
        self._noted.update(record.notes)
        metric = record.summary.metric or ""
        return Observed(
            digest=record.digest,
            seed=run.seed,
            status=str(record.status),
            steps=record.steps,
            first_bad_step=record.first_bad_step,
            steps_to_solve=record.steps_to_solve,
            final=record.summary.metrics.get(metric),
            baselines={n: value for n, value in record.baselines.get(metric, {}).items() if value is not None},
            signals=Signals(signals),
            metrics=metrics if len(metrics) else None,
        )

    def _evidence(self, subject: str, runs: Sequence[_Run], observed: Sequence[Observed]) -> Evidence:
        record, spec = runs[0].record, runs[0].spec
        task = _task(spec)
        metric = record.summary.metric or "loss"
        evidence = Evidence(
            subject=subject,
            runs=tuple(observed),
            task=spec.task.name,
            metric=metric,
            better=record.summary.better or "lower",
            precision=record.resolved.precision,
            batch_size=spec.data.batch_size,
            spec=runs[0].arm(backend=True),
            threshold=spec.stop.threshold if spec.stop is not None and spec.stop.metric == metric else None,
        )
        if task is None:
            return evidence
        evidence = replace(evidence, length=task.length, lag=task.lag)
        wanted = self._asked.context and "reach" in self._analyzers and any(len(run.signals) for run in observed)
        if task.lag is None and wanted:
            evidence = replace(evidence, context=self._context(subject, record))
        return evidence

    def _context(self, subject: str, record: RunRecord) -> dict[str, Any]:
        """Return what reference models make of the task's data, each task measured once."""
        spec = record.spec
        kept = {name: spec.get(name) for name in ("task", "data", "data_seed", "eval")}
        versions = installed_versions(("scikit-learn", "numpy"))
        data = record.resolved.data.get("sha256")
        key = key_of({"context": CONTEXT_VERSION, "spec": kept, "data": data, "versions": versions})
        if key not in self._contexts:
            self._contexts[key] = {}
            found = self._keeper.context(key)
            if found is None:
                self._watcher.at(f"{subject}: how much past its task needs, by reference models")
                try:
                    found = _reference(rebuild(record))
                except Exception as error:  # the findings that rest on it say that it is missing
                    reason = str(error) if isinstance(error, RnnbenchError) else registry.one_line(error)
                    self._result.notes.append(f"{subject}: how much past the task needs was not measured; {reason}")
                    return {}
                self._keeper.keep_context(key, found)
            self._contexts[key] = found
        return self._contexts[key]

    def _findings(self, evidence: Evidence) -> Iterator[Finding]:
        for name, analyzer in self._analyzers.items():
            try:
                found = list(analyzer(evidence))
                strange = next((each for each in found if not isinstance(each, Finding)), None)
                if strange is not None:
                    raise TypeError(f"it returned {quoted(type(strange).__name__)} where a Finding belongs")
            except Exception as error:  # an analyzer that was plugged in may fail in any way, and spoils no other
                self._broken.setdefault((name, registry.one_line(error)), []).append(evidence.subject)
                continue
            yield from found

    def _conclude(self) -> None:
        """Say what failed while the runs ran, how many could not be measured, by reason, and which analyzers failed.

        Raises:
            BadInput: when probes were asked for by name and not one run could be measured.
        """
        if self._asked.probes and self._unserved and not self._served:
            reason = self._lacks.most_common(1)[0][0].partition(": ")[2]
            raise BadInput(f"probe: none of {_runs(self._unserved)} could be measured; {reason}")
        for line, count in self._noted.most_common():
            self._result.notes.append(f"{_runs(count)}: {_plain(line, 1000)}")
        for reason, count in self._lacks.most_common():
            self._result.notes.append(f"{_runs(count)} {reason}")
        for (name, reason), subjects in self._broken.items():
            where = subjects[0] if len(subjects) == 1 else f"{len(subjects)} arms, the first {subjects[0]}"
            self._result.notes.append(f"analyzer {name} failed on {where}; {reason}")


def _reference(experiment: Experiment) -> dict[str, Any]:
    from rnnbench.context import reference_context

    return reference_context(experiment.task, experiment.source(), split=experiment.spec.eval.split)


def _task(spec: RunSpec) -> Task | None:
    """Return the task of a run, or None where it cannot be had any longer or its data are not here."""
    try:
        found = registry.load("tasks", spec.task.name, "task")
        task: Task = found.parse(spec.task.params, "task")
        _ = task.length, task.lag
    except Exception:  # a user's own task may fail in any way; what rests on it is then left open
        return None
    return task


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _grouped(runs: Iterable[_Run]) -> list[list[_Run]]:
    """Put runs together that are equal but for their seed, code and data included, each group by ascending seed."""
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        resolved = run.record.resolved
        key = canonical_json(
            [run.folder.suite, run.arm(backend=True), run.backend, resolved.components, resolved.data.get("sha256")]
        )
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()]


def _labelled(groups: Sequence[list[_Run]]) -> list[tuple[str, list[_Run]]]:
    """Give each group the name that its user knows it by, in the order of their suites."""
    suites = sorted({group[0].folder.suite for group in groups})
    labelled: list[tuple[str, list[_Run]]] = []
    for suite in suites:
        mine = [group for group in groups if group[0].folder.suite == suite]
        given = _suite_labels(suite)
        order = list(given.values())
        derived = _derived_labels(mine)
        entries = []
        for group, fallback in zip(mine, derived, strict=True):
            known = given.get(canonical_json(group[0].arm(backend=False)))
            place = order.index(known) if known is not None else len(order)
            label = _plain(known or fallback)
            start = f"{suite}: " if len(suites) > 1 else ""
            entries.append((place, label, group[0].backend, f"{start}{label} · {_plain(group[0].backend)}", group))
        entries.sort(key=lambda entry: entry[:3])
        labelled += [(subject, group) for _, _, _, subject, group in entries]
    counts = Counter(subject for subject, _ in labelled)
    return [
        (subject if counts[subject] == 1 else f"{subject} ({group[0].folder.digest[:8]})", group)
        for subject, group in labelled
    ]


def _suite_labels(suite: str) -> dict[str, str]:
    """Return the labels of a registered suite's arms by their canonical spec; none where it is not registered."""
    found: dict[str, str] = {}
    try:
        if suite not in registry.names("suites"):
            return {}
        for arm in load_suite(suite).overridden(seeds=1).expand():
            with data_at_hand():
                spec = resolve(arm.spec).canonical()
            kept = {key: value for key, value in spec.items() if key not in ("seed", "backend")}
            found.setdefault(canonical_json(kept), arm.label)
    except Exception:  # a label is a convenience; a suite that has changed or lost its data gives none
        return {}
    return found


def _derived_labels(groups: Sequence[list[_Run]]) -> list[str]:
    """Name each group by its task and cell, and by the settings in which those of the same name differ."""
    flats = [flat_spec(group[0].arm(backend=False)) for group in groups]
    heads = [" ".join(str(flat[key]) for key in ("task", "cell", "model") if flat.get(key)) for flat in flats]
    labels = []
    for head, flat in zip(heads, flats, strict=True):
        alike = [other for other, its in zip(flats, heads, strict=True) if its == head]
        keys = sorted({key for other in alike for key in other} - {"task", "cell", "model"})
        differing = [key for key in keys if len({str(other.get(key)) for other in alike}) > 1]
        pieces = [f"{key.removeprefix('task.').removeprefix('cell.')}={flat.get(key, 'default')}" for key in differing]
        labels.append(" ".join([head, *pieces]))
    return labels


def _plain(text: str, limit: int = 120) -> str:
    """Return a name as one line of printable text, cut where it is very long: records may hold anything."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 3]}…"


def draw_pictures(arms: Sequence[Arm], folder: Path, kind: PictureFormat, notes: list[str]) -> list[Path]:
    """Draw every picture that the evidence allows, each once a suite, and return the files.

    Args:
        arms: with their evidence.
        folder: is made where it is not there.
        kind: of file.
        notes: gets a line for each picture that could not be drawn.

    Raises:
        BadInput: when the folder cannot be written to.
        OutOfResources: when the disk is full.
    """
    built_in = registry.BUILT_IN["pictures"]
    suites: dict[str, list[Evidence]] = {}
    for arm in arms:
        if arm.evidence is not None:
            suites.setdefault(arm.suite, []).append(arm.evidence)
    names = [name for name in (*built_in, *registry.plugins("pictures")) if name != CURVES]
    written: list[Path] = []
    for suite, evidence in suites.items():
        start = f"{suite}-" if len(suites) > 1 else ""
        for name in names:
            data = _drawn(name, evidence, kind, notes)
            if data is not None:
                make_folders(folder)
                target = folder / f"{start}{_file_part(name)}.{kind}"
                write_file(target, data, "--plots")
                written.append(target)
    return written


def _drawn(name: str, evidence: Sequence[Evidence], kind: PictureFormat, notes: list[str]) -> bytes | None:
    import io

    try:
        figure = registry.load("pictures", name)(evidence)
        if figure is None:
            return None
        buffer = io.BytesIO()
        # no date: the same evidence gives the same bytes
        date = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
        figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, metadata=date)
        _close(figure)
    except Exception as error:  # one picture, perhaps a plugged-in one, spoils no other
        reason = str(error) if isinstance(error, RnnbenchError) else registry.one_line(error)
        notes.append(f"picture {name} could not be drawn; {reason}")
        return None
    return buffer.getvalue()


def _close(figure: Any) -> None:
    """Let go of a figure, should pyplot hold it."""
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)


def _file_part(name: str) -> str:
    """Return a name as part of a file's name."""
    return "".join(char if char.isascii() and (char.isalnum() or char in "_+-") else "-" for char in name)[:60]
