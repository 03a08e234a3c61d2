"""What probing costs, in training steps of equal precision: ``python suites/speed/probe_cost.py``.

A plain training step and each probe take turns, A B C A B C, on the same batch, device and threads; the ratio within
each turn is what counts, and its median is printed with the range. Compilation is left out: every computation runs once
before clocks start. The spectrum is held against what one would write by hand in torch: at each step
`torch.autograd.functional.jacobian`, a product and a QR factorization, timed over a part of the sequence and scaled up.
Memory is the growth of a process's peak over that of one that only trains, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

SIZES = {"T200": (200, 50, 128), "T784": (784, 100, 128)}
"""Time steps, sequences, hidden units."""

POINTS = (8, 32)
JACOBIAN_STEPS = 24


class Case:
    """One backend, cell and size, made ready: a training step, and the computations that probes are made of."""

    def __init__(self, backend: str, cell: str, size: str, precision: str) -> None:
        from rnnbench import registry
        from rnnbench.backends.base import Program
        from rnnbench.experiment import resolve
        from rnnbench.spec import RunSpec
        from rnnbench.train import starting_state

        self.T, self.batch_size, self.hidden = SIZES[size]
        settings = {
            "task": {"name": "adding", "T": self.T},
            "cell": {"name": cell, "hidden": self.hidden},
            "backend": backend,
            "precision": precision,
            "data": {"batch_size": self.batch_size},
        }
        self.experiment = resolve(RunSpec.parse(settings, "probe_cost"))
        made = registry.backend(backend)
        self.network = self.experiment.network()
        self.program = Program(self.experiment.task, self.network, self.experiment.optimizer)
        self.state = starting_state(self.experiment, self.network)
        self.batch = self.experiment.source().batch("train", 0).cast(precision)
        self.trainer = made.trainer(self.program, "cpu", precision, "auto")  # type: ignore[arg-type]  # as given
        self.trainer.load(self.state)
        self.lab = made.lab("cpu", precision)
        self.name = (backend, cell, size, precision)
        self.arrays = {f"params/{name}": array for name, array in self.state.params.items()}
        self.arrays |= {f"batch/{name}": array for name, array in self.batch.arrays().items()}
        self.arrays |= {"ends": self.batch.lengths - 1, "share": np.asarray(1.0)}  # a whole batch is probed

    def step(self) -> None:
        """Take a plain training step."""
        self.trainer.train([self.batch], [1e-3]).fetch()

    def probes(self) -> dict[str, Callable[[], Any]]:
        """Return the computations by name."""
        from rnnbench.probes import adjoint, points

        def compute(key: str, function: Callable[..., Any]) -> Callable[[], Any]:
            return partial(self.lab.compute, (key, self.name), function, self.arrays)

        found = {
            "every t, renormalized": compute("replay", partial(adjoint._losses, self.program, adjoint.Adjoint())),
            "every t, plain": compute("seen", partial(adjoint._seen, self.program)),
        }
        for count in POINTS:
            cuts = points.cuts_of(self.T, count)
            function = partial(points._at_points, self.program, cuts, self.lab.kernel)
            found[f"{count} points"] = compute(f"points{count}", function)
        return found


def adjoint_costs(backend: str, cell: str, size: str, precision: str, turns: int) -> dict[str, Any]:
    """Return medians and ranges of ratios to a training step."""
    case = Case(backend, cell, size, precision)
    computations = case.probes()
    case.step()
    for compute in computations.values():
        compute()
    seconds: dict[str, list[float]] = {"step": []} | {name: [] for name in computations}
    for _ in range(turns):
        for name, compute in {"step": case.step, **computations}.items():
            began = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - began)
    ratios = {
        name: [taken / step for taken, step in zip(seconds[name], seconds["step"], strict=True)]
        for name in computations
    }
    return {
        "case": case.name,
        "step_s": statistics.median(seconds["step"]),
        "ratios": {name: {"median": statistics.median(r), "low": min(r), "high": max(r)} for name, r in ratios.items()},
    }


def spectrum_cost(backend: str, cell: str, size: str, turns: int) -> dict[str, Any]:
    """Return the time of a spectrum of as many exponents as hidden units, and of the loop by hand."""
    from dataclasses import replace

    import torch

    from rnnbench.probes.base import Look
    from rnnbench.probes.spectrum import Spectrum

    case = Case(backend, cell, size, "float64")
    look = Look(
        program=case.program,
        params=case.state.params,
        buffers=case.state.buffers,
        batch=case.batch.take(slice(0, 1)),
        source=case.experiment.source(),
        lab=case.lab,
        own=case.lab,
        step=0,
        seed=0,
        key=case.name,
    )
    probe = Spectrum(exponents=case.hidden, sequences=1)
    by_hand = _by_hand(case)
    list(probe.measure(look))
    by_hand(2)
    ours, theirs, jacobians = [], [], []
    for turn in range(turns):
        began = time.perf_counter()
        list(probe.measure(replace(look, step=turn)))
        ours.append(time.perf_counter() - began)
        whole, alone = by_hand(JACOBIAN_STEPS)
        theirs.append(whole * case.T / JACOBIAN_STEPS)
        jacobians.append(alone * case.T / JACOBIAN_STEPS)
    pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {
        "case": (backend, cell, size),
        "threads": torch.get_num_threads(),
        "ours_s": statistics.median(ours),
        "by_hand_s": statistics.median(theirs),
        "jacobians_alone_s": statistics.median(jacobians),
        "ratio": {"median": statistics.median(pairs), "low": min(pairs), "high": max(pairs)},
    }


def _by_hand(case: Case) -> Callable[[int], tuple[float, float]]:
    """Return a function that takes some steps by hand and returns (seconds, those of the Jacobians alone)."""
    import torch

    from rnnbench.backends.torch.ops import TorchOps
    from rnnbench.cells.base import Context
    from rnnbench.cells.network import within

    xp, cell = TorchOps("cpu", "float64"), case.network.cell
    params = {name: torch.from_numpy(array) for name, array in within(case.state.params, "layers.0.forward").items()}
    inputs = torch.from_numpy(case.batch.inputs[:, 0])
    sizes = [state.size for state in cell.states()]
    names = [state.name for state in cell.states()]

    def step(whole: Any, x: Any) -> Any:
        states = dict(zip(names, (part[None] for part in whole.split(sizes)), strict=True))
        new = cell.step(xp, params, states, cell.project(xp, params, x[None]), Context(0, None, False))
        return torch.cat([new[name][0] for name in names])

    def run(steps: int) -> tuple[float, float]:
        state = torch.zeros(sum(sizes), dtype=torch.float64)
        q = torch.linalg.qr(torch.randn(sum(sizes), case.hidden, dtype=torch.float64))[0]
        alone, began = 0.0, time.perf_counter()
        for t in range(steps):
            before = time.perf_counter()
            jacobian = torch.autograd.functional.jacobian(lambda s, x=inputs[t]: step(s, x), state)  # type: ignore[misc]
            alone += time.perf_counter() - before
            q, r = torch.linalg.qr(jacobian @ q)
            r.diagonal().abs().log()
            state = step(state, inputs[t]).detach()
        return time.perf_counter() - began, alone

    return run


def memory(backend: str, cell: str, size: str, precision: str, what: str) -> float:
    """Return the peak of this process's memory in MiB after a training step, and after `what` where that is named."""
    case = Case(backend, cell, size, precision)
    for _ in range(2):
        case.step()
    if what:
        case.probes()[what]()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_growth(backend: str, cell: str, size: str, precision: str) -> dict[str, float]:
    """Return the peak of a process that only trains, and by how much each probe raises it, in MiB."""

    def peak(what: str) -> float:
        command = [sys.executable, __file__, "--memory", backend, cell, size, precision, what]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    base = peak("")
    names = ["every t, renormalized", "every t, plain", *(f"{count} points" for count in POINTS)]
    return {"train": base} | {name: peak(name) - base for name in names}


def main() -> None:
    """Measure what the options ask for, and print it as lines and, with --json, as a document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--memory", nargs=5, metavar=("BACKEND", "CELL", "SIZE", "PRECISION", "WHAT"))
    parser.add_argument("--backend", nargs="+", default=["torch", "jax"])
    parser.add_argument("--cell", nargs="+", default=["rnn", "lstm", "gru"])
    parser.add_argument("--size", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--what", nargs="+", default=["adjoint", "spectrum", "memory"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from rnnbench import registry

    for name in options.backend:
        registry.backend(name).set_threads(options.threads)
    if options.memory:
        print(memory(*options.memory))
        return
    found: dict[str, list[Any]] = {}
    for size in options.size:
        for cell in options.cell:
            for backend in options.backend:
                if "adjoint" in options.what:
                    row = adjoint_costs(backend, cell, size, "float32", options.turns)
                    found.setdefault("adjoint", []).append(row)
                    ratios = ", ".join(
                        f"{name} {r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
                        for name, r in row["ratios"].items()
                    )
                    print(f"{size} {cell} {backend}: step {row['step_s'] * 1e3:.0f} ms; {ratios}", file=sys.stderr)
                if "memory" in options.what:
                    grown = memory_growth(backend, cell, size, "float32")
                    found.setdefault("memory", []).append({"case": (backend, cell, size), "mib": grown})
                    listed = ", ".join(f"{name} {value:+.0f}" for name, value in grown.items())
                    print(f"{size} {cell} {backend}: MiB {listed}", file=sys.stderr)
                if "spectrum" in options.what:
                    row = spectrum_cost(backend, cell, size, min(3, options.turns))
                    found.setdefault("spectrum", []).append(row)
                    ratio = row["ratio"]
                    print(
                        f"{size} {cell} {backend}: {SIZES[size][2]} exponents {row['ours_s']:.2f} s, by hand "
                        f"{row['by_hand_s']:.1f} s: {ratio['median']:.0f}x [{ratio['low']:.0f}, {ratio['high']:.0f}]",
                        file=sys.stderr,
                    )
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
