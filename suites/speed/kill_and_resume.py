"""Kill runs at random instants, go on with them, and compare the end, bit for bit, with runs that nobody disturbed.

    python suites/speed/kill_and_resume.py --kills 50

Three scenes take turns: torch in one process, JAX in one process, and both in two worker processes. A kill is SIGKILL
to the command alone, SIGKILL to it and its workers, SIGTERM, or SIGINT to all of them as a terminal sends it. Some fall
while the frameworks are being loaded, the others some time after a new checkpoint; checkpoints are written all the
time, so that some fall into the middle of one. After each kill no run may stand at an earlier step than before, and
every checkpoint must be whole. At the end of each life of a scene its runs are compared with undisturbed ones: status,
metrics (but for the seconds), final and best parameters. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnnbench.store import RunFolder, Store

START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from rnnbench.cli import main; main()"
"""The command; a background process would otherwise inherit that SIGINT is ignored."""

EXPERIMENT = (
    *("--task", "adding", "--set", "task.T=10", "--cell", "lstm", "--set", "cell.hidden=8", "--technique", "clip_norm"),
    *("--set", "data.batch_size=8", "--set", "eval.n=50", "--set", "eval.every=250", "--set", "eval.select=best_valid"),
)
KILLS = ("SIGKILL", "SIGKILL all", "SIGTERM", "SIGINT")
PATIENCE = 180.0


class Broken(Exception):
    """Something was lost, or differs."""


@dataclass
class Scene:
    """One way to run, and what became of it so far."""

    name: str
    options: tuple[str, ...]
    root: Path
    kills: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    compared: int = 0
    resumed: int = 0
    saved: dict[str, int] = field(default_factory=dict)

    def start(self, results: Path) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        arguments = ("run", *EXPERIMENT, *self.options, "--threads", "1", "--checkpoint-every", "0.03", "--no-figure")
        with open(self.root / "log.txt", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", START, *arguments, "--results", str(results)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def whole(self) -> Path:
        """Where the undisturbed runs are."""
        return self.root / "whole"

    @property
    def results(self) -> Path:
        """Where the others are."""
        return self.root / "killed"


def main() -> int:
    """Kill, go on, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and signals (default: 0)")
    parser.add_argument("--scene", choices=("torch", "jax", "pool"), action="append", help="only this one; repeatable")
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory(prefix="rnnbench-kills-") as folder:
        try:
            scenes = list(_scenes(Path(folder), chosen.scene or ["torch", "jax", "pool"]))
            for number in range(chosen.kills):
                _one_kill(scenes[number % len(scenes)], chance, number)
            for scene in scenes:
                _finish(scene)
        except Broken as error:
            print(f"FAILED: {error}", flush=True)
            for log in Path(folder).glob("*/log.txt"):
                print(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-3000:]}")
            return 1
    _report(scenes)
    return 0


def _scenes(folder: Path, names: list[str]) -> Iterator[Scene]:
    """Yield the scenes, each with its undisturbed runs done."""
    options = {
        "torch": ("--backend", "torch", "--steps", "6000", "--jobs", "1"),
        "jax": ("--backend", "jax", "--steps", "60000", "--jobs", "1"),
        "pool": ("--backend", "torch,jax", "--steps", "8000", "--jobs", "2"),
    }
    for name in names:
        root = folder / name
        root.mkdir()
        scene = Scene(name, options[name], root)
        began = time.monotonic()
        status = scene.start(scene.whole).wait(PATIENCE)
        if status:
            raise Broken(f"{name}: the undisturbed runs ended with status {status}")
        print(f"{name}: undisturbed in {time.monotonic() - began:.1f} s", flush=True)
        yield scene


def _one_kill(scene: Scene, chance: random.Random, number: int) -> None:
    """Let the scene go on, kill it, and look at what is left; where it ends before, compare and begin a new life."""
    while True:
        process = scene.start(scene.results)
        if chance.random() < 0.25:
            instant = time.monotonic() + chance.uniform(0.0, 4.0)
        else:
            _await_news(scene, process)
            instant = time.monotonic() + chance.uniform(0.0, 0.6)
        while process.poll() is None and time.monotonic() < instant:
            time.sleep(0.0005)
        if process.poll() is None:
            break
        _check_status(scene, process.returncode, (0,))
        _new_life(scene)
    kind = chance.choice(KILLS)
    if kind == "SIGKILL all":
        os.killpg(process.pid, signal.SIGKILL)
    elif kind == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[kind])
    status = process.wait(PATIENCE)
    _await_group(process.pid)
    # a signal that comes before Python has its handlers ends the process by itself; one after the last step is late
    expected = {"SIGTERM": (143, -signal.SIGTERM, 0), "SIGINT": (130, -signal.SIGINT, 0)}.get(kind, (-signal.SIGKILL,))
    _check_status(scene, status, expected)
    scene.kills[kind] += 1
    now = _look(scene)
    print(f"{number + 1}: {scene.name} {kind}, status {status}, steps {sorted(now.values())}", flush=True)


def _look(scene: Scene) -> dict[str, int]:
    """Check that everything saved is whole and nothing went back, and return the step of each run."""
    found: dict[str, int] = {}
    for folder in Store(scene.results, read_only=True).folders():
        record = folder.record()
        if record is not None and record.status.final:
            found[folder.digest] = record.steps
            continue
        checkpoint = folder.checkpoint()  # raises when one byte of it, or of what it lists, is wrong
        if checkpoint is not None:
            found[folder.digest] = checkpoint.step
    for digest, step in scene.saved.items():
        if found.get(digest, -1) < step:
            raise Broken(f"{scene.name}: run {digest[:12]} had saved step {step}, and stands at {found.get(digest)}")
    scene.saved = found
    return found


def _finish(scene: Scene) -> None:
    """Let a scene come to its end, and compare."""
    _check_status(scene, scene.start(scene.results).wait(PATIENCE), (0,))
    _new_life(scene)


def _new_life(scene: Scene) -> None:
    """Compare what has ended with the undisturbed runs, and clear it away."""
    whole, killed = Store(scene.whole, read_only=True), Store(scene.results, read_only=True)
    names = [(folder.suite, folder.digest) for folder in whole.folders()]
    for suite, digest in names:
        mine, other = whole.folder(suite, digest), killed.folder(suite, digest)
        facts, again = _facts(mine), _facts(other)
        for key, value in facts.items():
            if again[key] != value:
                raise Broken(f"{scene.name}: run {digest[:12]}: {key} differs from that of the undisturbed run")
        record = other.record()
        assert record is not None
        if record.resumed_inexact:
            raise Broken(f"{scene.name}: run {digest[:12]}: resumed inexactly, {record.resumed_inexact}")
        scene.resumed += len(record.resumed)
        scene.compared += 1
    scene.lives += 1
    scene.saved = {}
    shutil.rmtree(scene.results)


def _facts(folder: RunFolder) -> dict[str, Any]:
    """Return what must be equal."""
    record = folder.record()
    if record is None:
        raise Broken(f"run {folder.digest[:12]} has no record")
    facts: dict[str, Any] = {
        "status": (record.status, record.steps, record.summary, record.first_batch_sha256),
        "metrics": folder.metrics().drop_columns(["seconds"]).to_pylist(),
    }
    for which in ("final", "best"):
        arrays = folder.parameters(which) or {}
        facts[f"{which} parameters"] = {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}
    return facts


def _await_news(scene: Scene, process: subprocess.Popen[bytes]) -> None:
    """Wait until some run has saved something that it had not, or the process has ended."""
    before = _times(scene)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and _times(scene) <= before:
        if time.monotonic() > end:
            raise Broken(f"{scene.name}: saves nothing")
        time.sleep(0.002)


def _times(scene: Scene) -> int:
    newest = 0
    for path in scene.results.glob("*/*/checkpoint.json"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime_ns)
    return newest


def _await_group(group: int) -> None:
    """Wait until the last process of a group is gone; workers whose parent was killed save first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise Broken(f"processes of group {group} live on without their parent")


def _check_status(scene: Scene, status: int, expected: tuple[int, ...]) -> None:
    if status not in expected:
        raise Broken(f"{scene.name}: exit status {status}, expected {' or '.join(map(str, expected))}")


def _report(scenes: list[Scene]) -> None:
    print(f"{'scene':8}{''.join(f'{kind:>14}' for kind in KILLS)}{'resumed':>10}{'compared':>10}{'differing':>11}")
    for scene in scenes:
        kills = "".join(f"{scene.kills[kind]:>14}" for kind in KILLS)
        print(f"{scene.name:8}{kills}{scene.resumed:>10}{scene.compared:>10}{0:>11}")
    print(f"{sum(sum(scene.kills.values()) for scene in scenes)} kills, nothing lost, every run equal to the bit")


if __name__ == "__main__":
    sys.exit(main())
