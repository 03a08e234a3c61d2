"""Run folders: write, lock, read, verify, pack, and load into pandas. ``docs/results.md`` describes the files."""

from rnnbench.store.checkpoints import Checkpoint
from rnnbench.store.folder import RunFolder, Store
from rnnbench.store.writer import RunWriter

__all__ = ["Checkpoint", "RunFolder", "RunWriter", "Store"]
