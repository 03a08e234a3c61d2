"""What to run: `RunSpec`, one training run, and the pieces that it is made of. Frozen, validated, with a stable digest.

This module knows names, not things: whether a task or a cell of that name exists, and whether its parameters are in
range, is decided in `rnnbench.experiment`, which looks them up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_serializer, model_validator

from rnnbench.component import Frozen
from rnnbench.streams import SEED_LIMIT

SCHEMA_VERSION = 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]*$")]
Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]
Positive = Annotated[int, Field(gt=0, le=10**12)]
Split = Literal["train", "valid", "test"]
Precision = Literal["float64", "float32", "tf32", "bfloat16"]

_DEVICE = re.compile(r"^(cpu|cuda|tpu)(?::(\d{1,3}))?$")


class Ref(Frozen):
    """A component by name, with the parameters that the user set: ``{name = "copy", delay = 200}``."""

    name: Name
    params: dict[str, JsonValue] = Field({}, description="the parameters that are set")

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """Accept ``"copy"`` and ``{"name": "copy", "delay": 200}`` for the nested form."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and set(value) - {"name", "params"}:
            flat = {key: entry for key, entry in value.items() if key not in ("name", "params")}
            nested = value.get("params") or {}
            if not isinstance(nested, Mapping):
                raise ValueError("params is not a table")
            return {"name": value.get("name"), "params": {**nested, **flat}}
        return value

    @model_serializer
    def _serialize(self) -> dict[str, Any]:
        return {"name": self.name, **dict(sorted(self.params.items()))}


class NetworkSpec(Frozen):
    """How cells are put together."""

    layers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="layers stacked on one another")
    bidirectional: bool = Field(False, description="a second recurrence that reads the sequence backwards")
    learned_state: bool = Field(False, description="initial states are parameters, not zeros")


class DataSpec(Frozen):
    """Which training data, in what portions."""

    batch_size: Annotated[int, Field(ge=1, le=10**6)] = Field(32, description="sequences a step")
    train_n: Positive | None = Field(
        None, description="size of a fixed training set; by default fresh sequences each step, or all that the set has"
    )


class EvalSpec(Frozen):
    """When and on what a run is scored."""

    split: Literal["valid", "test"] = Field("valid", description="the split that is scored along the way")
    n: Positive = Field(1000, description="sequences in the evaluation set (at most what the data set has)")
    every: Positive = Field(100, description="steps between two scorings")
    metric: Name | None = Field(None, description="the metric that selects and summarizes; by default the task's own")
    select: Literal["last", "best_valid", "best_test"] = Field(
        "last", description="which parameters the final score is of"
    )


class StopSpec(Frozen):
    """The run is *solved* when `metric` has passed `threshold` in `window` consecutive looks."""

    metric: Name = Field("loss", description="a metric of the task, or loss")
    threshold: float = Field(description="to be passed: from above for an error, from below for an accuracy")
    window: Positive = Field(1, description="consecutive scorings (valid, test) or steps (train) that must pass")
    split: Split = Field("valid", description="train looks at every step's batch, valid and test at every scoring")


class BudgetSpec(Frozen):
    """How long a run may go on; exactly one of the three."""

    steps: Positive | None = Field(None, description="training steps")
    sequences: Positive | None = Field(None, description="training sequences seen (rounded up to whole batches)")
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        None, description="seconds of training; such a run ends as time_limit and enters no verdict"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("steps", "sequences", "seconds") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"budget: give exactly one of steps, sequences and seconds, not {given or 'none'}")
        return self

    def steps_at(self, batch_size: int) -> int | None:
        """Return the number of training steps, or None when only the clock decides."""
        if self.sequences is not None:
            return -(-self.sequences // batch_size)
        return self.steps


class RecordSpec(Frozen):
    """Which training steps are recorded."""

    per_decade: Annotated[int, Field(ge=1, le=1000)] = Field(
        20, description="training steps recorded in each tenfold of the step count, spaced evenly in its logarithm"
    )
    probes: tuple[Ref, ...] = Field((), description="probes that look at the model: at the start, at times, at the end")
    probes_per_decade: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="looks in each tenfold of the step count"
    )


class RunSpec(Frozen):
    """One training run, in full. Two runs with the same digest are the same experiment."""

    task: Ref
    cell: Ref | None = None
    model: Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")] | None = None
    network: NetworkSpec = NetworkSpec()
    techniques: tuple[Ref, ...] = ()
    optimizer: Ref = Ref(name="adam")
    data: DataSpec = DataSpec()
    backend: Name = "torch"
    device: str = "cpu"
    precision: Precision = "float32"
    path: Name = Field("auto", description="auto, reference, or a backend's own (torch: fused)")
    seed: Seed = 0
    data_seed: Seed = 0
    eval: EvalSpec = EvalSpec()
    stop: StopSpec | None = None
    budget: BudgetSpec = BudgetSpec(steps=1000)
    record: RecordSpec = RecordSpec()

    @field_validator("optimizer", mode="before")
    @classmethod
    def _adam(cls, value: Any) -> Any:
        """Setting a parameter alone is of the default optimizer's."""
        return {"name": "adam", **value} if isinstance(value, Mapping) and "name" not in value else value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not _DEVICE.match(value):
            raise ValueError("a device is cpu, cuda, cuda:N, tpu or tpu:N")
        return value

    @model_validator(mode="after")
    def _cell_or_model(self) -> Self:
        if (self.cell is None) == (self.model is None):
            raise ValueError("a run has either a cell or a model: " + ("both given" if self.cell else "neither given"))
        if self.model is not None and (self.techniques or self.network != NetworkSpec()):
            raise ValueError("a user's whole model takes no techniques and no network settings")
        return self

    @property
    def matched(self) -> bool:
        """Whether the run is the same experiment on every backend (a user's whole model is not)."""
        return self.model is None

    @property
    def device_kind(self) -> str:
        """The device without its index: which of several equal devices was used is not part of the experiment."""
        return self.device.partition(":")[0]

    def canonical(self) -> dict[str, Any]:
        """Return the spec as JSON values: defaults omitted, keys sorted, the device without its index."""
        dumped = self.changed()
        if "device" in dumped:
            dumped["device"] = self.device_kind
        if dumped.get("device") == "cpu":
            del dumped["device"]
        return dict(sorted(dumped.items()))


def canonical_json(value: Any) -> str:
    """Write `value` the one way that digests are computed from: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: when it holds a NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
