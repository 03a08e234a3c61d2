"""What happens to each update while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rnnbench.probes.base import Look, Probe
from rnnbench.probes.kinds import UPDATES
from rnnbench.signals import Signal, SignalKind


class Updates(Probe):
    """The norm of every training step's gradient, and whether a technique changed it.

    The training loop records both at every step and hands them over when the other probes look; of a model at rest
    there is nothing to say.
    """

    name: ClassVar[str] = "updates"
    source: ClassVar[str] = "Pascanu, Mikolov & Bengio, ICML 2013, s3.2 (the norm that is clipped)"
    equation: ClassVar[str] = "grad_norm = |dL/d(all parameters)|;  acted = 1 where technique(g) != g"
    signals: ClassVar[tuple[SignalKind, ...]] = UPDATES
    in_training: ClassVar[bool] = True

    def measure(self, look: Look) -> Iterator[Signal]:
        yield from ()
