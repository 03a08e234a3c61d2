"""What a Python program calls: `rnnbench.run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from rnnbench.engine import Options, execute, plan
from rnnbench.errors import BadInput, RunFailed, quoted
from rnnbench.record import RunRecord
from rnnbench.spec import RunSpec
from rnnbench.store import Store
from rnnbench.suite import Arm

SpecLike = RunSpec | Mapping[str, Any]


@overload
def run(
    spec: SpecLike,
    *,
    results: str | Path | None = None,
    suite: str = "adhoc",
    jobs: int = 1,
    threads: int | None = None,
) -> RunRecord: ...


@overload
def run(
    spec: Sequence[SpecLike],
    *,
    results: str | Path | None = None,
    suite: str = "adhoc",
    jobs: int = 1,
    threads: int | None = None,
) -> list[RunRecord]: ...


def run(
    spec: SpecLike | Sequence[SpecLike],
    *,
    results: str | Path | None = None,
    suite: str = "adhoc",
    jobs: int = 1,
    threads: int | None = None,
) -> RunRecord | list[RunRecord]:
    """Train, or find done already, one run or several, and return their records in the same order.

    Args:
        spec: a `RunSpec`, or its fields as a mapping; or a sequence of either.
        results: the folder of results; by default ``RNNBENCH_RESULTS``, or ``rnnbench-results`` here.
        suite: name of the folder within it.
        jobs: processes at work. With more than one, call this under ``if __name__ == "__main__":``, since the processes
            that are spawned import the calling module.
        threads: CPU threads a run; by default a fair share of the processors.

    Returns:
        A record for a single spec, a list of records for a sequence. A diverged run is a result, and has a record.

    Raises:
        BadInput: when a spec cannot be run.
        CorruptData: when data or a checkpoint are damaged.
        Locked: when another process works on a run.
        RunFailed: when a run failed.
    """
    if isinstance(spec, str):
        raise BadInput(
            f"run: {quoted(spec)} is text; give a spec, or of a suite [arm.spec for arm in load_suite(...).expand()]"
        )
    several = not isinstance(spec, (RunSpec, Mapping))
    wanted: list[SpecLike] = [spec] if isinstance(spec, (RunSpec, Mapping)) else list(spec)
    specs = [each if isinstance(each, RunSpec) else RunSpec.parse(each, "") for each in wanted]
    arms = [Arm(f"{each.task.name} {each.cell.name if each.cell else each.model}", each) for each in specs]
    root = Path(results if results is not None else os.environ.get("RNNBENCH_RESULTS", "rnnbench-results"))
    outcomes = execute(plan(arms, suite), Store(root), Options(jobs, threads))
    records: list[RunRecord] = []
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        if outcome.record is None:
            raise RunFailed(f"{outcome.planned.title}: was not run")
        records.append(outcome.record)
    return records if several else records[0]
