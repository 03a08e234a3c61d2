"""Gradient clipping: of the global norm, and of each element. The two are different techniques (see docs/design.md)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from rnnbench.techniques.base import GradientTechnique
from rnnbench.xp import Arrays, Ops

Threshold = Annotated[float, Field(gt=0, le=1e12)]


class ClipNorm(GradientTechnique):
    """Scale the whole gradient down when its global norm exceeds a threshold.

    torch's clip_grad_norm_ differs: it adds 1e-6 to the norm.
    """

    name: ClassVar[str] = "clip_norm"
    source: ClassVar[str] = "Pascanu, Mikolov & Bengio, ICML 2013, algorithm 1"
    equation: ClassVar[str] = "g <- g * threshold / max(||g||, threshold),  ||g|| over all parameters together"

    threshold: Threshold = Field(1.0, description="largest norm let through")

    def gradients(self, xp: Ops, gradients: Arrays, params: Arrays) -> Arrays:
        # unscaled, since every step pays for it: where the squares underflow there is nothing to clip
        norm = xp.sqrt(sum(xp.sum(gradients[name] ** 2) for name in sorted(gradients)))
        scale = self.threshold / xp.where(norm > self.threshold, norm, self.threshold * xp.ones(()))
        return {name: gradient * scale for name, gradient in gradients.items()}


class ClipValue(GradientTechnique):
    """Limit each element of the gradient."""

    name: ClassVar[str] = "clip_value"
    source: ClassVar[str] = "Mikolov, PhD thesis, 2012; Arjovsky, Shah & Bengio, ICML 2016 (its baselines, at +-1)"
    equation: ClassVar[str] = "g_i <- min(max(g_i, -threshold), threshold)"

    threshold: Threshold = Field(1.0, description="largest magnitude let through")

    def gradients(self, xp: Ops, gradients: Arrays, params: Arrays) -> Arrays:
        return {name: xp.clip(g, -self.threshold, self.threshold) for name, g in gradients.items()}
