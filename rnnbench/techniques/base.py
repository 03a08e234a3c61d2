"""What a technique is: a named change at one stage of training.

Each stage has a base class whose methods do nothing; a technique overrides what it changes. All methods that touch
arrays are written over `xp` and are called from every backend's training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from rnnbench.arrays import Array
from rnnbench.component import Component
from rnnbench.xp import Arrays, Ops

Stage = Literal["start", "recurrence", "loss", "gradient", "update", "data", "compute"]


class Technique(Component):
    """Base of all techniques."""

    stage: ClassVar[Stage]

    def zero_gradients(self, parameters: Sequence[str]) -> Mapping[str, str]:  # most make none
        """Return which of the network's parameters have a zero gradient in theory under this technique, and why."""
        return {}


class GradientTechnique(Technique):
    """Acts between the backward pass and the update."""

    stage = "gradient"

    def gradients(self, xp: Ops, gradients: Arrays, params: Arrays) -> Arrays:
        """Return the gradients to update with, by parameter name."""
        raise NotImplementedError


def global_norm(xp: Ops, arrays: Arrays) -> Array:
    """Return the Euclidean norm of all arrays together, also where its square would underflow."""
    return xp.norm(xp.stack([xp.norm(arrays[name]) for name in sorted(arrays)]))
