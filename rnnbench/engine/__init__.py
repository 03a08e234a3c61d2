"""Where runs execute: in this process, or in a pool of processes."""

from __future__ import annotations

from rnnbench.engine.execute import Options, Outcome, execute, plan

__all__ = ["Options", "Outcome", "execute", "plan"]
