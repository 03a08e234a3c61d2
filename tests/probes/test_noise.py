"""The gradient noise scale: planted, unbiased, covered by its interval, and against gradients taken one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.backends.base import TrainState
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.probes.base import Look
from rnnbench.probes.noise import Noise, estimates, noise_scale
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Baseline, Batch, EvalSplit, GeneratedTask, LossName, Metric, Readout, Source
from rnnbench.tasks.copying import Copy
from rnnbench.techniques.gradient.clip import ClipNorm

MakeLook = Callable[..., Look]
BACKENDS = ("torch", "jax")


class Regression(GeneratedTask):
    """y = w . x + e with x ~ N(0, 1) and e ~ N(0, noise^2), in one step."""

    name: ClassVar[str] = "regression"
    loss: ClassVar[LossName] = "mse"
    readout: ClassVar[Readout] = "last"
    n: int = 5
    noise: float = 2.0

    @property
    def n_in(self) -> int:
        return self.n

    @property
    def n_out(self) -> int:
        return 1

    @property
    def length(self) -> int:
        return 1

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"mse": Metric("mse", "lower")}

    @property
    def metric(self) -> str:
        return "mse"

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:
        return {}

    def sample(self, rng: np.random.Generator, n: int, difficulty: float) -> Batch:
        x = rng.normal(size=(1, n, self.n))
        y = x[0].sum(axis=-1, keepdims=True) + self.noise * rng.normal(size=(n, 1))
        return Batch(x, y, np.ones(n), np.ones(n, dtype=np.int64))

    def scale(self, w: NDArray) -> float:
        """Return tr(Sigma) / |G|^2 of the model w . x: with d = w - 1, g = 2 x (x . d - e), by Isserlis.

        G = 2 d and Sigma = 4 ((|d|^2 + noise^2) I + d d^T).
        """
        square = float(np.sum((w - 1) ** 2))
        return self.n * (1 + self.noise**2 / square) + 1


def measured(look: Look, probe: Noise) -> dict[str, NDArray]:
    return {signal.name: signal.values for signal in probe.measure(look)}


@pytest.fixture
def linear_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a user's whole model w . x."""
    torch = "import torch\nclass M(torch.nn.Module):\n    def __init__(self, n):\n        super().__init__()\n"
    torch += "        self.w = torch.nn.Parameter(torch.zeros(1, n))\n"
    torch += "    def forward(self, x):\n        return x[-1] @ self.w.T\n"
    torch += "def build(n_in, n_out):\n    return M(n_in)\n"
    jax = "import jax.numpy as jnp\ndef build(n_in, n_out):\n"
    jax += "    return lambda key: {'w': jnp.zeros((1, n_in))}, lambda p, x: x[-1] @ p['w'].T\n"
    for name, text in (("torch", torch), ("jax", jax)):
        (tmp_path / f"noise_model_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda backend: f"noise_model_{backend}:build"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_planted_scale_is_found(make_look: MakeLook, linear_model: Callable[[str], str], backend: str) -> None:
    task = Regression()
    w = np.array([[2.0, 0.5, 1.0, 1.5, 0.0]])
    look = make_look(
        task, None, backend=backend, model=linear_model(backend), params={"w": w}, sequences=2, batch_size=64
    )
    found = measured(look, Noise(batches=256))
    truth = task.scale(w)  # 14
    low, high = found["noise.interval"]
    assert low < truth < high
    assert high / low < 1.3  # 16384 sequences pin it down
    assert found["noise.scale"] == pytest.approx(truth, rel=0.1)
    assert found["noise.batch"] == 64
    assert not Noise.needs_cell


@pytest.mark.parametrize(
    ("task", "cell", "backend"),
    [
        (Adding(T=9), LSTM(hidden=3), "torch"),
        (Adding(T=9), LSTM(hidden=3), "jax"),
        (Adding(T=20, markers="pascanu"), RNN(hidden=3), "torch"),
        (Copy(delay=5, symbols=2), RNN(hidden=3), "torch"),
    ],
    ids=["end", "end on jax", "several lengths", "each"],
)
def test_against_gradients_one_by_one(make_look: MakeLook, task: GeneratedTask, cell: LSTM, backend: str) -> None:
    """The next minibatches of training, before the clipping that the run applies."""
    look = make_look(task, cell, backend=backend, techniques=(ClipNorm(threshold=1e-3),), step=7, batch_size=6)
    found = measured(look, Noise(batches=5))
    trainer = registry.backend(backend).trainer(look.program, "cpu", "float64", "reference")
    trainer.load(TrainState(dict(look.params)))
    gradients = []
    for step in range(7, 12):
        gradient = trainer.inspect(look.source.batch("train", step).cast("float64"), 0.1).gradients
        gradients.append(np.concatenate([gradient[name].reshape(-1) for name in sorted(gradient)]))
    # the paper's A.1, with B_small = 6 and B_big = 30
    small = np.mean([g @ g for g in gradients])
    mean = np.mean(gradients, axis=0)
    big = mean @ mean
    square, noise = (30 * big - 6 * small) / (30 - 6), (small - big) / (1 / 6 - 1 / 30)
    if square > 0:
        assert found["noise.scale"] == pytest.approx(noise / square, rel=1e-9)
    else:
        assert np.isnan(found["noise.scale"])
    without = [_signal_to_noise(gradients[:i] + gradients[i + 1 :]) for i in range(5)]
    error = math.sqrt(4 / 5 * sum((value - np.mean(without)) ** 2 for value in without))
    most = _signal_to_noise(gradients) + 2.7764451051977987 * error  # Student's 97.5 % point with 4 degrees of freedom
    low = found["noise.interval"][0]
    assert low == pytest.approx(6 / most, rel=1e-9) if most > 0 else np.isnan(low)


def _signal_to_noise(gradients: list[NDArray]) -> float:
    """Return the mean inner product of different gradients over the summed variance of their entries."""
    products = [a @ b for i, a in enumerate(gradients) for j, b in enumerate(gradients) if i != j]
    return float(np.mean(products) / np.sum(np.var(gradients, axis=0, ddof=1)))


def simulated(rng: np.random.Generator, signal: NDArray, deviations: NDArray, batches: int) -> NDArray:
    """Return inner products of minibatches' gradients with the given mean and standard deviations."""
    drawn = signal + deviations * rng.normal(size=(batches, len(signal)))
    return np.asarray(drawn @ drawn.T)


SIGNAL, DEVIATIONS = np.linspace(0.2, 1.0, 20), np.linspace(2.0, 0.1, 20)


def test_estimates_are_unbiased() -> None:
    rng = stream(0, "test/noise/bias")
    drawn = np.array([estimates(simulated(rng, SIGNAL, DEVIATIONS, 4)) for _ in range(4000)])
    error = drawn.std(axis=0) / math.sqrt(len(drawn))
    truth = np.array([SIGNAL @ SIGNAL, DEVIATIONS @ DEVIATIONS])
    # within four standard errors, which a bias by the mean's own noise (a quarter of the trace) is far beyond
    assert (np.abs(drawn.mean(axis=0) - truth) < 4 * error).all()
    assert 0.25 * truth[1] > 40 * error[0]


def test_interval_covers() -> None:
    rng = stream(0, "test/noise/coverage")
    truth = (DEVIATIONS @ DEVIATIONS) / (SIGNAL @ SIGNAL)
    inside = 0
    for _ in range(1000):
        _, low, high = noise_scale(simulated(rng, SIGNAL, DEVIATIONS, 8))
        inside += low <= truth <= high
    # a jackknife of eight is approximate; by chance alone 95 % of 1000 would lie within 1.4 points
    assert 920 <= inside <= 985


def test_no_scale_where_the_gradient_is_not_told_from_zero() -> None:
    rng = stream(0, "test/noise/none")
    kinds = set()
    for _ in range(200):
        scale, low, high = noise_scale(simulated(rng, np.zeros(20), DEVIATIONS, 8))
        if math.isnan(scale):
            kinds.add("lower bound" if low > 0 else "nothing")
            assert high == math.inf if low > 0 else math.isnan(low) and math.isnan(high)
        else:
            kinds.add("scale")
            assert low <= scale <= high
    assert kinds == {"lower bound", "nothing", "scale"}


def test_edges() -> None:
    same = np.full((4, 4), 3.0)
    assert noise_scale(same) == (0.0, 0.0, 0.0)  # nothing deviates: no noise
    assert all(math.isnan(value) for value in noise_scale(np.zeros((4, 4))))
    assert all(math.isnan(value) for value in noise_scale(np.full((4, 4), np.nan)))
    odd = np.ones((4, 4))
    odd[0, :] = odd[:, 0] = 2.0
    odd[0, 0] = 4.0
    scale, low, high = noise_scale(odd)  # three agree: without the fourth there is no noise to divide by
    assert (low, high) == (0.0, math.inf)
    assert scale > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [2.0**-660, 2.0**660])
def test_no_square_leaves_a_float(
    make_look: MakeLook, linear_model: Callable[[str], str], backend: str, factor: float
) -> None:
    """At w = 0 the gradient is -2 x y: targets of 1e-199 or 1e199 scale it, and its square is beyond a float64."""

    class Scaled(Regression):
        def sample(self, rng: np.random.Generator, n: int, difficulty: float) -> Batch:
            batch = super().sample(rng, n, difficulty)
            return replace(batch, targets=batch.targets * factor)

    plain, scaled = (
        measured(make_look(task, None, backend=backend, model=linear_model(backend), sequences=2), Noise())
        for task in (Regression(), Scaled())
    )
    assert np.isfinite(plain["noise.scale"])
    for name, values in plain.items():
        np.testing.assert_allclose(scaled[name], values, rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, 1e200])
def test_a_diverged_model_has_no_scale(make_look: MakeLook, value: float) -> None:
    look = make_look(Adding(T=9), RNN(hidden=2, activation="relu"))
    for name in look.params:
        look.params[name][:] = value
    found = measured(look, Noise())
    assert np.isnan(found["noise.scale"])
    assert np.isnan(found["noise.interval"]).all()
