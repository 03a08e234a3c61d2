"""The common base of tasks, cells, techniques and optimizers: a validated, frozen, named set of parameters."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from rnnbench.errors import BadInput, quoted


class Frozen(BaseModel):
    """A pydantic model that is immutable, refuses unknown keys, non-finite numbers and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], place: str) -> Self:
        """Validate `values`, raising one line that names the place, the value and what would be right.

        Raises:
            BadInput: on an unknown key (with the nearest known one), a missing key or a value out of range.
        """
        try:
            # JSON mode accepts what a file can hold (a list for a tuple) and still refuses "3" for 3.
            return cls.model_validate_json(json.dumps(dict(values)))
        except ValidationError as error:
            raise _one_line(error, cls, place) from None
        except RecursionError:
            raise BadInput(f"{place}: nested too deeply") from None
        except (TypeError, ValueError) as error:
            raise BadInput(f"{place}: holds something that is not plain data; {error}") from None

    def changed(self) -> dict[str, Any]:
        """Return the parameters that differ from their defaults, as JSON values, keys sorted."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return dict(sorted(dumped.items()))


class Component(Frozen):
    """A named thing that a run is made of. Fields are its parameters; class variables describe it.

    Attributes:
        name: what the user types.
        version: raised whenever the numbers that it produces change; part of a run's digest.
        source: paper, section and equation, or the public code that it follows.
        equation: plain-text equations, in the order the code computes them.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    source: ClassVar[str] = ""
    equation: ClassVar[str] = ""

    def identity(self) -> dict[str, Any]:
        """Return what digests and records say of the parameters: those that are set, a file by its name alone."""
        return self.changed()

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or cls.name).strip().splitlines()[0].rstrip(".")


def _one_line(error: ValidationError, model: type[BaseModel], place: str) -> BadInput:
    """Turn pydantic's report into one line about its first fault, saying how many more there are."""
    faults = error.errors(include_url=False)
    first = _describe(faults[0], model, place)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return BadInput(first + more)


def _describe(fault: ErrorDetails, model: type[BaseModel], place: str) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if len(where) > 80 or not where.isprintable():
        where = quoted(where)
    full = ".".join(part for part in (place, where) if part)
    kind = fault["type"]
    if kind == "extra_forbidden":
        key = str(fault["loc"][-1])
        known = _keys_at(model, fault["loc"][:-1])
        near = difflib.get_close_matches(key, known, n=2, cutoff=0.55)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known) or 'none'}"
        return f"{full}: unknown key; {hint}"
    if kind == "missing":
        return f"{full}: missing; it has no default"
    message = str(fault.get("ctx", {}).get("error") or fault["msg"])
    message = message.removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not where:  # a check of the whole model: its message names the place
        return f"{place}: {message}" if place else message
    return f"{full}: {quoted(fault['input'])} will not do; {message}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the (possibly nested) model that `location` points into."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return sorted(model.model_fields)
