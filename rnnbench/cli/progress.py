"""Progress of runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from rnnbench.cli.common import console, printable

if TYPE_CHECKING:
    from rnnbench.engine import Outcome, Planned, Watcher
    from rnnbench.train import Event

LINE_SECONDS = 10.0
"""Time between two plain lines about the same run."""


@contextmanager
def watching(title: str, total: int, quiet: bool) -> Iterator[Watcher]:
    """Yield a watcher that shows `total` runs on stderr while it is open.

    Of one run alone it leaves an error to whoever ends the command with it.
    """
    from rnnbench.engine import Watcher

    out = console(error=True)
    if quiet:
        yield Watcher()
    elif out.is_terminal:
        with _bars(title, total) as watcher:
            yield watcher
    else:
        yield _lines(title, total)


@contextmanager
def _bars(title: str, total: int) -> Iterator[Watcher]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
    from rich.text import Text

    from rnnbench.engine import Watcher

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        console=console(error=True),
        transient=True,
    ) as bars:
        whole = bars.add_task("runs", total=total, facts="")
        shown: dict[str, TaskID] = {}
        began = time.monotonic()

        def started(planned: Planned) -> None:
            limit = planned.experiment.steps
            shown[planned.experiment.digest] = bars.add_task(printable(planned.title), total=limit, facts="starting")

        def progress(planned: Planned, event: Event) -> None:
            bars.update(shown[planned.experiment.digest], completed=event.step, facts=_facts(event))

        def ended(outcome: Outcome) -> None:
            bars.remove_task(shown.pop(outcome.planned.experiment.digest))
            bars.advance(whole)
            done = bars.tasks[0].completed
            left = (time.monotonic() - began) / done * (total - done)
            bars.update(whole, facts=f"about {_duration(left)} left" if total > done else "")
            if not outcome.ok and not (total == 1 and outcome.error is not None):
                bars.console.print(Text(printable(_ending(outcome))))

        def note(text: str) -> None:
            bars.console.print(Text(printable(f"{title}: {text}")))

        yield Watcher(started, progress, ended, note)


def _lines(title: str, total: int) -> Watcher:
    from rnnbench.engine import Watcher

    last: dict[str, float] = {}
    count = 0

    def say(text: str) -> None:
        click.echo(printable(text), err=True)

    def progress(planned: Planned, event: Event) -> None:
        now = time.monotonic()
        if now - last.setdefault(planned.title, now) >= LINE_SECONDS:
            last[planned.title] = now
            of = "" if event.steps is None else f" of {event.steps}"
            say(f"{planned.title}: step {event.step}{of}, {_facts(event)}")

    def ended(outcome: Outcome) -> None:
        nonlocal count
        count += 1
        if total > 1 or outcome.error is None:
            say(f"[{count}/{total}] {_ending(outcome)}")

    return Watcher(progress=progress, ended=ended, note=lambda text: say(f"{title}: {text}"))


def _facts(event: Event) -> str:
    """Return loss, metric, rate and time left in one line."""
    rate = event.step / event.seconds if event.seconds > 0 else 0.0
    facts = []
    if event.loss is not None:
        facts.append(f"loss {event.loss:.4g}")
    if event.value is not None and event.metric != "loss":
        facts.append(f"{event.metric.replace('_', ' ')} {event.value:.4g}")
    if rate > 0:
        facts.append(f"{rate:.3g} steps/s")
        if event.steps is not None and event.step < event.steps:
            facts.append(f"{_duration((event.steps - event.step) / rate)} left")
    return ", ".join(facts)


def _ending(outcome: Outcome) -> str:
    title = outcome.planned.title
    if outcome.error is not None:
        return f"{title}: {outcome.error}"
    record = outcome.record
    if record is None:
        return f"{title}: not run"
    metric = record.summary.metric
    value = record.summary.metrics.get(metric or "")
    score = f", {metric} {value:.4g}" if metric and value is not None else ""
    bad = f" at step {record.first_bad_step}" if record.first_bad_step is not None else ""
    return f"{title}: {record.status}{bad} after {record.steps} steps{score}, {record.timings.total_s:.1f} s"


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"
