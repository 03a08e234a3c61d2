"""Execute many runs: what is done already is left alone, the rest goes to this process or to a pool."""

from __future__ import annotations

from collections.abc import Sequence

from rnnbench.engine.outcome import Options, Outcome, Planned, Watcher, attempt, interruption
from rnnbench.engine.pool import pooled
from rnnbench.engine.signals import catching
from rnnbench.engine.single import refuse_unsupported
from rnnbench.errors import Interrupted, Locked
from rnnbench.experiment import resolve
from rnnbench.store import Store
from rnnbench.suite import Arm
from rnnbench.train import Event


def plan(arms: Sequence[Arm], suite: str) -> list[Planned]:
    """Resolve every arm, so that whatever is wrong with any of them is said before the first one starts.

    Raises:
        BadInput: for an arm that cannot be run.
        CorruptData: for data that are not what they should be.
    """
    return [Planned(suite, arm.label, resolve(arm.spec)) for arm in arms]


def execute(
    planned: Sequence[Planned], store: Store, options: Options, watcher: Watcher | None = None
) -> list[Outcome]:
    """Run what is not done yet, in order, and return an outcome for each run, in the same order.

    A run that another process works on is skipped when there are others, and is an error alone.

    Raises:
        BadInput: before anything is started, when a backend cannot run what is asked of it.
        Interrupted: after SIGINT or SIGTERM; the runs under way have written their checkpoints.
    """
    watcher = watcher or Watcher()
    outcomes = [Outcome(each) for each in planned]
    waiting: list[Outcome] = []
    seen: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.planned.suite, outcome.planned.experiment.digest)
        if key in seen:
            continue
        seen[key] = outcome
        folder = store.folder(*key)
        record = folder.record()
        if record is not None and record.status.final:
            outcome.record, outcome.already = record, True
        else:
            waiting.append(outcome)
    for outcome in waiting:
        refuse_unsupported(outcome.planned.experiment)
    watcher.note(f"{len(seen)} runs, {len(waiting)} to run")
    if waiting:
        if options.jobs == 1 or len(waiting) == 1:
            _inline(waiting, store, options, watcher)
        else:
            pooled(waiting, store, options, watcher)
    for outcome in waiting:  # what another process was at may be done by now
        if isinstance(outcome.error, Locked):
            record = store.folder(outcome.planned.suite, outcome.planned.experiment.digest).record()
            if record is not None and record.status.final:
                outcome.record, outcome.error, outcome.already = record, None, True
    for outcome in outcomes:  # equal experiments under two labels share one run
        first = seen[outcome.planned.suite, outcome.planned.experiment.digest]
        outcome.record, outcome.error, outcome.already = first.record, first.error, first.already
    if len(planned) == 1 and isinstance(outcomes[0].error, Locked):
        raise outcomes[0].error
    return outcomes


def _inline(waiting: Sequence[Outcome], store: Store, options: Options, watcher: Watcher) -> None:
    settings = options.settings()
    with catching() as signals:
        for outcome in waiting:
            planned = outcome.planned
            watcher.started(planned)

            def report(event: Event, planned: Planned = planned) -> None:
                watcher.progress(planned, event)

            attempt(outcome, store, settings, signals, report)
            if signals.caught is not None:
                raise Interrupted(signals.caught, interruption(outcome))
            watcher.ended(outcome)
