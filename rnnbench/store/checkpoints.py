"""The checkpoint pair, ``checkpoint.safetensors`` with ``checkpoint.json`` beside it: one is valid at any instant.

A new pair is written under temporary names, the old one steps aside to ``checkpoint.prev.*``, and the new one is
renamed into place, arrays first, facts last. The facts hold the hash of their arrays, so that whatever instant a kill
falls on, exactly one pair belongs together: it is found by its hash, not by its name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue, field_validator

from rnnbench.arrays import NDArray
from rnnbench.component import Frozen
from rnnbench.errors import CorruptData, NewerSchema, quoted
from rnnbench.record import FILE_NAME, Count, FileHash, Sha256, read_sealed, validated, write_sealed
from rnnbench.store.arrays import pack_arrays, unpack_arrays
from rnnbench.store.files import (
    discard,
    disk_errors,
    hash_file,
    hash_of,
    read_file,
    shown,
    sync_folder,
    write_temporary,
)

CHECKPOINT_SCHEMA = 1
ARRAYS, FACTS = "checkpoint.safetensors", "checkpoint.json"
OLD_ARRAYS, OLD_FACTS = "checkpoint.prev.safetensors", "checkpoint.prev.json"
CHECKPOINT_FILES = (ARRAYS, FACTS, OLD_ARRAYS, OLD_FACTS)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands, in full: what resumes from it is bit-equal to what was never interrupted.

    Attributes:
        arrays: parameters, optimizer state, buffers and whatever else the loop carries.
        position: the step and what else the loop counts, as JSON values.
        files: the segments and parameters that were written before it; anything else is from a lost future.
    """

    arrays: dict[str, NDArray]
    position: dict[str, JsonValue]
    files: dict[str, FileHash] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Training steps done."""
        step = self.position["step"]
        assert isinstance(step, int)
        return step


class CheckpointFacts(Frozen):
    """What ``checkpoint.json`` holds."""

    schema_version: Annotated[int, Field(ge=1)] = CHECKPOINT_SCHEMA
    digest: Sha256
    step: Count
    position: dict[str, JsonValue]
    arrays: FileHash
    files: dict[str, FileHash] = Field({}, description="segments and parameters written before it")

    @field_validator("files")
    @classmethod
    def _names(cls, value: dict[str, FileHash]) -> dict[str, FileHash]:
        for name in value:
            if not FILE_NAME.fullmatch(name):
                raise ValueError(f"{quoted(name)} is not the name of a file in a run's folder")
        return value

    @classmethod
    def from_json(cls, data: bytes, place: str) -> CheckpointFacts:
        """Read the bytes of a ``checkpoint.json``.

        Raises:
            CorruptData: when it is empty, truncated, edited, no strict JSON, or of a newer schema.
        """
        _, text = read_sealed(data, place, CHECKPOINT_SCHEMA)
        facts = validated(cls, text, place)
        if facts.position.get("step") != facts.step:
            raise CorruptData(f"{place}: its position's step {quoted(facts.position.get('step'))} is not {facts.step}")
        return facts


def read_facts(folder: Path) -> CheckpointFacts | None:
    """Return the facts of the newest checkpoint without looking at its arrays, or None when there is none.

    Raises:
        CorruptData: when they cannot be read.
    """
    for name in (FACTS, OLD_FACTS):
        data = read_file(folder / name)
        if data is not None:
            with curable(folder):
                return CheckpointFacts.from_json(data, shown(folder / name))
    return None


@contextlib.contextmanager
def curable(folder: Path) -> Iterator[None]:
    """Add to the news of damage how to go on; a file of a newer schema is not damaged."""
    try:
        yield
    except NewerSchema:
        raise
    except CorruptData as error:
        raise CorruptData(f"{error}; {_cure(folder)}") from error


def _cure(folder: Path) -> str:
    return (
        "put the file back from a copy, or start this run anew: "
        f"rnnbench results clean --only corrupt {folder.name[:12]}"
    )


def load_checkpoint(folder: Path, digest: str) -> Checkpoint | None:
    """Return the one valid checkpoint, every byte of it checked, or None when there is none.

    Raises:
        CorruptData: naming the file that is missing or not what it was, and how to go on.
    """
    found = _matching(folder, digest)
    if found is None:
        return None
    facts, _, arrays_path = found
    data = read_file(arrays_path)
    if data is None or hash_of(data) != facts.arrays:
        raise _corrupt(folder, arrays_path, "changed while it was read")
    for name, expected in sorted(facts.files.items()):
        actual = hash_file(folder / name)
        if actual != expected:
            raise _corrupt(folder, folder / name, "is missing" if actual is None else _difference(expected, actual))
    return Checkpoint(
        arrays=unpack_arrays(data, shown(arrays_path)), position=dict(facts.position), files=dict(facts.files)
    )


def _matching(folder: Path, digest: str) -> tuple[CheckpointFacts, Path, Path] | None:
    """Return the newest facts, their path and the path of the arrays that their hash names."""
    facts = read_facts(folder)
    if facts is None:
        return None
    facts_path = folder / FACTS if (folder / FACTS).exists() else folder / OLD_FACTS
    if facts.digest != digest:
        raise _corrupt(folder, facts_path, f"belongs to the run {facts.digest[:12]}, not to this one")
    candidates = {name: hash_file(folder / name) for name in (ARRAYS, OLD_ARRAYS)}
    for name, actual in candidates.items():
        if actual == facts.arrays:
            return facts, facts_path, folder / name
    named, actual = next(((n, a) for n, a in candidates.items() if a is not None), (ARRAYS, None))
    raise _corrupt(folder, folder / named, "is missing" if actual is None else _difference(facts.arrays, actual))


def _difference(expected: FileHash, actual: FileHash) -> str:
    if actual.bytes != expected.bytes:
        return f"holds {actual.bytes} bytes where {expected.bytes} were written (truncated?)"
    return f"has sha256 {actual.sha256[:12]} where {expected.sha256[:12]} was written"


def _corrupt(folder: Path, path: Path, reason: str) -> CorruptData:
    return CorruptData(f"{shown(path)}: {reason}; {_cure(folder)}")


def save_checkpoint(
    folder: Path,
    digest: str,
    arrays: Mapping[str, NDArray],
    position: Mapping[str, JsonValue],
    files: Mapping[str, FileHash],
) -> None:
    """Put a new checkpoint in the place of the old one, which stays valid until the new one is whole.

    Raises:
        OutOfResources: when the disk is full; the old checkpoint stays.
        ValueError: when `position` has no step, or holds what JSON cannot.
    """
    step = position.get("step")
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError(f"a checkpoint's position needs a step, not {step!r}")
    data = pack_arrays(arrays)
    facts = CheckpointFacts(
        digest=digest, step=step, position=dict(position), arrays=hash_of(data), files=dict(sorted(files.items()))
    )
    text = write_sealed(facts.model_dump(mode="json"))
    if (folder / OLD_FACTS).exists() or (folder / OLD_ARRAYS).exists():
        settle(folder, digest)  # an earlier try of this process failed half-way
    with disk_errors(folder / ARRAYS, "writing the checkpoint"):
        # All that can run out of space comes first; from then on there are only renames.
        new_arrays = write_temporary(folder / ARRAYS, data)
        try:
            new_facts = write_temporary(folder / FACTS, text)
        except OSError:
            discard(new_arrays)
            raise
        try:
            _swap(folder, new_arrays, new_facts)
        except OSError:
            discard(new_arrays)
            discard(new_facts)
            raise


def _swap(folder: Path, new_arrays: Path, new_facts: Path) -> None:
    """Rename the new pair into place; each sync keeps a power loss from seeing the renames in another order."""
    if (folder / FACTS).exists():
        os.replace(folder / ARRAYS, folder / OLD_ARRAYS)
        os.replace(folder / FACTS, folder / OLD_FACTS)
        sync_folder(folder)
    os.replace(new_arrays, folder / ARRAYS)
    sync_folder(folder)
    os.replace(new_facts, folder / FACTS)
    sync_folder(folder)
    discard(folder / OLD_FACTS)
    discard(folder / OLD_ARRAYS)


def settle(folder: Path, digest: str) -> None:
    """Bring the valid pair, wherever a kill left its halves, back to its proper names."""
    found = _matching(folder, digest)
    with disk_errors(folder / ARRAYS, "putting the checkpoint in order"):
        if found is None:
            remove_checkpoints(folder)
            return
        _, facts_path, arrays_path = found
        if arrays_path.name != ARRAYS:
            os.replace(arrays_path, folder / ARRAYS)
            sync_folder(folder)
        if facts_path.name != FACTS:
            os.replace(facts_path, folder / FACTS)
            sync_folder(folder)
        discard(folder / OLD_FACTS)
        discard(folder / OLD_ARRAYS)


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint; facts go first, so that a kill in between leaves none rather than a broken one."""
    for name in (OLD_FACTS, FACTS, OLD_ARRAYS, ARRAYS):
        discard(folder / name)


def checkpoint_hashes(folder: Path) -> dict[str, FileHash]:
    """Return the hashes of the checkpoint's files, by name."""
    return {name: fact for name in (ARRAYS, FACTS) if (fact := hash_file(folder / name)) is not None}
