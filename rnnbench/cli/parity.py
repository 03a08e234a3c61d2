"""``rnnbench parity``: do the backends compute the same? Step by step from the same bytes, and then freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import rich_click as click

from rnnbench.cli.common import Kind, data_dir_option, emit_json, json_option, print_table, printable
from rnnbench.cli.spec_options import Choice, spec_options, specs_from_options
from rnnbench.errors import BadInput, RunFailed

if TYPE_CHECKING:
    from rnnbench.parity import ParityReport, Row
    from rnnbench.suite import Arm

BACKENDS = ("torch", "jax")
STEPS = 10
MOST_STEPS = 10_000
DEFAULTS = {"precision": "float64", "data.batch_size": 8}
"""What a comparison takes unless an option says otherwise."""

_COLUMNS: list[tuple[str, Kind]] = [
    ("phase", "name"),
    ("quantity", "name"),
    ("between", "name"),
    ("difference", "number"),
    ("tolerance", "number"),
    ("kappa", "number"),
    ("verdict", "name"),
    ("where", "text"),
]


@click.command()
@spec_options
@data_dir_option
@json_option
def parity(choice: Choice, as_json: bool) -> None:
    """Compare torch with JAX on the same runs: ten steps one by one from the same bytes, then ten in a row.

    Options as for run; --steps says how many steps. Without further options float64, batches of 8 and seed 0. Exit
    status 1 when anything is over tolerance, or the case is too sensitive to conclude anything.
    """
    backends, steps, arms = _cases(choice)
    reports = [(arm, _compare(arm, backends, steps)) for arm in arms]
    if as_json:
        from rnnbench.experiment import resolve

        emit_json(
            [{"label": arm.label, "spec": resolve(arm.spec).canonical(), **report.as_json()} for arm, report in reports]
        )
    else:
        _print(reports)
    failed = [arm.label for arm, report in reports if not report.equal]
    if failed:
        of = f" of {len(reports)} cases" if len(reports) > 1 else ""
        raise RunFailed(f"parity: {len(failed) if of else 'the case'}{of} not shown equal ({', '.join(failed[:3])})")


def _cases(choice: Choice) -> tuple[tuple[str, ...], int, list[Arm]]:
    """Return the backends, the number of steps and the runs to compare, one for all backends together."""
    steps = STEPS if choice.steps is None else choice.steps
    if not 1 <= steps <= MOST_STEPS:
        raise BadInput(f"--steps: {steps} is not from 1 to {MOST_STEPS}")
    backends = tuple(name.strip() for name in choice.backend.split(",")) if choice.backend is not None else BACKENDS
    asked = {text.partition("=")[0].strip() for text in choice.settings}
    settings = [f"{key}={value}" for key, value in DEFAULTS.items() if key not in asked and not _given(choice, key)]
    seed = "0" if choice.seed is None and choice.seeds is None else choice.seed
    choice = replace(choice, backend=None, steps=None, seed=seed, settings=(*choice.settings, *settings))
    arms: dict[str, Arm] = {}
    for arm in specs_from_options(choice, BACKENDS[:1]):  # a suite's arms name their backends; here each runs on all
        if arm.spec.model is not None:
            raise BadInput(f"parity: {arm.label}: a user's whole model is one framework's own; give a cell")
        arms.setdefault(arm.spec.model_copy(update={"backend": BACKENDS[0]}).model_dump_json(), arm)
    return backends, steps, list(arms.values())


def _given(choice: Choice, key: str) -> bool:
    return key == "precision" and choice.precision is not None


def _compare(arm: Arm, backends: Sequence[str], steps: int) -> ParityReport:
    from rnnbench.backends.base import Program, TrainState
    from rnnbench.experiment import resolve
    from rnnbench.parity import compare

    experiment = resolve(arm.spec)
    spec, network, source = experiment.spec, experiment.network(), experiment.source()
    return compare(
        Program(experiment.task, network, experiment.optimizer, experiment.techniques),
        TrainState(network.initial(spec.seed), buffers=network.initial_buffers(spec.seed)),
        [source.batch("train", step) for step in range(steps)],
        spec.precision,
        backends=backends,
        device=spec.device,
        path=spec.path,
    )


def _print(reports: Sequence[tuple[Arm, ParityReport]]) -> None:
    """Print every quantity of a single case; of several, a line each and the quantities of those not equal."""
    if len(reports) > 1:
        click.echo("Worst norm-relative differences")
        columns: list[tuple[str, Kind]] = [("case", "text")]
        columns += [(name, "number") for name in ("states", "gradients", "parameters", "free run", "kappa")]
        print_table([*columns, ("verdict", "name")], [_summary(arm, report) for arm, report in reports])
    for arm, report in reports:
        if len(reports) > 1 and report.equal:
            continue
        paths = ", ".join(f"{name} ({path})" for name, path in report.paths.items())
        of = f"{paths}; {report.precision} on {report.device}, {report.steps} steps"
        click.echo(f"{printable(arm.label)}: {of}")
        print_table(_COLUMNS, [_cells(row) for row in report.rows])
        for line in _notes(report):
            click.echo(printable(line))


def _summary(arm: Arm, report: ParityReport) -> list[str]:
    places = (("step", "states"), ("step", "gradients"), ("step", "parameters"), ("free", "parameters"))
    worst = [f"{report.row(phase, quantity).difference:.1e}" for phase, quantity in places]
    return [arm.label, *worst, f"{report.kappa:.3g}", "equal" if report.equal else _worst(report.rows)]


def _worst(rows: Sequence[Row]) -> str:
    found = {row.verdict for row in rows}
    return next(verdict for verdict in ("non-finite", "over", "inconclusive", "equal") if verdict in found)


def _cells(row: Row) -> list[str]:
    kappa = "" if row.phase == "start" else f"{row.kappa:.3g}"
    between = " | ".join(row.between)
    numbers = [f"{row.difference:.1e}", f"{row.tolerance:.1e}", kappa]
    return [row.phase, row.quantity, between, *numbers, row.verdict, row.at]


def _notes(report: ParityReport) -> list[str]:
    hashes = set(report.batch_sha256.values())
    if len(hashes) == 1:
        lines = [f"first batch: sha256 {hashes.pop()}, as read back from {' and '.join(report.backends)}"]
    else:
        lines = [f"first batch: sha256 {digest} ({name})" for name, digest in report.batch_sha256.items()]
    lines += [f"gradient zero in theory: {name} ({why})" for name, why in report.zero_gradients.items()]
    return [*lines, *report.advice()]
