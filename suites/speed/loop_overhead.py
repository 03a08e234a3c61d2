"""How much slower rnnbench's training loop is than one written by hand: ``python suites/speed/loop_overhead.py``.

Both loops train the same LSTM with Adam on the same batches, drawn by the same function, on one device and with the
same threads. Hand-written are a plain torch loop over nn.LSTM, and a JAX loop over a jitted step around ``lax.scan``.
Neither scores or records anything; rnnbench's records its training losses at log-spaced steps, as always. The loops
take turns, A B A B, and the ratio of each pair is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "adding": {
        "task": {"name": "adding", "T": 100},
        "data": {"batch_size": 32},
        "cell": {"name": "lstm", "hidden": 64},
    },
    "smnist": {
        "task": {"name": "mnist"},
        "data": {"batch_size": 100},
        "cell": {"name": "lstm", "hidden": 128},
    },
}


class Nowhere:
    """Takes a run's numbers and keeps none."""

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Drop them."""

    def signal(self, name: str, axes: Any, unit: str, array: Any, step: int) -> None:
        """Drop it."""

    def checkpoint(self, arrays: Mapping[str, Any], position: Mapping[str, Any]) -> None:
        """Drop it."""

    def save_parameters(self, which: Any, arrays: Mapping[str, Any]) -> None:
        """Drop them."""


def ours(spec: dict[str, Any], backend: str, steps: int) -> Callable[[], float]:
    """Return a function that trains `steps` steps by rnnbench's loop and returns its seconds a step."""
    from rnnbench import registry
    from rnnbench.backends.base import Program
    from rnnbench.experiment import resolve
    from rnnbench.spec import RunSpec
    from rnnbench.train import Hooks, Progress, starting_state, train

    settings = spec | {"backend": backend, "budget": {"steps": steps}, "eval": {"n": 1, "every": 10**9}}
    experiment = resolve(RunSpec.parse(settings, "overhead"))
    program = Program(experiment.task, experiment.network(), experiment.optimizer)
    trainer = registry.load("backends", backend)().trainer(program, "cpu", "float32", "auto")
    source = experiment.source()

    def once() -> float:
        trainer.load(starting_state(experiment, experiment.network()))
        progress = Progress(scored_step=0)
        began = time.perf_counter()
        compiled = trainer.compile_seconds
        train(experiment, trainer, source, Nowhere(), progress, Hooks(checkpoint_seconds=1e9))
        spent = time.perf_counter() - began - (trainer.compile_seconds - compiled) - progress.eval_seconds
        return spent / steps

    return once


def by_hand_torch(spec: dict[str, Any], steps: int) -> Callable[[], float]:
    """Return a function that trains by a plain torch loop and returns its seconds a step."""
    import torch

    from rnnbench.experiment import resolve
    from rnnbench.spec import RunSpec

    experiment = resolve(RunSpec.parse(spec, "overhead"))
    task, source = experiment.task, experiment.source()
    lstm = torch.nn.LSTM(task.n_in, spec["cell"]["hidden"])
    readout = torch.nn.Linear(spec["cell"]["hidden"], task.n_out)
    optimizer = torch.optim.Adam([*lstm.parameters(), *readout.parameters()])
    loss_of = torch.nn.functional.mse_loss if task.loss == "mse" else torch.nn.functional.cross_entropy

    def once() -> float:
        began = time.perf_counter()
        for step in range(steps):
            batch = source.batch("train", step)
            inputs = torch.from_numpy(batch.inputs).float()
            targets = torch.from_numpy(batch.targets)
            targets = targets.float() if task.loss == "mse" else targets
            outputs, _ = lstm(inputs)
            loss = loss_of(readout(outputs[-1]), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        return (time.perf_counter() - began) / steps

    return once


def by_hand_jax(spec: dict[str, Any], steps: int) -> Callable[[], float]:
    """Return a function that trains by a jitted JAX step and returns its seconds a step."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from rnnbench.experiment import resolve
    from rnnbench.spec import RunSpec

    experiment = resolve(RunSpec.parse(spec, "overhead"))
    task, source, H = experiment.task, experiment.source(), spec["cell"]["hidden"]
    params = {name: jnp.asarray(value, jnp.float32) for name, value in experiment.network().initial(0).items()}
    optimizer = optax.adam(1e-3)

    def loss_of(params: dict[str, Any], inputs: Any, targets: Any) -> Any:
        u = inputs @ params["layers.0.forward.weight_ih"].T + params["layers.0.forward.bias"]

        def cell(carry: Any, u_t: Any) -> Any:
            c, h = carry
            i, f, g, o = jnp.split(u_t + h @ params["layers.0.forward.weight_hh"].T, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), None

        zeros = jnp.zeros((inputs.shape[1], H))
        (_, h), _ = jax.lax.scan(cell, (zeros, zeros), u)
        outputs = h @ params["readout.weight"].T + params["readout.bias"]
        if task.loss == "mse":
            return jnp.mean((outputs - targets) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    @jax.jit
    def step_of(params: Any, state: Any, inputs: Any, targets: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, inputs, targets)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    def once() -> float:
        nonlocal params
        state = optimizer.init(params)
        began = time.perf_counter()
        for step in range(steps):
            batch = source.batch("train", step)
            targets = batch.targets.astype(np.float32) if task.loss == "mse" else batch.targets.astype(np.int32)
            params, state, _ = step_of(params, state, batch.inputs.astype(np.float32), targets)
        jax.block_until_ready(params)
        return (time.perf_counter() - began) / steps

    return once


def main() -> None:
    """Measure and print a line for each size and backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["adding", "smnist"], choices=SIZES)
    parser.add_argument("--backends", nargs="+", default=["torch", "jax"])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long each loop runs at a time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rows = []
    for size in options.sizes:
        for backend in options.backends:
            if backend == "torch":
                import torch

                torch.set_num_threads(options.threads)
            hand = by_hand_torch if backend == "torch" else by_hand_jax
            trial = hand(SIZES[size], 3)
            trial()
            steps = max(3, int(options.seconds / trial()))
            ours_once, hand_once = ours(SIZES[size], backend, steps), hand(SIZES[size], steps)
            ours_once(), hand_once()
            pairs = []
            for _ in range(options.pairs):
                mine = ours_once()
                pairs.append((mine, hand_once()))
            ratios = sorted(a / b for a, b in pairs)
            row = {
                "size": size,
                "backend": backend,
                "steps": steps,
                "threads": options.threads,
                "ours_ms": 1e3 * statistics.median(a for a, _ in pairs),
                "by_hand_ms": 1e3 * statistics.median(b for _, b in pairs),
                "ratio_median": statistics.median(ratios),
                "ratio_low": ratios[0],
                "ratio_high": ratios[-1],
            }
            rows.append(row)
            if not options.json:
                print(
                    f"{size:8} {backend:6} {steps:6} steps  ours {row['ours_ms']:8.3f} ms  by hand "
                    f"{row['by_hand_ms']:8.3f} ms  ratio {row['ratio_median']:.3f} "
                    f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]",
                    flush=True,
                )
    if options.json:
        json.dump(rows, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
