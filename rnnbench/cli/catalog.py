"""What there is to list and to show: every registered thing with its facts, and why it cannot be used if it cannot."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

from rnnbench import registry
from rnnbench.errors import BadInput

SINGULAR = {kind.removesuffix("s"): kind for kind in registry.KINDS}
EXTRAS = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "optax": "jax"}
"""Which extra brings a package that may be missing."""


@dataclass(frozen=True)
class Entry:
    """One registered thing.

    Attributes:
        kind: as in `registry.KINDS`.
        name: what the user types.
        version: raised whenever the numbers that it produces change; for a suite None.
        summary: one line.
        source: paper or code that it follows; for a suite the file.
        origin: ``built in``, or the distribution that plugs it in.
        error: why it cannot be loaded, or None.
        details: further facts of its kind (a suite's arms and runs).
    """

    kind: str
    name: str
    version: str | None
    summary: str
    source: str
    origin: str
    error: str | None = None
    details: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the facts as JSON values, without those that are not there."""
        values = asdict(self)
        return {key: value for key, value in (values | (values.pop("details") or {})).items() if value is not None}


def entries(kind: str) -> list[Entry]:
    """Return everything of `kind`, by name; what cannot be loaded has its `error` set."""
    return [entry(kind, name) for name in registry.names(kind)]


def entry(kind: str, name: str) -> Entry:
    """Describe one registered thing; a failure to load it is described too, and not raised."""
    origin = origin_of(kind, name)
    try:
        if kind == "suites":
            return _suite(name, origin)
        thing = registry.load(kind, name)
        return Entry(kind, name, _version(kind, thing), summary_of(thing), getattr(thing, "source", ""), origin)
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way, and must not take the list down with it
        known = isinstance(error, BadInput)
        text = str(error) if known else f"{kind.removesuffix('s')} {name}: {registry.one_line(error)}"
        return Entry(kind, name, None, "", "", origin, error=text + cure_of(error))


def origin_of(kind: str, name: str) -> str:
    """Return ``built in``, or the distribution and version that a plug-in comes from."""
    if name in registry.BUILT_IN[kind]:
        return "built in"
    point = registry.plugins(kind).get(name)
    return f"{point.dist.name} {point.dist.version}" if point is not None and point.dist is not None else "plug-in"


def summary_of(thing: Any) -> str:
    """Return the first line of a thing's docstring, without its full stop."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    return lines[0].rstrip(".") if lines else ""


def cure_of(error: BaseException) -> str:
    """Return the command that installs what an import did not find, as an addition to the error's text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            return f"; pip install 'rnnbench[{EXTRAS[cause.name]}]'"
        cause = cause.__cause__
    return ""


def _version(kind: str, thing: Any) -> str | None:
    if kind == "backends":
        versions = thing().versions()
        return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not installed"
    version = getattr(thing, "version", None)
    return None if version is None else str(version)


def _suite(name: str, origin: str) -> Entry:
    from rnnbench.suite import load_suite, suite_origin

    suite = load_suite(name)
    details = {"arms": max(1, len(suite.arms)), "runs": suite.count()}
    return Entry("suites", name, None, suite.title, suite_origin(name), origin, details=details)


def device_rows() -> list[dict[str, Any]]:
    """Return every device that a backend sees or misses: backend, name, available and detail."""
    rows: list[dict[str, Any]] = []
    for name in registry.names("backends"):
        try:
            found = registry.backend(name).devices()
            rows += [{"backend": name, "device": d.name, "available": d.available, "detail": d.detail} for d in found]
        except (Exception, SystemExit) as error:  # a broken backend is one row, and the others still answer
            text = str(error) if isinstance(error, BadInput) else registry.one_line(error)
            rows.append({"backend": name, "device": "", "available": False, "detail": text + cure_of(error)})
    return rows
