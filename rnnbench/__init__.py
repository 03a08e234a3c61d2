"""rnnbench: matched benchmarks and gradient diagnostics for recurrent neural networks, on PyTorch and JAX."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnnbench.analysis import analyze as analyze
    from rnnbench.api import run as run
    from rnnbench.spec import RunSpec as RunSpec
    from rnnbench.store.frames import load_results as load_results
    from rnnbench.suite import SuiteSpec as SuiteSpec
    from rnnbench.suite import load_suite as load_suite

__version__ = "0.1.0"

_PUBLIC = {
    "RunSpec": "rnnbench.spec:RunSpec",
    "SuiteSpec": "rnnbench.suite:SuiteSpec",
    "analyze": "rnnbench.analysis:analyze",
    "load_results": "rnnbench.store.frames:load_results",
    "load_suite": "rnnbench.suite:load_suite",
    "run": "rnnbench.api:run",
}
"""From a public name to where it is; imported when it is first asked for, so that ``import rnnbench`` is light."""

__all__ = ["RunSpec", "SuiteSpec", "__version__", "analyze", "load_results", "load_suite", "run"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
