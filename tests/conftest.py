"""Tiers: every test belongs to one by its markers, and a run says at its end which tests it left out and why.

``pytest`` runs the fast tier; ``pytest --tier fast,slow`` adds the slow one; gpu and browser are asked for by name. A
test that was asked for but lacks its device is skipped with that reason, never silently left out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

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
