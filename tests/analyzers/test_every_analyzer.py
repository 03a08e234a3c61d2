"""What holds for every analyzer: each code can come about, and nothing that is no number breaks or enters a finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.evidence import Evidence
from rnnbench.findings import CODES, Finding
from rnnbench.probes.kinds import KINDS

ANALYZERS = ("outcome", "gradient_flow", "dynamics", "activity", "updates", "reach", "lags")
SIZES = {"time": 40, "batch": 3, "lag": 12, "origin": 2, "unit": 5, "update": 60, "bound": 2}


def analyze(evidence: Evidence) -> list[Finding]:
    found: list[Finding] = []
    for name in ANALYZERS:
        found += registry.load("analyzers", name)(evidence)
    return found


def one(*signals: Any, **fields: Any) -> Callable[[Any], Evidence]:
    """Return what makes evidence of one run whose signals are given as (name, values[, step])."""
    run = {name: fields.pop(name) for name in ("status", "final", "baselines") if name in fields}
    return lambda build: build.evidence([build.observe([build.record(*each) for each in signals], **run)], **fields)


def finals(*values: float) -> Callable[[Any], Evidence]:
    return lambda build: build.evidence(
        [build.observe(seed=seed, final=value, baselines={"constant": 1.0}) for seed, value in enumerate(values)]
    )


def gradient(rate: float, kind: str = "adjoint.logit_log_norm") -> tuple[str, Any]:
    return f"{kind}/layers.0.forward.h", np.tile(rate * np.arange(101.0)[::-1, None], (1, 3))


def contributed(rate: float) -> tuple[str, Any]:
    return "lags.beyond_log_norm/layers.0.forward.weight_hh", rate * np.arange(101.0)


def bent() -> tuple[str, Any]:
    steps = np.where(np.arange(100) < 40, -0.2, 0.0) + 0.01 * np.random.default_rng(0).standard_normal(100)
    return "adjoint.logit_log_norm/layers.0.forward.h", np.r_[0.0, np.cumsum(steps)][::-1, None]


def seen_to(lag: float) -> tuple[str, Any]:
    return "adjoint.logit_input_log_norm", gradient(np.log(1e-3) / lag)[1]


LAGS = ("use.lags", np.arange(101.0))
PRODUCED: dict[str, Callable[[Any], Evidence]] = {
    "gradient-vanishing": one(gradient(-0.2)),
    "gradient-exploding": one(gradient(0.2)),
    "gradient-healthy": one(gradient(-0.01)),
    "gradient-underflow": one(
        gradient(-0.01, "adjoint.log_norm"), ("adjoint.censored/layers.0.forward.h", np.ones((101, 3)))
    ),
    "gradient-local": one(contributed(-0.2)),
    "gradient-spread": one(contributed(-0.01)),
    "units-dead": one(("activity.dead/s.h", np.ones(4))),
    "units-saturated": one(("activity.high/s.g", np.ones(4))),
    "time-constants": one(("activity.time_constant/s.f", np.ones(4))),
    "training-diverged": one(status="diverged"),
    "stuck-at-baseline": finals(1.0),
    "task-learned": finals(0.1),
    "horizon-short": one(seen_to(10), LAGS, ("use.output_change", np.arange(101) < 10)),
    "horizon-enough": one(seen_to(99), LAGS, ("use.output_change", np.arange(101) < 99)),
    "seed-lottery": finals(0.1, 0.1, 0.1, 1.0, 1.0, 1.0),
    "regime-change": one(bent()),
    "gradient-spikes": one(("updates.grad_norm", np.r_[np.ones(50), 99.0])),
    "updates-clipped": one(("updates.acted/clip_norm", np.ones(50))),
    "gradient-noise": one(("noise.scale", 100.0)),
    "dynamics-chaotic": one(("spectrum.exponents/network", 0.5 + 0.01 * np.arange(6.0).reshape(3, 2))),
    "dynamics-stable": one(("spectrum.exponents/network", -0.5 + 0.01 * np.arange(6.0).reshape(3, 2))),
    "not-enough-evidence": finals(0.1, 1.0),
}


def test_there_is_evidence_for_every_code() -> None:
    assert set(PRODUCED) == set(CODES)


@pytest.mark.parametrize("code", PRODUCED)
def test_every_code_comes_about(build: Any, code: str) -> None:
    found = [each for each in analyze(PRODUCED[code](build)) if each.code == code]
    assert found
    assert all(each.claim.endswith(".") and each.measure and each.subject == "adding rnn · torch" for each in found)
    assert found[0].reference == CODES[code].reference


def everything(build: Any, fill: Callable[[np.random.Generator, tuple[int, ...]], Any], seeds: int = 2) -> Evidence:
    """Return runs with a signal of every kind at two training steps, filled as told."""

    def signals(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        made = []
        for step in (0, 100):
            for name, kind in KINDS.items():
                shape = tuple(SIZES.get(axis, 4) for axis in kind.axes)
                names = [f"{name}/layers.0.forward.{of}" for of in ("h", "c")] if kind.of else [name]
                made += [build.record(each, fill(rng, shape), step) for each in names]
        return made

    runs = build.seeds(seeds, signals, final=0.5, baselines={"constant": 1.0})
    return build.evidence(runs, length=SIZES["time"], lag=SIZES["time"] - 1)  # type: ignore[no-any-return]


def mixed(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    odd = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e30, -1e30], size=shape)
    return np.where(rng.random(shape) < 0.3, odd, rng.standard_normal(shape))


@pytest.mark.parametrize("name", ANALYZERS)
@pytest.mark.parametrize(
    "fill",
    [
        lambda _, shape: np.full(shape, np.nan),
        lambda _, shape: np.full(shape, np.inf),
        lambda _, shape: np.full(shape, -np.inf),
        lambda _, shape: np.zeros(shape),
        lambda _, shape: np.ones(shape),
        lambda rng, shape: rng.standard_normal(shape),
        mixed,
    ],
    ids=["nan", "inf", "minus-inf", "zeros", "ones", "random", "mixed"],
)
def test_no_number_breaks_an_analyzer_or_enters_a_finding(build: Any, name: str, fill: Any) -> None:
    for seeds in (1, 3):
        for found in registry.load("analyzers", name)(everything(build, fill, seeds)):
            json.dumps(found.model_dump(mode="json"), allow_nan=False)
            assert "nan" not in found.claim.split()


@pytest.mark.parametrize("name", ANALYZERS)
def test_nothing_to_read_is_nothing_to_say(build: Any, name: str) -> None:
    assert registry.load("analyzers", name)(build.evidence([])) == []
    assert registry.load("analyzers", name)(build.evidence([build.observe()])) == []


@pytest.mark.parametrize("name", ANALYZERS)
def test_the_same_evidence_gives_the_same_findings(build: Any, name: str) -> None:
    def once() -> list[Finding]:
        found: list[Finding] = registry.load("analyzers", name)(everything(build, lambda r, s: r.standard_normal(s)))
        return found

    assert once() == once()
