"""Tiers: every test belongs to one by its markers, and a run says at its end which tests it left out and why.

``pytest`` runs the fast tier; ``pytest --tier fast,slow`` adds the slow one; gpu and browser are asked for by name. A
test that was asked for but lacks its device is skipped with that reason, never silently left out.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.evidence import Evidence
from rnnbench.experiment import resolve
from rnnbench.findings import Finding, finding
from rnnbench.probes.base import Probe
from rnnbench.record import Environment, Resolved, RunRecord, Status, Summary
from rnnbench.signals import Signal, SignalKind
from rnnbench.spec import Ref, RunSpec
from rnnbench.store import RunFolder, Store
from rnnbench.train import starting_state

TIERS = ("fast", "slow", "gpu", "browser")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier", default="fast", metavar="TIER[,TIER]", help=f"which tests to run: {', '.join(TIERS)} (default: fast)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CHOSEN] = chosen = set(str(config.getoption("--tier")).split(","))
    config.stash[_LEFT_OUT] = Counter()
    if unknown := chosen - set(TIERS):
        raise pytest.UsageError(f"--tier: unknown {', '.join(sorted(unknown))}; there are {', '.join(TIERS)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, kept, dropped = config.stash[_CHOSEN], [], []
    for item in items:
        tiers = {tier for tier in TIERS if item.get_closest_marker(tier)} or {"fast"}
        if tiers <= chosen:
            kept.append(item)
            for tier in tiers:
                if reason := _missing(tier):
                    item.add_marker(pytest.mark.skip(reason=reason))
        else:
            dropped.append(item)
            config.stash[_LEFT_OUT][min(tiers - chosen, key=TIERS.index)] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # under pytest-xdist only the workers collect
        session.config.workeroutput["left_out"] = dict(session.config.stash[_LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for tier, count in sorted(config.stash[_LEFT_OUT].items()):
        reason = f"; {missing}" if (missing := _missing(tier)) else ""
        terminalreporter.write_line(f"left out: {count} of the {tier} tier (--tier {tier} runs them{reason})")


_CHOSEN = pytest.StashKey[set[str]]()
_LEFT_OUT = pytest.StashKey[Counter[str]]()


def _missing(tier: str) -> str:
    """Return what this machine lacks for a tier, or nothing."""
    if tier == "gpu" and not Path("/dev/nvidiactl").exists():
        return "this machine has no NVIDIA GPU"
    if tier == "browser" and not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        return "this machine has no Chromium"
    return ""


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's settings out of the tests, and the tests' out of one another."""
    for name in ("RNNBENCH_RESULTS", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Make the folder of a run that has ended, in ``results``, with the parameters that it started from as its last."""

    def make(
        seed: int = 0,
        suite: str = "mine",
        status: Status = Status.COMPLETED,
        signals: tuple[Signal, ...] = (),
        value: float | None = 0.25,
        parameters: dict[str, Any] | None = None,
        **spec: Any,
    ) -> RunFolder:
        values: dict[str, Any] = {"task": {"name": "copy", "delay": 5}, "cell": {"name": "rnn", "hidden": 3}}
        experiment = resolve(RunSpec.parse({**values, "seed": seed, **spec}, ""))
        if parameters is None and experiment.cell is not None:
            parameters = starting_state(experiment, experiment.network()).params
        folder = Store(tmp_path / "results").folder(suite, experiment.digest)
        with folder.lock():
            writer = folder.writer()
            row = {"step": 7, "sequences": 224, "split": "valid", "metric": "loss", "value": 0.5, "seconds": 0.1}
            writer.metrics([row])
            for signal in signals:
                writer.signal(signal.name, signal.axes, signal.unit, signal.values, signal.step)
            if not status.final:
                state = {f"params/{name}": array for name, array in (parameters or {}).items()}
                writer.checkpoint(state, {"step": 7})
            elif parameters is not None:
                writer.save_parameters("final", parameters)
            writer.finish(
                RunRecord(
                    digest=experiment.digest,
                    suite=suite,
                    spec=experiment.canonical(),
                    resolved=Resolved(
                        device="cpu",
                        path="fused",
                        precision="float32",
                        components=dict(experiment.versions),
                        data={"sha256": experiment.task.data_hash()},
                    ),
                    matched=True,
                    environment=Environment(
                        python="CPython 3.11.7", system="Linux", machine="x86_64", cpu="A processor", threads=1
                    ),
                    status=status,
                    steps=7,
                    sequences=224,
                    summary=Summary(metrics={"accuracy": value}, metric="accuracy", better="higher", step=7),
                    baselines={"accuracy": {"guess": 0.125, "none": None}},
                    created="2026-01-02T03:04:05Z",
                )
            )
        return folder

    return make


class Level(Probe):
    """The level of something."""

    name = "level"
    signals = (SignalKind("level.height", (), "m", "how high it stands", "none"),)
    scale: float = 1.0

    def measure(self, look: Any) -> Any:
        raise AssertionError("the fake engine measures in its place")


@dataclass
class Fakes:
    """A probe, an engine that measures and an analyzer, in place of all others.

    Attributes:
        calls: digest, step, probes and device of each measurement.
        error: what the engine raises, if anything.
        analyzers: the registry's; more can be put in.
    """

    calls: list[tuple[str, int, list[Ref], str | None]]
    error: BaseException | None
    analyzers: dict[str, str]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Measure heights, and find that a gradient has vanished where one is below 10 m."""
    state = Fakes([], None, {"heights": "fake_things:judge"})

    def probe_run(
        experiment: Any, params: Any, step: int, probes: Any, *, device: str | None = None, threads: int = 1
    ) -> list[Signal]:
        if state.error is not None:
            raise state.error
        state.calls.append((experiment.digest, step, list(probes), device))
        assert threads >= 1
        assert set(params) == set(experiment.network().initial(0))
        scale = float(probes[0].params.get("scale", 1.0))
        return [Signal("level.height", (), "m", step, np.asarray(scale * (1.0 + experiment.spec.seed)))]

    def judge(evidence: Evidence) -> list[Finding]:
        """Judge heights."""
        found = [signal for run in evidence.runs for signal in run.signals.find("level.height")]
        if not found:
            return []
        height = min(float(signal.values) for signal in found)
        code = "gradient-vanishing" if height < 10 else "gradient-healthy"
        return [
            finding(
                code,
                evidence.subject,
                f"The lowest height is {height:g} m.",
                measure="height",
                value=height,
                low=height - 0.5,
                level=0.95,
                unit="m",
                threshold=10.0,
                of="the tide",
                step=max(signal.step for signal in found),
                seeds=len(evidence.runs),
                evidence=("level.height",),
                details={"need": evidence.lag, "reach": {"value": height}, "use": None, "open_reach": [0]},
            )
        ]

    things = ModuleType("fake_things")
    things.Level, things.judge = Level, judge  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "fake_things", things)
    monkeypatch.setattr("rnnbench.engine.probing.probe_run", probe_run)
    monkeypatch.setattr("rnnbench.engine.probing.DEFAULT", (Ref(name="level"),))
    monkeypatch.setitem(registry.BUILT_IN["probes"], "level", "fake_things:Level")
    monkeypatch.setitem(registry.BUILT_IN, "analyzers", state.analyzers)
    return state
