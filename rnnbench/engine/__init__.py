"""Where runs execute: in this process, or in a pool of processes."""

from __future__ import annotations

from rnnbench.engine.execute import execute, plan
from rnnbench.engine.outcome import Options, Outcome, Planned, Watcher

__all__ = ["Options", "Outcome", "Planned", "Watcher", "execute", "plan"]
