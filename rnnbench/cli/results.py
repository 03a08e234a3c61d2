"""``rnnbench results``: list, show, verify, export, import and clean what runs have left."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from rnnbench.cli.common import Kind, emit_json, json_option, print_table, printable, results_option, warn
from rnnbench.cli.groups import Group
from rnnbench.errors import BadInput, CorruptData, RunFailed, unknown
from rnnbench.record import Status
from rnnbench.store import RunFolder, Store
from rnnbench.store.files import shown
from rnnbench.store.folder import find_run
from rnnbench.store.frames import run_columns
from rnnbench.store.inspect import CLEANABLE, Standing, State, removable, remove, standing, verify_run
from rnnbench.store.probed import Probed

Command = TypeVar("Command", bound=Callable[..., Any])

PROBED = "probed"
"""What ``clean`` calls the signals that analyses have measured and kept."""

FILTERS = ("suite", "task", "cell", "backend", "status")
STATUSES = [*map(str, Status), *(str(state) for state in (State.RUNNING, State.LEFTOVER, State.CORRUPT))]


def _known(options: Sequence[str]) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[str, ...]]:
    """Check a repeated option's values, answering a misspelt one with the nearest."""

    def check(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in options:
                raise unknown(f"--{parameter.name}", value, options)
        return values

    return check


def filter_options(command: Command) -> Command:
    """Add ``--suite``, ``--task``, ``--cell``, ``--backend`` and ``--status``, each of which may be given again."""
    for name in reversed(FILTERS):
        check = _known(STATUSES) if name == "status" else None
        note = f" ({', '.join(STATUSES)})" if name == "status" else ""
        command = click.option(
            f"--{name}", multiple=True, callback=check, metavar="NAME", help=f"Only runs of this {name}{note}."
        )(command)
    return command


@click.group(cls=Group)
def results() -> None:
    """List, show, verify, export, import and clean finished runs."""


@results.command("list")
@results_option
@filter_options
@json_option
def list_runs(results: Path, as_json: bool, **wanted: tuple[str, ...]) -> None:
    """List runs, finished or not, with their score.

    A run that another process is writing is shown as running. Exit status 3 when some record cannot be read.
    """
    found = selected(_existing(results), [], wanted)
    rows = [_row(now) for now in found]
    if as_json:
        emit_json(rows)
    elif not rows:
        click.echo(f"no runs in {shown(results)}")
    else:
        columns = ("digest", "suite", "task", "cell", "backend", "seed", "status", "steps", "score")
        kinds: dict[str, Kind] = {"seed": "number", "steps": "number", "score": "text"}
        cells = [[_cell(row, name) for name in columns] for row in rows]
        print_table([(name, kinds.get(name, "name")) for name in columns], cells)
        counts = Counter(now.status for now in found)
        click.echo(f"{len(found)} runs: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    corrupt = [now for now in found if now.state is State.CORRUPT]
    if corrupt:
        for now in corrupt[:20]:
            warn(str(now.reason))
        raise CorruptData(f"{len(corrupt)} of {len(found)} runs cannot be read")


@results.command("show")
@click.argument("digest")
@results_option
@json_option
def show_run(digest: str, results: Path, as_json: bool) -> None:
    """Show all that is known of one run.

    DIGEST is the beginning of the run's digest, as much of it as tells it from the others.
    """
    now = standing(_existing(results).find(digest))
    if now.state is State.CORRUPT:
        raise CorruptData(str(now.reason))
    facts: dict[str, Any] = {"folder": str(now.folder.path), "state": now.status}
    if now.record is not None:
        facts.update(now.record.model_dump(mode="json"))
    elif now.progress is not None:
        facts.update({"suite": now.folder.suite, "digest": now.folder.digest, "step": now.progress.step})
        facts["files"] = {name: fact.model_dump() for name, fact in now.progress.files.items()}
    if as_json:
        emit_json(facts)
        return
    for name, value in _lines(facts):
        click.echo(f"{printable(name):<{_WIDTH}}  {printable(value)}".rstrip())


@results.command("verify")
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@results_option
@filter_options
@json_option
def verify_runs(digests: tuple[str, ...], results: Path, as_json: bool, **wanted: tuple[str, ...]) -> None:
    """Hash every file of every run and report what is missing, changed or not listed.

    Exit status 3 when there is any such thing.
    """
    found = selected(_existing(results), digests, wanted)
    faults = [fault for now in found for fault in verify_run(now.folder)]
    if as_json:
        emit_json(
            {
                "runs": len(found),
                "faults": [
                    {"suite": f.folder.suite, "digest": f.folder.digest, "file": f.file, "problem": f.problem}
                    for f in faults
                ],
            }
        )
    else:
        for fault in faults:
            where = f"{fault.folder.suite}/{fault.folder.digest[:12]}/{fault.file}"
            click.echo(f"{printable(where)}: {printable(fault.problem)}")
        click.echo(f"{len(found)} runs, {len(faults)} faults")
    if faults:
        broken = len({fault.folder.path for fault in faults})
        raise CorruptData(f"{len(faults)} faults in {broken} of {len(found)} runs")


@results.command("export")
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The archive to write, e.g. results.tar.gz.")
@click.option("--lean", is_flag=True, help="Leave out parameters, signals and checkpoints; list them with hashes.")
@results_option
@filter_options
@json_option
def export_runs(
    digests: tuple[str, ...], output: str, lean: bool, results: Path, as_json: bool, **wanted: tuple[str, ...]
) -> None:
    """Pack finished runs into one file, checking every hash on the way.

    All finished runs, unless DIGESTs or filters choose; the same runs give the same bytes.
    """
    from rnnbench.store.archive import export_archive

    found = selected(_existing(results), digests, wanted)
    for now in found:
        if now.state is State.CORRUPT:
            where = f"{now.folder.suite}/{now.folder.digest[:16]}"
            raise CorruptData(f"export: {where} cannot be read, so nothing is packed; {now.reason}")
    named = bool(digests or wanted["status"])
    chosen = [now.folder for now in found if now.record is not None and (named or now.record.status.final)]
    if not chosen:
        raise BadInput(
            f"export: none of the {len(found)} runs in {shown(results)} is finished; there is nothing to pack"
        )
    target = Path(output)
    if target.is_dir():
        raise BadInput(
            f"export: {shown(target)} is a folder; give a file's name, e.g. {shown(target / 'results.tar.gz')}"
        )
    if not target.absolute().parent.is_dir():
        raise BadInput(f"export: there is no folder {shown(target.parent)} to write the archive in")
    count = export_archive(chosen, target, lean=lean)
    passed = len(found) - count
    if as_json:
        emit_json({"file": str(target), "runs": count, "passed_over": passed, "bytes": target.stat().st_size})
    else:
        note = f" ({passed} without a final record passed over)" if passed else ""
        click.echo(f"packed {count} runs into {shown(target)}, {target.stat().st_size} bytes{note}")


@results.command("import")
@click.argument("archive")
@results_option
@json_option
def import_runs(archive: str, results: Path, as_json: bool) -> None:
    """Unpack an archive that export wrote; everything in it is checked before anything is written.

    A run that is there already stays as it is. Exit status 1 when a run of the same digest but other content is
    there, which stays too; 3 when the archive is damaged.
    """
    from rnnbench.store.archive import import_archive

    outcome = import_archive(Path(archive), Store(results))
    if as_json:
        emit_json(
            {
                "added": [f"{f.suite}/{f.digest}" for f in outcome.added],
                "completed": [f"{f.suite}/{f.digest}" for f in outcome.completed],
                "unchanged": [f"{f.suite}/{f.digest}" for f in outcome.unchanged],
                "refused": [{"run": f"{f.suite}/{f.digest}", "reason": why} for f, why in outcome.refused],
            }
        )
    else:
        for folder, why in outcome.refused:
            warn(f"{folder.suite}/{folder.digest[:12]}: refused; {why}")
        click.echo(
            f"{len(outcome.added)} runs added, {len(outcome.completed)} completed, {len(outcome.unchanged)} there "
            f"already, {len(outcome.refused)} refused"
        )
    if outcome.refused:
        raise RunFailed(f"import: {len(outcome.refused)} runs were refused; what is there was left as it is")


@results.command("clean")
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@click.option(
    "--only",
    multiple=True,
    callback=_known((*CLEANABLE, PROBED)),
    metavar="KIND",
    help=f"Only this kind ({', '.join(CLEANABLE)}, {PROBED}). Corrupt runs and {PROBED} signals, which analyses have "
    "kept, are removed only when asked for.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@results_option
@json_option
def clean_runs(
    digests: tuple[str, ...], only: tuple[str, ...], dry_run: bool, yes: bool, results: Path, as_json: bool
) -> None:
    """Remove failed and interrupted runs, and what killed processes left lying about.

    A finished run loses nothing but leftovers; a run that a process is working on is never touched. An interrupted
    run's checkpoint goes with it.
    """
    store = Store(_existing(results).root, read_only=dry_run)
    kinds = set(only or CLEANABLE) - (set() if "corrupt" in only else {"corrupt"})
    folders = [store.find(digest) for digest in dict.fromkeys(digests)] if digests else store.folders()
    planned = [plan for folder in folders if (plan := removable(folder, kinds)) is not None]
    cache = Probed(store.root)
    cached = cache.files({folder.digest for folder in folders} if digests else None) if PROBED in only else []
    lines = [
        f"{plan.folder.suite}/{plan.folder.digest[:12]}: {plan.kind}"
        + (f", {plan.note}" if plan.note else "")
        + ("" if plan.whole else f": {', '.join(plan.files)}")
        for plan in planned
    ] + [f"{cache.folder.name}: {PROBED}, {len(cached)} files that analyses have kept"] * bool(cached)
    if not as_json:
        for line in lines:
            click.echo(printable(line))
    gone: list[RunFolder] = []
    if (planned or cached) and not dry_run:
        if not yes:
            if not sys.stdin.isatty():
                raise BadInput("clean: give --yes when there is no terminal to ask at, or --dry-run to look only")
            click.confirm(f"Remove {len(lines)}?", abort=True, err=True)
        gone = [plan.folder for plan in planned if remove(plan, kinds)]
        cache.remove(cached)
    if as_json:
        emit_json(
            {
                "found": [
                    {"suite": p.folder.suite, "digest": p.folder.digest, "kind": p.kind, "files": list(p.files)}
                    for p in planned
                ],
                "removed": [f"{folder.suite}/{folder.digest}" for folder in gone],
                PROBED: cached,
            }
        )
    elif not lines:
        click.echo("nothing to clean")
    elif not dry_run:
        kept = len(planned) - len(gone)
        click.echo(
            f"{len(gone) + bool(cached)} removed"
            + (f", {kept} left (in use by now, or holding strange files)" if kept else "")
        )


def _existing(results: Path) -> Store:
    """Open results that must be there already."""
    store = Store(results, read_only=True)
    if not results.is_dir():
        raise BadInput(
            f"results: there is no folder {shown(results)}; `rnnbench run` makes it, --results names another"
        )
    return store


def selected(store: Store, digests: Sequence[str], wanted: dict[str, tuple[str, ...]]) -> list[Standing]:
    """Return the runs that begin with one of `digests` (all, when none is given) and pass every filter.

    Raises:
        BadInput: when a digest fits no run or several, or a filter names what no run has (with the nearest).
    """
    folders = store.folders()
    if digests:
        folders = [find_run(digest, folders, store.root) for digest in dict.fromkeys(digests)]
    return filtered(folders, wanted)


def filtered(folders: Sequence[RunFolder], wanted: Mapping[str, tuple[str, ...]]) -> list[Standing]:
    """Return the runs that pass every filter.

    Raises:
        BadInput: when a filter names what no run has (with the nearest).
    """
    found = [standing(folder) for folder in folders]
    keys = [_keys(now) for now in found]
    for name, values in wanted.items():
        if name != "status" and found:
            known = {str(key[name]) for key in keys if key[name] is not None}
            for value in values:
                if value not in known:
                    raise unknown(name, value, known)
    return [
        now
        for now, key in zip(found, keys, strict=True)
        if all(not values or key[name] in values for name, values in wanted.items())
    ]


def _keys(now: Standing) -> dict[str, Any]:
    """Return what filters look at; a run with neither record nor checkpoint is known by its suite and status alone."""
    named = run_columns(now.described) if now.described is not None else {}
    keys = {name: named.get(name) for name in ("task", "cell", "backend")}
    keys["cell"] = keys["cell"] or named.get("model")
    return {**keys, "suite": now.folder.suite, "status": now.status}


def _row(now: Standing) -> dict[str, Any]:
    record = now.record
    row = {"digest": now.folder.digest, **_keys(now), "seed": None, "steps": None}
    if record is not None:
        row.update(seed=record.spec.get("seed", 0), steps=record.steps, steps_to_solve=record.steps_to_solve)
        row.update(summary=record.summary.metrics, matched=record.matched, total_s=record.timings.total_s)
        row.update(error=record.error, lean=bool(record.left_out))
    elif now.progress is not None:
        row["steps"] = now.progress.step
        if now.described is not None:
            row.update(seed=now.described.spec.get("seed", 0), summary=now.described.summary.metrics)
    if now.reason:
        row["error"] = now.reason
    return row


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "digest":
        return str(row["digest"])[:12]
    if column == "score":
        summary = row.get("summary") or {}
        scores = [f"{metric} {'not finite' if v is None else format(v, '.4g')}" for metric, v in summary.items()][:2]
        return "; ".join([*scores, str(row["error"])[:120]] if row.get("error") else scores)
    if column == "cell" and row.get("matched") is False:
        return f"{row['cell']} (unmatched)"
    return "" if row.get(column) is None else str(row[column])


_WIDTH = 34


def _lines(facts: dict[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Flatten a record for reading: ``environment.cpu  AMD EPYC``; files on one line each."""
    for key, value in facts.items():
        name = f"{above}{key}"
        if above in ("files.", "left_out."):
            yield name, f"{value['bytes']:>12} bytes  sha256 {value['sha256']}"
        elif isinstance(value, dict) and value:
            yield from _lines(value, f"{name}.")
        elif isinstance(value, list):
            yield name, ", ".join(str(entry) for entry in value) or "none"
        else:
            yield name, "none" if value is None or value == {} else str(value)
