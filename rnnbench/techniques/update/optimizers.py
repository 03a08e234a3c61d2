"""Optimizers: what each one computes, stated once. Backends map them to torch.optim and optax, or to their own code
where those cannot be brought to these semantics; the parity tests hold them to it.

A slot is an array an optimizer keeps for each parameter. Slots have the same names on every backend, so that a
checkpoint written by one can be read by the other.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from rnnbench.component import Component

Rate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]


class Optimizer(Component):
    """Base of all optimizers."""

    lr: Rate

    def slots(self) -> dict[str, float]:
        """Return the slots' names and starting values."""
        return {}


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted."""

    name: ClassVar[str] = "sgd"
    source: ClassVar[str] = "momentum: Polyak 1964, in the form of torch and optax: lr stands outside the buffer"
    equation: ClassVar[str] = "m <- momentum m + g;  p <- p - lr m   (nesterov: p <- p - lr (g + momentum m))"

    lr: Rate = Field(0.01, description="learning rate")
    momentum: Decay = Field(0.0, description="decay of the buffer m; 0 keeps none")
    nesterov: bool = Field(False, description="look ahead along the buffer")

    @model_validator(mode="after")
    def _buffered(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks along the buffer that momentum keeps; set momentum above 0")
        return self

    def slots(self) -> dict[str, float]:
        return {"momentum": 0.0} if self.momentum else {}


class RMSProp(Optimizer):
    """Gradient divided by a running root mean square."""

    name: ClassVar[str] = "rmsprop"
    source: ClassVar[str] = (
        "Tieleman & Hinton, Coursera lecture 6.5, 2012. Defaults are torch's; uRNN's is decay 0.9, accumulator 1e-3, "
        "eps 0; TensorFlow 1's is decay 0.9, eps 1e-10 inside the root, accumulator 1"
    )
    equation: ClassVar[str] = "\n".join(
        (
            "v <- decay v + (1 - decay) g^2,  v_0 = accumulator",
            "d = g / (sqrt(v) + eps)   or, with eps_inside,   g / sqrt(v + eps)",
            "m <- momentum m + d;  p <- p - lr m",
        )
    )

    lr: Rate = Field(0.001, description="learning rate")
    decay: Decay = Field(0.99, description="decay of the mean square v")
    eps: NonNegative = Field(1e-8, description="keeps the quotient finite")
    eps_inside: bool = Field(False, description="eps stands inside the root")
    accumulator: NonNegative = Field(0.0, description="starting value of v")
    momentum: Decay = Field(0.0, description="decay of a buffer over the quotients; 0 keeps none")

    def slots(self) -> dict[str, float]:
        return {"square": self.accumulator} | ({"momentum": 0.0} if self.momentum else {})


class Adam(Optimizer):
    """Adam with bias correction, eps outside the root."""

    name: ClassVar[str] = "adam"
    source: ClassVar[str] = "Kingma & Ba, ICLR 2015, algorithm 1"
    equation: ClassVar[str] = "\n".join(
        (
            "m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2",
            "p <- p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)",
        )
    )

    lr: Rate = Field(0.001, description="learning rate")
    beta1: Decay = Field(0.9, description="decay of the mean m")
    beta2: Decay = Field(0.999, description="decay of the mean square v")
    eps: NonNegative = Field(1e-8, description="keeps the quotient finite")

    def slots(self) -> dict[str, float]:
        return {"mean": 0.0, "square": 0.0}


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    name: ClassVar[str] = "adamw"
    source: ClassVar[str] = (
        "Loshchilov & Hutter, ICLR 2019, algorithm 2; the decay is scaled by lr, as in torch and optax"
    )
    equation: ClassVar[str] = Adam.equation + "  - lr weight_decay p"

    weight_decay: NonNegative = Field(0.01, description="decoupled decay, scaled by lr")
