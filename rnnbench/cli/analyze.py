"""``rnnbench analyze``: what recorded runs have to say, as findings in words, in JSON, and in pictures."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import rich_click as click

from rnnbench.cli.common import console, data_dir_option, emit_json, escaped, json_option, printable, warn
from rnnbench.cli.exits import Terminated
from rnnbench.cli.progress import LINE_SECONDS
from rnnbench.cli.results import filter_options, filtered
from rnnbench.cli.spec_options import parse_probe
from rnnbench.errors import BadInput, RnnbenchError, quoted

if TYPE_CHECKING:
    from rich.text import Text

    from rnnbench.analysis import Analysis, Arm, Watcher
    from rnnbench.findings import Finding

SIGNS = {"problem": "[!!] problem", "warning": "[!]  warning", "info": "[i]  info", "ok": "[+]  ok"}
COLOURS = {"problem": "bold red", "warning": "yellow", "info": "cyan", "ok": "green"}
FORMATS = ("png", "pdf", "svg")
LEVELS = ("info", "warning", "problem")
MOST_WIDTH = 110  # columns: longer lines are hard to read, however wide the terminal


@click.command()
@click.argument("path", metavar="RESULTS")
@filter_options
@click.option("--run", "digests", multiple=True, metavar="DIGEST", help="Only the run whose digest begins so; repeat.")
@click.option(
    "--probe",
    "probes",
    multiple=True,
    metavar="NAME[:KEY=VALUE,…]",
    help="Measure this, recorded or not, in place of the usual probes; repeat.",
)
@click.option("--no-probe", is_flag=True, help="Measure nothing: only what was recorded.")
@click.option("--no-context", is_flag=True, help="Do not measure how much past a task of data needs.")
@click.option(
    "--parameters",
    default="final",
    show_default=True,
    metavar="WHICH",
    help="Which parameters are measured: final, best, start or checkpoint.",
)
@click.option("--device", metavar="NAME", help="Where to measure; by default where each run ran.")
@click.option("--analyzer", "analyzers", multiple=True, metavar="NAME", help="Only this analyzer; repeat.")
@click.option("--plots", metavar="FOLDER", help="Draw pictures into this folder.")
@click.option("--format", "kind", default="png", show_default=True, metavar="|".join(FORMATS), help="Of the pictures.")
@click.option("--fail-on", metavar="|".join(LEVELS), help="Exit status 1 when a finding is as bad as this, or worse.")
@data_dir_option
@json_option
def analyze(
    path: str,
    digests: tuple[str, ...],
    probes: tuple[str, ...],
    no_probe: bool,
    no_context: bool,
    parameters: str,
    device: str | None,
    analyzers: tuple[str, ...],
    plots: str | None,
    kind: str,
    fail_on: str | None,
    as_json: bool,
    **wanted: tuple[str, ...],
) -> None:
    """Ask every analyzer what runs have to say.

    RESULTS is a folder of results, or one suite's or one run's folder in it. Signals that analyzers read and that a
    run has not recorded are measured on its final parameters, and kept for the next time. Exit status 1 with --fail-on
    when a finding is as bad as that, 3 when a run is damaged (the others are analyzed all the same).
    """
    from rnnbench.analysis import Asked, PictureFormat, analyze_folders, draw_pictures
    from rnnbench.engine.ondemand import Parameters
    from rnnbench.errors import CorruptData, Interrupted, RunFailed, unknown
    from rnnbench.findings import Severity
    from rnnbench.store.files import shown
    from rnnbench.store.folder import find_run
    from rnnbench.store.frames import run_folders

    if probes and no_probe:
        raise BadInput("give either --probe or --no-probe, not both")
    for option, value, known in (("--format", kind, FORMATS), ("--fail-on", fail_on, LEVELS)):
        if value is not None and value not in known:
            raise unknown(option, value, known)
    if not path.strip():
        raise BadInput("RESULTS: an empty name; give a folder of results")
    target = None if plots is None else _plots_folder(plots)
    asked = Asked(
        probes=() if no_probe else tuple(map(parse_probe, probes)) or None,
        parameters=cast(Parameters, parameters),
        analyzers=analyzers or None,
        context=not no_context,
        device=device,
        keep=target is not None,
    )
    folders = run_folders(path)
    if not folders:
        raise BadInput(f"{shown(Path(path))}: there are no runs in it")
    if digests:
        folders = [find_run(digest, folders, Path(path)) for digest in dict.fromkeys(digests)]
    folders = [now.folder for now in filtered(folders, wanted)]
    if not folders:
        raise BadInput(f"{shown(Path(path))}: no run in it passes the filters")
    with _watching(quiet=as_json) as watcher:
        try:
            found = analyze_folders(folders, asked, watcher)
        except KeyboardInterrupt as error:
            raise Interrupted(
                signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT,
                "interrupted; what was measured by now is kept, and the same command goes on from there",
            ) from None
    pictures, undrawn = [], None
    if target is not None:
        try:
            pictures = draw_pictures(found.arms, target, cast(PictureFormat, kind), found.notes)
        except RnnbenchError as error:  # the findings are there, and come first
            undrawn = error
    if as_json:
        emit_json({**found.as_json(), "pictures": [str(picture) for picture in pictures]})
    else:
        _print(found, pictures)
    for line in [*found.notes, *found.damaged]:
        warn(line)
    if undrawn is not None:
        raise undrawn
    if found.damaged:
        raise CorruptData(f"{len(found.damaged)} of {len(folders)} runs are damaged and were left out")
    if fail_on is not None:
        bad = [finding for finding in found.findings if finding.severity.rank >= Severity(fail_on).rank]
        if bad:
            raise RunFailed(f"{_count(len(bad), 'finding')} at {fail_on} or worse")


def _plots_folder(name: str) -> Path:
    """Refuse, before anything is measured, a place where no picture could go."""
    from rnnbench.store.files import shown

    folder = Path(name)
    if not name.strip() or "\0" in name:
        raise BadInput(f"--plots: {quoted(name)} is not a folder's name")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--plots: {shown(folder)} is not a folder")
    return folder


@contextmanager
def _watching(quiet: bool) -> Iterator[Watcher]:
    """Yield what shows on stderr how far the analysis is: a bar on a terminal, a line now and then elsewhere."""
    from rnnbench.analysis import Watcher

    out = console(error=True)
    if quiet:
        yield Watcher()
    elif out.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=out, transient=True) as bars:
            task = bars.add_task("runs", total=None)
            yield Watcher(
                lambda runs: bars.update(task, total=runs),
                lambda what: bars.update(task, description=printable(what)),
                lambda: bars.advance(task),
            )
    else:
        yield _lines()


def _lines() -> Watcher:
    from rnnbench.analysis import Watcher

    total, count, what, last = 0, 0, "", time.monotonic()

    def begin(runs: int) -> None:
        nonlocal total
        total = runs

    def at(now: str) -> None:
        nonlocal what
        what = now

    def done() -> None:
        nonlocal count, last
        count += 1
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            click.echo(printable(f"[{count}/{total}] {what}"), err=True)

    return Watcher(begin, at, done)


def _print(found: Analysis, pictures: Sequence[Path]) -> None:
    out = console()
    width = min(out.width, MOST_WIDTH) if out.is_terminal else None
    for arm in found.arms:
        for line in _arm_lines(arm, width):
            if out.is_terminal:
                out.print(line, soft_wrap=True)
            else:
                click.echo(line.plain)
    for picture in pictures:
        click.echo(f"picture: {printable(picture)}")
    if len(found.arms) > 1:
        click.echo(_totals(found.arms))


def _arm_lines(arm: Arm, width: int | None) -> Iterator[Text]:
    """Yield an arm's lines: the worst finding in plain words, each finding, an empty one."""
    from rich.text import Text

    from rnnbench.findings import worst

    head = f"{printable(arm.subject)} ({_count(len(arm.seeds), 'seed')}): {printable(arm.headline)}"
    for line in _wrapped(head, "", "  ", width):
        yield Text(line, style=f"bold {COLOURS[worst(arm.findings)].removeprefix('bold ')}" if arm.findings else "bold")
    for finding in arm.findings:
        yield from _finding_lines(finding, width)
    yield Text("")


def _finding_lines(finding: Finding, width: int | None) -> Iterator[Text]:
    from rich.text import Text

    from rnnbench.findings import CODES

    sign, colour = SIGNS[finding.severity], COLOURS[finding.severity]
    for number, line in enumerate(_wrapped(f"{sign}: {printable(finding.claim)}", "  ", " " * 6, width)):
        text = Text(line)
        if number == 0:
            text.stylize(colour, 2, 2 + len(sign))
        yield text
    page = f"docs/findings/{finding.code}.md" if finding.code in CODES else ""
    rows = [
        ("evidence", evidence_line(finding)),
        ("likely cause", "; or ".join(finding.causes)),
        ("what helps", "; or ".join(finding.remedies)),
        ("see", "; ".join(part for part in (page, finding.reference) if part)),
    ]
    for heading, said in rows:
        if said:
            for line in _wrapped(f"{heading}: {printable(said)}", " " * 6, " " * 8, width):
                yield Text(line)


def evidence_line(finding: Finding) -> str:
    """Return what a finding rests on: the measured value with its interval, the threshold, of what, and when."""
    unit = f" {finding.unit}" if finding.unit else ""
    parts = []
    if finding.value is not None:
        measured = f"{finding.measure or 'measured'} {finding.value:.4g}{unit}"
        if finding.low is not None or finding.high is not None:
            low = "-inf" if finding.low is None else f"{finding.low:.4g}"
            high = "inf" if finding.high is None else f"{finding.high:.4g}"
            level = f" at {100 * finding.level:.3g} %" if finding.level is not None else ""
            measured += f" [{low}, {high}]{level}"
        parts.append(measured)
    elif finding.measure:
        parts.append(finding.measure)
    if finding.threshold is not None:
        parts.append(f"judged against {finding.threshold:.4g}{unit}")
    if finding.of:
        parts.append(f"of {finding.of}")
    if finding.step is not None:
        parts.append(f"at training step {finding.step}")
    if finding.seeds:
        parts.append(_count(finding.seeds, "seed"))
    if finding.evidence:
        parts.append(f"from {', '.join(finding.evidence)}")
    return "; ".join(parts)


def _totals(arms: Sequence[Arm]) -> str:
    from collections import Counter

    from rnnbench.findings import Severity, worst

    counts = Counter(worst(arm.findings) for arm in arms if arm.findings)
    said = ", ".join(f"{counts[severity]} {severity}" for severity in reversed(Severity) if counts[severity])
    silent = sum(not arm.findings for arm in arms)
    said = ", ".join([said] * bool(said) + [f"{silent} without any"] * bool(silent))
    return f"{_count(len(arms), 'arm')}, by their worst finding: {said}"


def _wrapped(text: str, first: str, rest: str, width: int | None) -> list[str]:
    """Indent a paragraph, wrapped to a terminal's width; elsewhere it stays one line."""
    import textwrap

    if width is None:
        return [first + escaped(text)]
    return textwrap.wrap(
        escaped(text), max(width, 30), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
