"""From a name to the thing: a table that imports nothing, then entry points, then a user's own `module:attribute`.

Loading happens only when a thing is used; a plug-in that cannot be loaded is reported and breaks nothing else.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any

from rnnbench.errors import BadInput, quoted, unknown

KINDS = (
    "tasks",
    "cells",
    "techniques",
    "optimizers",
    "backends",
    "probes",
    "analyzers",
    "pictures",
    "tables",
    "suites",
)

BUILT_IN: dict[str, dict[str, str]] = {
    "tasks": {
        "copy": "rnnbench.tasks.copying:Copy",
        "adding": "rnnbench.tasks.adding:Adding",
        "temporal_order": "rnnbench.tasks.temporal_order:TemporalOrder",
        "mnist": "rnnbench.tasks.mnist:MNIST",
        "digits": "rnnbench.tasks.digits:Digits",
        "forecast": "rnnbench.tasks.forecast:Forecast",
    },
    "cells": {
        "rnn": "rnnbench.cells.rnn:RNN",
        "lstm": "rnnbench.cells.lstm:LSTM",
        "gru": "rnnbench.cells.gru:GRU",
    },
    "techniques": {
        "clip_norm": "rnnbench.techniques.gradient.clip:ClipNorm",
        "clip_value": "rnnbench.techniques.gradient.clip:ClipValue",
    },
    "optimizers": {
        "sgd": "rnnbench.techniques.update.optimizers:SGD",
        "rmsprop": "rnnbench.techniques.update.optimizers:RMSProp",
        "adam": "rnnbench.techniques.update.optimizers:Adam",
        "adamw": "rnnbench.techniques.update.optimizers:AdamW",
    },
    "backends": {
        "numpy": "rnnbench.backends.numpy:NumpyBackend",
        "torch": "rnnbench.backends.torch:TorchBackend",
        "jax": "rnnbench.backends.jax:JaxBackend",
    },
    "probes": {
        "adjoint": "rnnbench.probes.adjoint:Adjoint",
        "points": "rnnbench.probes.points:Points",
        "propagator": "rnnbench.probes.propagator:Propagator",
        "spectrum": "rnnbench.probes.spectrum:Spectrum",
        "lags": "rnnbench.probes.lags:Lags",
        "activity": "rnnbench.probes.activity:Activity",
        "updates": "rnnbench.probes.updates:Updates",
        "noise": "rnnbench.probes.noise:Noise",
        "use": "rnnbench.probes.use:Use",
    },
    "analyzers": {
        "outcome": "rnnbench_analyzers.outcome:analyze",
        "gradient_flow": "rnnbench_analyzers.gradient_flow:analyze",
        "dynamics": "rnnbench_analyzers.dynamics:analyze",
        "activity": "rnnbench_analyzers.activity:analyze",
        "updates": "rnnbench_analyzers.updates:analyze",
        "reach": "rnnbench_analyzers.reach:analyze",
        "lags": "rnnbench_analyzers.lags:analyze",
    },
    "pictures": {
        "curves": "rnnbench_analyzers.curves:learning_curves",
        "gradient_profile": "rnnbench_analyzers.pictures.profile:draw",
        "gradient_heatmap": "rnnbench_analyzers.pictures.heatmap:draw",
        "singular_values": "rnnbench_analyzers.pictures.singular_values:draw",
        "exponents": "rnnbench_analyzers.pictures.exponents:draw",
        "saturation": "rnnbench_analyzers.pictures.saturation:draw",
        "reach": "rnnbench_analyzers.pictures.reach:draw",
        "lags": "rnnbench_analyzers.pictures.lags:draw",
    },
    "tables": {"summary": "rnnbench_analyzers.summary:summarize"},
    "suites": {
        "quickstart": "rnnbench_suites:quickstart.toml",
        "gradient_decay": "rnnbench_suites:gradient_decay.toml",
    },
}


@cache
def plugins(kind: str) -> dict[str, EntryPoint]:
    """Return the entry points of group ``rnnbench.<kind>`` by name; a built-in name is never overridden."""
    found = _entry_points()[0].get(kind, {})
    return {name: point for name, point in sorted(found.items()) if name not in BUILT_IN[kind]}


def unreadable() -> dict[str, str]:
    """Return the installed distributions whose entry points cannot be read, with the reason; they are passed over."""
    return _entry_points()[1]


@cache
def _entry_points() -> tuple[dict[str, dict[str, EntryPoint]], dict[str, str]]:
    """Read the entry points of every installed distribution, each by itself: one that is malformed breaks no other."""
    found: dict[str, dict[str, EntryPoint]] = {}
    faults: dict[str, str] = {}
    for distribution in distributions():
        try:
            for point in distribution.entry_points:
                if point.group.startswith("rnnbench."):
                    found.setdefault(point.group.removeprefix("rnnbench."), {}).setdefault(point.name, point)
        except Exception as error:
            faults[_distribution_name(distribution)] = one_line(error)
    return found, faults


def _distribution_name(distribution: Distribution) -> str:
    try:
        return str(distribution.name)
    except Exception:  # its metadata are no better than its entry points
        return "an installed package without a name"


def backend(name: str, place: str = "backend") -> Any:
    """Return the backend called `name`, made.

    Raises:
        BadInput: when there is none, or it is not a class that can be made without arguments.
    """
    found = load("backends", name, place)
    try:
        made = found()
    except Exception as error:
        raise BadInput(f"{place}: {quoted(name)} is not a backend class; {one_line(error)}") from error
    missing = [part for part in ("ops", "devices", "trainer", "check", "versions") if not hasattr(made, part)]
    if missing:
        raise BadInput(f"{place}: {quoted(name)} is not a backend; it lacks {', '.join(missing)}")
    return made


def names(kind: str) -> list[str]:
    """Return every known name of `kind`, built in and plugged in."""
    return sorted([*BUILT_IN[kind], *plugins(kind)])


def load(kind: str, name: str, place: str | None = None) -> Any:
    """Return the thing called `name`; a name with a colon is a user's own ``module:attribute``.

    Raises:
        BadInput: when there is none of that name (with the nearest), or it cannot be loaded (with the reason).
    """
    place = place or kind.removesuffix("s")
    if ":" in name:
        return load_attribute(name, place)
    if name in BUILT_IN[kind]:
        return _attribute(BUILT_IN[kind][name], place)
    if name in plugins(kind):
        point = plugins(kind)[name]
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            raise BadInput(
                f"{place}: plug-in {quoted(name)} ({quoted(point.value)}) cannot be loaded; {one_line(error)}"
            ) from error
    raise unknown(place, name, names(kind))


def load_attribute(reference: str, place: str) -> Any:
    """Import ``package.module:attribute``, with the working directory on the import path.

    Raises:
        BadInput: when the module or the attribute is missing, or importing it fails.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    return _attribute(reference, place)


def _attribute(reference: str, place: str) -> Any:
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise BadInput(
                f"{place}: no module named {quoted(missing)} (looked in the working directory too)"
            ) from None
        raise BadInput(f"{place}: {module_name} needs {quoted(missing)}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise BadInput(f"{place}: importing {module_name} failed; {one_line(error)}") from error
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise unknown(
            f"{place}: {module_name}", attribute, [n for n in vars(module) if not n.startswith("_")]
        ) from None
    return found


def one_line(error: BaseException) -> str:
    """Return an exception's type and message on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
