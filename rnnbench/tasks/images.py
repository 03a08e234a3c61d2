"""What sequential image classification tasks share: pixels in an order, labels, and the class frequencies' scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.tasks.base import Baseline, EvalSplit, LossName, Metric, Readout, Source, StoredTask


class ImageTask(StoredTask):
    """Classify an image that is read piece by piece, at the last step. A task supplies `labels` beside `rows`."""

    loss: ClassVar[LossName] = "cross_entropy"
    readout: ClassVar[Readout] = "last"

    @property
    def n_out(self) -> int:
        return 10

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"accuracy": Metric("accuracy", "higher")}

    @property
    def metric(self) -> str:
        return "accuracy"

    @abstractmethod
    def labels(self, split: str) -> NDArray:
        """Return the labels [number] of train, valid or test, in the order of `rows`."""

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:
        """Return what the training part's class frequencies score on the evaluation set of `split`."""
        counts = np.bincount(self.labels("train"), minlength=self.n_out)
        judged = source.evaluation(split).targets
        majority = int(np.argmax(counts))
        # One count more for each class keeps the loss finite when a class is missing from a small training part.
        prior = (counts + 1) / (counts.sum() + self.n_out)
        return {
            "majority": Baseline("accuracy", float(np.mean(judged == majority)), f"always class {majority}"),
            "prior": Baseline(
                "loss", float(-np.mean(np.log(prior[judged]))), "the training part's class frequencies, (n_c+1)/(n+10)"
            ),
        }
