"""``rnnbench run``: train a suite, a TOML file, or a task with a cell or a model."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from rnnbench.cli.common import data_dir_option, emit_json, escaped, json_option, print_table, printable, results_option
from rnnbench.cli.progress import watching
from rnnbench.cli.spec_options import Choice, spec_options

if TYPE_CHECKING:
    import pandas as pd

    from rnnbench.engine import Options, Outcome
    from rnnbench.errors import RnnbenchError
    from rnnbench.suite import SuiteSpec

FIGURE = "learning-curves.png"


@click.command()
@spec_options
@click.option(
    "--probe",
    "probes",
    metavar="NAME[:KEY=VALUE,…]",
    multiple=True,
    help="Look at the model during training: at the start, at times, at the end; repeat for several.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes at work; by default one a processor, or one where the runs are on an accelerator.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads a run; by default a fair share.")
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between a run's checkpoints.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be run, and run nothing.")
@click.option("--figure/--no-figure", default=True, show_default=True, help="Draw learning curves at the end.")
@data_dir_option
@results_option
@json_option
def run(
    choice: Choice,
    jobs: int | None,
    threads: int | None,
    checkpoint_every: float,
    dry_run: bool,
    figure: bool,
    results: Path,
    as_json: bool,
) -> None:
    """Train, and show what came out.

    Give a suite (see rnnbench list suites), a TOML file, or --task with --cell or --model. What is done already is not
    done again; what was interrupted goes on from its last checkpoint; what another process works on is skipped. Exit
    status 1 when a run failed or diverged.
    """
    from rnnbench.engine import Options, execute, plan
    from rnnbench.engine.outcome import processors
    from rnnbench.store import Store

    suite = choice.suite()
    arms = suite.expand(None if choice.suite_name is not None else "")
    planned = plan(arms, suite.name)
    store = Store(results, read_only=dry_run)
    done = [store.folder(each.suite, each.experiment.digest).is_done() for each in planned]
    waiting = len({p.experiment.digest for p, ready in zip(planned, done, strict=True) if not ready})
    if dry_run:
        _show_plan([(p.title, p.experiment.digest, ready) for p, ready in zip(planned, done, strict=True)], as_json)
        return
    on_cpu = all(each.experiment.spec.device == "cpu" for each in planned)
    options = Options(jobs or (max(1, min(processors(), waiting)) if on_cpu else 1), threads, checkpoint_every)
    with watching(suite.title or suite.name, waiting, quiet=as_json) as watcher:
        outcomes = execute(planned, store, options, watcher)
    _conclude(outcomes, results, suite, figure, fresh=waiting > 0, as_json=as_json, options=options)


def _show_plan(rows: Sequence[tuple[str, str, bool]], as_json: bool) -> None:
    if as_json:
        emit_json([{"run": title, "digest": digest, "done": ready} for title, digest, ready in rows])
        return
    print_table(
        [("run", "name"), ("digest", "name"), ("state", "name")],
        [(title, digest[:12], "done" if ready else "to run") for title, digest, ready in rows],
    )


def _conclude(
    outcomes: Sequence[Outcome],
    results: Path,
    suite: SuiteSpec,
    figure: bool,
    *,
    fresh: bool,
    as_json: bool,
    options: Options,
) -> None:
    """Print the table, draw the curves, and end with the right status."""
    from rnnbench.errors import Locked

    if len(outcomes) == 1 and outcomes[0].error is not None and not as_json:
        raise outcomes[0].error
    skipped = [outcome for outcome in outcomes if isinstance(outcome.error, Locked)]
    failed = [outcome for outcome in outcomes if not outcome.ok and outcome not in skipped]
    runs, metrics = _frames(outcomes, results, suite.name)
    rows: list[dict[str, Any]] = []
    drawn: Path | None = None
    if len(runs):
        from rnnbench import registry

        table = registry.load("tables", "summary")(runs, metrics)
        rows = [_without_nan(row) for row in table.to_dict("records")]
        if not as_json:
            _print_summary(rows)
        target = results / suite.name / FIGURE
        if figure:
            key = hashlib.sha256("".join(sorted(runs["digest"])).encode()).hexdigest()
            if fresh or not _shows(target, key):
                _draw(runs, metrics, suite.title or suite.name, target, key)
            drawn = target
    if as_json:
        emit_json(
            {
                "suite": suite.name,
                "jobs": options.jobs,
                "runs": [_run_json(outcome) for outcome in outcomes],
                "summary": [_plain(row) for row in rows],
                "figure": None if drawn is None else str(drawn),
            }
        )
    else:
        if drawn is not None:
            click.echo(f"learning curves: {printable(drawn)}")
        click.echo(f"records: {printable(results / suite.name)}")
        if skipped:
            click.echo(f"skipped, since another process works on them: {len(skipped)} runs", err=True)
    if failed:
        raise _failure(failed, len(outcomes))
    if skipped and not any(outcome.ok and not outcome.already for outcome in outcomes):
        raise Locked(f"all {len(skipped)} runs that are left are being worked on by other processes; wait for them")


def _failure(failed: Sequence[Outcome], total: int) -> RnnbenchError:
    """Return the error that a sweep ends with: of one exit status when everything failed for one kind of reason."""
    from rnnbench.errors import RunFailed
    from rnnbench.record import Status

    errors = [outcome.error for outcome in failed if outcome.error is not None]
    if len(errors) == len(failed) and len({error.exit_status for error in errors}) == 1:
        count = "" if total == 1 else f"{len(failed)} of {total} runs failed; "
        return type(errors[0])(f"{count}{failed[0].planned.title}: {errors[0]}")
    diverged = sum(o.record is not None and o.record.status == Status.DIVERGED for o in failed)
    parts = [f"{diverged} diverged"] * bool(diverged) + [f"{len(failed) - diverged} failed"] * (len(failed) > diverged)
    return RunFailed(f"of {total} runs, {' and '.join(parts)}" if total > 1 else "the run diverged")


def _frames(outcomes: Sequence[Outcome], results: Path, suite: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs and their metrics, each run by its label."""
    import pandas as pd

    from rnnbench.store import Store
    from rnnbench.store.frames import load_folders

    labels = {o.planned.experiment.digest: o.planned.label for o in outcomes if o.record is not None}
    if not labels:
        return pd.DataFrame(), pd.DataFrame()
    # these runs' folders alone: others in the suite's folder may be many, or damaged
    store = Store(results, read_only=True)
    folders = [store.folder(suite, digest) for digest in labels]
    runs = load_folders(folders, "runs")
    return runs.assign(label=runs["digest"].map(labels)), load_folders(folders, "metrics")


def _shows(target: Path, key: str) -> bool:
    """Whether the picture at `target` is of the runs of `key`, and not of others of the same suite."""
    try:
        return key.encode() in target.read_bytes()
    except OSError:
        return False


def _draw(runs: pd.DataFrame, metrics: pd.DataFrame, title: str, target: Path, key: str) -> None:
    """Draw the learning curves; `key` is kept in the picture's metadata."""
    import io

    from rnnbench import registry
    from rnnbench.store.files import write_file

    figure = registry.load("pictures", "curves")(runs, metrics, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Source": key})
    write_file(target, buffer.getvalue())


def _print_summary(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows in sections of one metric and baseline, narrow enough for 80 columns."""
    several = any(row["difference"] is not None for row in rows)
    heading = ["", "backend", "median [range]", "solved", "seconds", *["torch-jax"] * several]
    sections = [list(part) for _, part in itertools.groupby(rows, lambda row: (row["metric"], row["baseline"]))]
    named = [(_common([row["label"] for row in section]), section) for section in sections]
    tables = [[_cells(row, title, several) for row in section] for title, section in named]
    widths = [max(len(line[i]) for line in [heading, *itertools.chain(*tables)]) for i in range(len(heading))]
    for (title, section), table in zip(named, tables, strict=True):
        first = section[0]
        metric = f"{str(first['metric']).replace('_', ' ')}, {first['better']} is better"
        where = f"; baseline {_short(first['baseline'])} ({first['baseline_name']})" if first["baseline_name"] else ""
        click.echo(printable(f"{title}: {metric}{where}" if title else f"{metric}{where}"))
        for line in [heading, *table]:
            left = "  ".join(text.ljust(width) for text, width in zip(line[:2], widths, strict=False))
            right = "  ".join(text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True))
            click.echo(escaped(f"  {left}  {right}"))
        click.echo()
    click.echo("median and range over seeds; solved: how many runs, and the median step of all;")
    click.echo("seconds: the median of a run, compilation included")
    if several:
        click.echo("torch-jax: largest relative difference of training losses in the first ten steps")
    if any(row["same_inputs"] is False for row in rows):
        click.echo("WARNING: some runs' first batches differ between backends; see rnnbench parity")
    if not all(row["matched"] for row in rows):
        click.echo("unmatched: a user's own model, not the same experiment on every backend")


def _common(labels: Sequence[str]) -> str:
    """Return the words that all labels begin with, leaving each at least one of its own."""
    words = [label.split(" ") for label in dict.fromkeys(labels)]
    if len(words) == 1:
        return " ".join(words[0][:-1])
    shared = itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*(each[:-1] for each in words), strict=False)
    )
    return " ".join(column[0] for column in shared)


def _cells(row: dict[str, Any], title: str, several: bool) -> list[str]:
    spread = f" [{_short(row['low'])}, {_short(row['high'])}]" if row["runs"] > 1 else ""
    when = row["median_steps_to_solve"]
    solved = f"{row['solved']}/{row['runs']}" + ("" if when is None else f" at {when:.0f}")
    cells = [
        str(row["label"]).removeprefix(title).strip() + ("" if row["matched"] else " (unmatched)"),
        row["backend"],
        f"{_short(row['median'])}{spread}" + (f" ({row['diverged']} diverged)" if row["diverged"] else ""),
        solved if row["stops"] else "-",
        f"{row['seconds']:.1f}",
    ]
    if several:
        cells.append("-" if row["difference"] is None else f"{row['difference']:.1e}")
    return cells


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _without_nan(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON holds it: what is not finite is null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _run_json(outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    return {
        "run": outcome.planned.title,
        "digest": outcome.planned.experiment.digest,
        "already": outcome.already,
        "error": None if outcome.error is None else str(outcome.error),
        "record": None if record is None else record.model_dump(mode="json"),
    }
