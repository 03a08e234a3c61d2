"""How much past a task needs, measured: the held-out loss of reference models against the steps that they are given.

The definition of a synthetic task says how far back its answer lies (`Task.lag`). For data nobody knows; what can be
measured is how much better models become that are not recurrent, and so can use all that they are given, as they are
given more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput, CorruptData, quoted
from rnnbench.streams import check_seed, stream
from rnnbench.tasks.base import Batch, EvalSplit, Source, StoredSource, Task

SHARE = 0.05  # of what more context gains in all: what may be missing where the need is met
FLOOR = 0.01  # of the best loss: a smaller gain is none
REPLICATES = 1000  # of the bootstrap
LEAST = 16  # training sequences and held-out sequences
MOST_JUDGED = 10_000  # held-out targets, where each sequence has several
MOST_VALUES = 2**28  # numbers in an array: 2 GiB
POWERS = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)

Predictor = Callable[[NDArray], NDArray]
Fit = Callable[[NDArray, NDArray, int], Predictor]
Fits = Mapping[str, Sequence[Fit]]
"""Ways to fit a model to features [target feature], targets and a seed; several settings of one by its name."""


@dataclass(frozen=True)
class _Sample:
    """Targets that are judged, with the inputs before them.

    Attributes:
        features: [target lag*n_in], lag by lag from lag 0 on, so that the first columns are the shorter contexts.
        targets: classes [target] int64, or values [target n_out].
        weights: [target], of each in the loss.
        sequence: [target], the number of the sequence that it belongs to.
        sequences: how many there are.
    """

    features: NDArray
    targets: NDArray
    weights: NDArray
    sequence: NDArray
    sequences: int

    def take(self, chosen: NDArray) -> _Sample:
        """Return the targets where `chosen` [target] is true."""
        return _Sample(
            self.features[chosen], self.targets[chosen], self.weights[chosen], self.sequence[chosen], self.sequences
        )

    def by_sequence(self, values: NDArray) -> NDArray:
        """Sum values [target] over the targets of each sequence [sequence]."""
        return np.bincount(self.sequence, values, minlength=self.sequences)


@dataclass(frozen=True)
class _Choice:
    """The best predictor that a context offers.

    Attributes:
        model: its name.
        inner: its loss on the targets of the inner part [target].
        held: its summed weighted loss on each held-out sequence [sequence].
    """

    model: str
    inner: NDArray
    held: NDArray


def reference_context(
    task: Task,
    source: Source,
    *,
    split: EvalSplit = "valid",
    train_n: int = 2000,
    lags: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the held-out loss of reference models that are given the inputs at lags 0..k, for several k.

    The lag of an input is its distance in steps from the loss step: the input at that step has lag 0, and lag k means
    a context of k+1 steps, in the order in which the network reads them. The loss step is a sequence's last one, or
    with a loss at each step every step that is judged; where a sequence has no input at a lag, zeros stand for it.

    Models are multinomial logistic regression, extremely randomized trees and a perceptron with one hidden layer for
    classes; ridge regression, linear and with a Gaussian kernel, gradient boosting and a perceptron for values. At each
    context all are fitted to three quarters of the training sequences, and the best on the last quarter competes there
    with the choice of the shorter contexts, which stands unless it is beaten by more than one standard error: a model
    that is given more may ignore it. What wins is fitted to all training sequences and scored once on the held-out
    ones. Held-out data choose nothing, except that `need` is read off their losses.

    The need is the smallest lag whose loss exceeds the best by no more than 5% of what the best gains on the shortest
    context, or by no more than 1% of the best itself. It is the shortest lag when what more context gains has a 95%
    bootstrap interval that holds zero, and None when the same is true of what the best gains on no context at all.
    Around the need the grid is refined until the next smaller lag is at most 5% away, unless `lags` are given.

    What it says is bounded by these models and this many sequences: a better model may need less to do as well, or use
    more and do better. The interval is over held-out sequences (a circular block bootstrap in their order, for windows
    of one series overlap); it does not hold what another training sample would change.

    Args:
        task: the task.
        source: its batches; training sequences come from here, in the run's own training set.
        split: what is scored.
        train_n: training sequences at most; with a loss at each step, targets at most.
        lags: the largest lag of each context, by default on a logarithmic grid from 0 to T-1.
        seed: of the sample, the inner part, the models and the bootstrap.

    Returns:
        ``lags`` and ``losses`` (ascending lags; nats or mean squared error, named by ``metric``), ``loss_low`` and
        ``loss_high`` (95% intervals), ``models`` (the choice at each lag, None for no context), ``model`` (the
        candidates' names), ``need`` with ``low`` and ``high`` (95% interval) in steps or None, ``baseline`` (the loss
        without context: class frequencies or the mean), ``train_n``, ``eval_n``, ``split`` and ``seed``: JSON values.

    Raises:
        BadInput: for lags outside 0..T-1, too few sequences, or when scikit-learn is missing.
        CorruptData: when the task gives an input or a target that is not finite.
    """
    check_seed("context", seed)
    candidates = _classifiers if task.loss == "cross_entropy" else _regressors
    fits = candidates()
    grid = _grid(task.length) if lags is None else _checked_lags(lags, task.length)
    if isinstance(train_n, bool) or not isinstance(train_n, int) or train_n < LEAST:
        raise BadInput(f"context: train_n {quoted(train_n)} is not an integer of at least {LEAST}")
    held = _judged(task, source.evaluation(split), grid[-1], MOST_JUDGED, stream(seed, "context/held"))
    training, gap = _training(task, source, train_n, grid[-1], seed)
    for name, sample in (("training", training), (split, held)):
        found = len(np.unique(sample.sequence))
        if found < LEAST:
            raise BadInput(f"context: {found} {name} sequences are too few; at least {LEAST} are needed")
    training, held = _standardized(training, held, task.n_in)
    inner = _inner(task, training, gap, seed)
    with _quiet_and_alone():
        search = _Search(task, fits, training, held, inner, seed)
        for lag in grid:
            search.add(lag)
        curve = search.curve(seed)
        while lags is None and (between := curve.next_lag()) is not None:
            search.add(between)
            curve = search.curve(seed)
    low, high = curve.interval
    return {
        "lags": list(curve.lags),
        "losses": curve.losses.tolist(),
        "loss_low": curve.loss_interval[0].tolist(),
        "loss_high": curve.loss_interval[1].tolist(),
        "metric": task.loss,
        "models": [search.choices[lag].model or None for lag in curve.lags],
        "model": ", ".join(fits),
        "need": curve.need,
        "low": low,
        "high": high,
        "baseline": float(curve.baseline),
        "train_n": training.sequences,
        "eval_n": held.sequences,
        "split": split,
        "seed": seed,
    }


class _Search:
    """Choices by lag, each made with the choice of the next shorter context as the one to beat."""

    def __init__(self, task: Task, fits: Fits, training: _Sample, held: _Sample, inner: NDArray, seed: int) -> None:
        self.classes = task.n_out if task.loss == "cross_entropy" else None
        self.n_in = task.n_in
        self.fits = fits
        self.training = training
        self.held = held
        self.fit_part, self.inner_part = training.take(inner == 0), training.take(inner == 1)
        self.seed = seed
        self.choices: dict[int, _Choice] = {}
        constant = self._constant(self.fit_part.targets, len(self.inner_part.targets))
        final = self._constant(training.targets, len(held.targets))
        self.nothing = _Choice("", self._losses(constant, self.inner_part.targets), self._score(final))

    def add(self, lag: int) -> None:
        """Choose for the context of lags 0..`lag`."""
        shorter = [known for known in self.choices if known < lag]
        standing = self.choices[max(shorter)] if shorter else self.nothing
        columns = (lag + 1) * self.n_in
        best: tuple[float, str, Fit, float, NDArray] | None = None
        weights = self.inner_part.weights
        for name, fit in ((name, fit) for name, settings in self.fits.items() for fit in settings):
            outputs = self._predict(fit, self.fit_part, self.inner_part.features, columns)
            if outputs is None:
                continue
            constant = self._constant(self.fit_part.targets, len(outputs))
            for power in POWERS:
                losses = self._losses(self._tempered(outputs, constant, power), self.inner_part.targets)
                mean = float(np.average(losses, weights=weights))
                if best is None or mean < best[0]:
                    best = mean, name, fit, power, losses
        if best is None or not self._beats(best[4], standing.inner):
            self.choices[lag] = standing
            return
        _, name, fit, power, losses = best
        outputs = self._predict(fit, self.training, self.held.features, columns)
        assert outputs is not None
        outputs = self._tempered(outputs, self._constant(self.training.targets, len(outputs)), power)
        self.choices[lag] = _Choice(name, losses, self._score(outputs))

    def curve(self, seed: int) -> _Curve:
        """Return what has been found so far."""
        lags = tuple(sorted(self.choices))
        sums = np.stack([self.nothing.held, *(self.choices[lag].held for lag in lags)], axis=1)
        return _Curve.of(lags, sums, self.held.by_sequence(self.held.weights), stream(seed, "context/bootstrap"))

    def _beats(self, new: NDArray, standing: NDArray) -> bool:
        """Tell whether the mean inner loss falls by more than one standard error of the paired difference."""
        gains = self.inner_part.by_sequence(self.inner_part.weights * (standing - new))
        gains = gains[np.unique(self.inner_part.sequence)]
        return bool(np.mean(gains) > np.std(gains) / math.sqrt(len(gains)))

    def _predict(self, fit: Fit, part: _Sample, features: NDArray, columns: int) -> NDArray | None:
        """Return probabilities [target class] or values [target n_out]; None where a single class leaves no choice."""
        if self.classes is not None and len(np.unique(part.targets)) < 2:
            return None
        outputs = fit(part.features[:, :columns], part.targets, self.seed)(features[:, :columns])
        if self.classes is None:
            return outputs.reshape(len(features), -1)
        whole = np.zeros((len(features), self.classes))
        whole[:, np.unique(part.targets)] = outputs
        return whole

    def _constant(self, targets: NDArray, n: int) -> NDArray:
        """Return `n` rows of what is said without any context: class frequencies (n_c+1)/(n+C), or the mean."""
        if self.classes is None:
            return np.broadcast_to(targets.mean(axis=0), (n, targets.shape[1]))
        counts = np.bincount(targets, minlength=self.classes) + 1.0
        return np.broadcast_to(counts / counts.sum(), (n, self.classes))

    def _tempered(self, outputs: NDArray, constant: NDArray, power: float) -> NDArray:
        """Draw a prediction towards the constant one (power below 1) or sharpen it.

        Probabilities become p^power constant^(1-power), normalized, after a thousandth of the constant is mixed in, so
        that none is zero; values become constant + power (value - constant).
        """
        if self.classes is None:
            return constant + power * (outputs - constant)
        mixed = np.log(0.999 * outputs + 0.001 * constant)
        logits = power * mixed + (1.0 - power) * np.log(constant)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))

    def _losses(self, outputs: NDArray, targets: NDArray) -> NDArray:
        """Return the task's loss of each target [target]."""
        if self.classes is None:
            return np.asarray(np.mean((outputs - targets) ** 2, axis=1))
        return np.asarray(-np.log(outputs[np.arange(len(targets)), targets]))

    def _score(self, outputs: NDArray) -> NDArray:
        return self.held.by_sequence(self.held.weights * self._losses(outputs, self.held.targets))


@dataclass(frozen=True)
class _Curve:
    """Held-out losses by lag with what follows from them.

    Attributes:
        lags: ascending.
        losses: [lag].
        baseline: without context.
        loss_interval: 95% bounds of each loss [bound lag].
        need, interval: in steps, with its 95% bounds.
    """

    lags: tuple[int, ...]
    losses: NDArray
    baseline: float
    loss_interval: NDArray
    need: int | None
    interval: tuple[int | None, int | None]

    @classmethod
    def of(cls, lags: tuple[int, ...], sums: NDArray, weights: NDArray, rng: np.random.Generator) -> _Curve:
        """Put the curve together.

        Args:
            lags: ascending.
            sums: weighted losses of each sequence [sequence 1+lag], the first column without context.
            weights: of each sequence [sequence].
            rng: of the bootstrap.
        """
        losses = sums.sum(axis=0) / weights.sum()
        drawn = _resampled(sums, weights, rng)
        best = int(np.argmin(losses[1:])) + 1
        bounds = np.quantile(drawn[:, 1:], [0.025, 0.975], axis=0)
        if np.quantile(drawn[:, 0] - drawn[:, best], 0.025) <= 0:
            return cls(lags, losses[1:], losses[0], bounds, None, (None, None))
        needs = np.array([lags[_needed(row[1:])] for row in drawn])
        low, high = (int(bound) for bound in np.quantile(needs, [0.025, 0.975], method="nearest"))
        proven = best > 1 and np.quantile(drawn[:, 1] - drawn[:, best], 0.025) > 0
        need = lags[_needed(losses[1:])] if proven else lags[0]
        return cls(lags, losses[1:], losses[0], bounds, need, (min(low, need), max(high, need)))

    def next_lag(self) -> int | None:
        """Return a lag between the need and the next smaller one, or None when they are close enough."""
        place = 0 if self.need is None else self.lags.index(self.need)
        if place == 0:
            return None
        below, above = self.lags[place - 1], self.lags[place]
        return None if above - below <= max(1.0, SHARE * above) else (below + above) // 2


def _needed(losses: NDArray) -> int:
    """Return the first place [lag] whose loss is as good as the best."""
    best = float(losses.min())
    slack = max(SHARE * (float(losses[0]) - best), FLOOR * best)
    return int(np.argmax(losses <= best + slack))


def _resampled(sums: NDArray, weights: NDArray, rng: np.random.Generator) -> NDArray:
    """Return bootstrap replicates [replicate column] of sums / weights over circular blocks of n^(1/3) sequences."""
    judged = weights > 0
    sums, weights = sums[judged], weights[judged]
    n = len(weights)
    size = max(1, round(n ** (1 / 3)))
    drawn = np.empty((REPLICATES, sums.shape[1]))
    for row in drawn:
        starts = rng.integers(0, n, size=-(-n // size))
        chosen = (starts[:, None] + np.arange(size)).ravel()[:n] % n
        times = np.bincount(chosen, minlength=n).astype(np.float64)
        row[:] = (times @ sums) / (times @ weights)
    return drawn


def _grid(length: int) -> list[int]:
    """Return lags for contexts of 1, 2, 3, 4 steps, then two in each doubling, then all `length`."""
    steps = {1, 2, 3, length} | {round(2 ** (half / 2)) for half in range(4, 2 * length.bit_length() + 1)}
    return [step - 1 for step in sorted(steps) if step <= length]


def _checked_lags(lags: Sequence[int], length: int) -> list[int]:
    for lag in lags:
        if isinstance(lag, bool) or not isinstance(lag, (int, np.integer)) or not 0 <= lag < length:
            raise BadInput(f"context: lag {quoted(lag)} is not an integer from 0 to {length - 1}")
    if not len(lags):
        raise BadInput("context: no lags are given; None asks for a grid of them")
    return sorted({int(lag) for lag in lags})


def _training(task: Task, source: Source, train_n: int, deepest: int, seed: int) -> tuple[_Sample, int]:
    """Return a training sample, and how many of its sequences one may overlap with where they are cut from a series."""
    if isinstance(source, StoredSource):
        rows = source.training_rows()
        if len(rows) > train_n:
            rows = np.sort(stream(seed, "context/train").choice(rows, train_n, replace=False))
        span = int(rows[-1] - rows[0]) + 1
        gap = math.ceil(task.length * len(rows) / span)
        batch = source.task.rows("train", rows, 1.0)
    else:
        size = min(train_n, source.train_size or train_n)
        steps = range(-(-size // source.data.batch_size))
        batch = _joined([source.batch("train", step) for step in steps]).take(slice(0, size))
        gap = 0
    return _judged(task, batch, deepest, train_n, stream(seed, "context/judged")), gap


def _joined(batches: Sequence[Batch]) -> Batch:
    """Put batches side by side; their further masks are left out."""

    def side_by_side(name: str, axis: int) -> NDArray:
        return np.concatenate([getattr(batch, name) for batch in batches], axis=axis)

    timed = batches[0].mask.ndim - 1
    return Batch(
        inputs=side_by_side("inputs", 1),
        targets=side_by_side("targets", timed),
        mask=side_by_side("mask", timed),
        lengths=side_by_side("lengths", 0),
    )


def _judged(task: Task, batch: Batch, deepest: int, most: int, rng: np.random.Generator) -> _Sample:
    """Return the judged targets of a batch, `most` at most, with the inputs at lags 0..`deepest`."""
    if task.readout == "last":
        sequence = np.flatnonzero(batch.mask > 0)
        at, targets, weights = batch.lengths[sequence] - 1, batch.targets[sequence], batch.mask[sequence]
    else:
        at, sequence = np.nonzero(batch.mask > 0)
        if len(at) > most:
            kept = np.sort(rng.choice(len(at), most, replace=False))
            at, sequence = at[kept], sequence[kept]
        targets, weights = batch.targets[at, sequence], batch.mask[at, sequence]
    values = len(at) * (deepest + 1) * task.n_in
    if values > MOST_VALUES:
        raise BadInput(f"context: {values} numbers are too many to hold; give a smaller train_n, or smaller lags")
    steps = at[:, None] - np.arange(deepest + 1)
    features = np.where((steps >= 0)[..., None], batch.inputs[np.maximum(steps, 0), sequence[:, None]], 0.0)
    features = features.reshape(len(at), -1)
    for name, array in (("an input", features), ("a target", targets)):
        if not np.all(np.isfinite(array)):
            raise CorruptData(f"context: task {task.name} gives {name} that is not a finite number")
    return _Sample(features, targets, weights.astype(np.float64), sequence, batch.size)


def _standardized(training: _Sample, held: _Sample, n_in: int) -> tuple[_Sample, _Sample]:
    """Return both with features in units of the training sample's deviation.

    No column counts as quieter than a tenth of its channel: a pixel that is white in one training image of a thousand
    would else be thirty deviations large in the next image that has it.
    """
    mean, deviation = training.features.mean(axis=0), training.features.std(axis=0)
    channel = np.sqrt(np.mean(deviation.reshape(-1, n_in) ** 2, axis=0))
    scale = np.maximum(deviation.reshape(-1, n_in), 0.1 * channel).ravel()
    scale[scale == 0] = 1.0

    def scaled(sample: _Sample) -> _Sample:
        features = (sample.features - mean) / scale
        return _Sample(features, sample.targets, sample.weights, sample.sequence, sample.sequences)

    return scaled(training), scaled(held)


def _inner(task: Task, training: _Sample, gap: int, seed: int) -> NDArray:
    """Return of each target [target] whether it is fitted to (0), chosen by (1), or neither (2).

    A quarter of the sequences chooses: drawn for classes, since a set may be sorted by them; the last ones for values,
    since windows of a series overlap, and then those just before are left out.
    """
    n = training.sequences
    order = stream(seed, "context/inner").permutation(n) if task.loss == "cross_entropy" else np.arange(n)
    role = np.zeros(n, dtype=np.int64)
    first = n - n // 4
    role[order[first:]] = 1
    if task.loss == "mse":
        role[order[first - min(gap, n // 8) : first]] = 2
    return role[training.sequence]


def _classifiers() -> Fits:
    _need_sklearn()

    def logistic(X: NDArray, y: NDArray, _seed: int) -> Predictor:
        from sklearn.linear_model import LogisticRegression

        return _probabilities(LogisticRegression(C=0.03, max_iter=200).fit(X, y))

    def trees(X: NDArray, y: NDArray, seed: int) -> Predictor:
        from sklearn.ensemble import ExtraTreesClassifier

        return _probabilities(ExtraTreesClassifier(n_estimators=200, random_state=seed).fit(X, y))

    def perceptron(X: NDArray, y: NDArray, seed: int) -> Predictor:
        from sklearn.neural_network import MLPClassifier

        model = MLPClassifier(
            hidden_layer_sizes=(128,), alpha=1e-2, batch_size=min(64, len(X)), max_iter=30, random_state=seed
        )
        return _probabilities(model.fit(X, y))

    return {"logistic regression": [logistic], "extremely randomized trees": [trees], "perceptron": [perceptron]}


def _probabilities(model: Any) -> Predictor:
    predict: Predictor = model.predict_proba
    return predict


def _regressors() -> Fits:
    _need_sklearn()

    def ridge(X: NDArray, y: NDArray, _seed: int) -> Predictor:
        from sklearn.linear_model import RidgeCV

        return _values(RidgeCV(alphas=np.logspace(-6, 4, 11)).fit(X, y))

    def kernel(width: float, alpha: float) -> Fit:
        def fit(X: NDArray, y: NDArray, _seed: int) -> Predictor:
            from sklearn.kernel_ridge import KernelRidge

            mean = y.mean(axis=0)
            model = KernelRidge(kernel="rbf", gamma=width / X.shape[1], alpha=alpha).fit(X, y - mean)
            return lambda features: mean + model.predict(features)

        return fit

    def boosting(X: NDArray, y: NDArray, seed: int) -> Predictor:
        from sklearn.ensemble import HistGradientBoostingRegressor
        from sklearn.multioutput import MultiOutputRegressor

        one = HistGradientBoostingRegressor(max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=seed)
        return _values(MultiOutputRegressor(one).fit(X, y))

    def perceptron(X: NDArray, y: NDArray, seed: int) -> Predictor:
        from sklearn.neural_network import MLPRegressor

        model = MLPRegressor(hidden_layer_sizes=(32,), solver="lbfgs", alpha=1.0, max_iter=200, random_state=seed)
        return _values(model.fit(X, y[:, 0] if y.shape[1] == 1 else y))

    return {
        "ridge regression": [ridge],
        "kernel ridge regression": [kernel(width, alpha) for width in (0.05, 0.5) for alpha in (1e-4, 1e-2, 1.0)],
        "gradient boosting": [boosting],
        "perceptron": [perceptron],
    }


def _values(model: Any) -> Predictor:
    predict: Predictor = model.predict
    return predict


def _need_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise BadInput("context: reference models need scikit-learn, which is not installed") from None


@contextmanager
def _quiet_and_alone() -> Iterator[None]:
    """Keep sums in one order (one thread) and the models' advice on convergence off the terminal."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
