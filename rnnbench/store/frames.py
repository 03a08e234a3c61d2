"""Results as a pandas frame: one row a recorded metric, or one row a run, the spec's keys as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rnnbench.errors import BadInput, CorruptData
from rnnbench.record import RunRecord
from rnnbench.store.files import hash_of, read_file, shown
from rnnbench.store.folder import RECORD, RunFolder, Store
from rnnbench.store.tables import METRIC_KEYS, metrics_schema, read_metrics

if TYPE_CHECKING:
    import pandas as pd

_DEFAULTS: dict[str, Any] = {
    "task": None,
    "cell": None,
    "model": None,
    "techniques": "",
    "optimizer": "adam",
    "backend": "torch",
    "device": "cpu",
    "precision": "float32",
    "seed": 0,
    "data_seed": 0,
}

SPEC_COLUMNS = tuple(_DEFAULTS)
"""The spec's columns that are always there; others appear when some run of the frame sets them."""

_EMPTY = ["suite", "digest", "status", *SPEC_COLUMNS, "matched"]


def load_results(path: str | Path, kind: Literal["metrics", "runs"] = "metrics") -> pd.DataFrame:
    """Read recorded runs into a tidy frame.

    Args:
        path: a folder of results, or one suite's or one run's folder in it.
        kind: ``metrics`` for one row a (run, step, split, metric), ``runs`` for one row a run with its summary.

    Returns:
        Columns suite, digest, status and the spec's keys (``task``, ``task.delay``, ``cell``, ``seed``, ...; always
        those of `SPEC_COLUMNS`, others when some run sets them), then step, sequences, split, metric, value and
        seconds, or the run's record: steps, sequences, steps_to_solve, timings in seconds, ``summary.<metric>``
        and ``baseline.<metric>.<name>``. Runs without a record (still going, or killed) are left out; failed and
        interrupted ones are in, by status.

    Raises:
        BadInput: when there is no such folder.
        CorruptData: when a record or a segment is not what was written.
    """
    if kind not in ("metrics", "runs"):
        raise BadInput(f"load_results: kind {kind!r} is neither metrics nor runs")
    return load_folders(run_folders(path), kind)


def load_folders(folders: Iterable[RunFolder], kind: Literal["metrics", "runs"]) -> pd.DataFrame:
    """Read the records of `folders` into a frame; see `load_results`.

    Raises:
        CorruptData: when a record or a segment is not what was written.
    """
    runs = [(folder, record) for folder in folders if (record := folder.record()) is not None]
    columns = [run_columns(record) for _, record in runs]
    return _runs_frame(runs, columns) if kind == "runs" else _metrics_frame(runs, columns)


def run_folders(path: str | Path) -> list[RunFolder]:
    """Return the run folders at `path`: a folder of results, a suite's, or a run's own.

    Raises:
        BadInput: when there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise BadInput(f"{shown(root)}: there is no such folder of results; `rnnbench run` makes one")
    root = root.resolve()
    if (root / RECORD).exists():
        return [Store(root.parent.parent, read_only=True).folder(root.parent.name, root.name)]
    folders = Store(root, read_only=True).folders()
    if not folders:  # perhaps one suite's folder
        folders = [f for f in Store(root.parent, read_only=True).folders() if f.suite == root.name]
    return folders


def run_columns(record: RunRecord) -> dict[str, Any]:
    """Return what names a run: suite, digest, status and its spec, flattened, with `SPEC_COLUMNS` always there."""
    columns: dict[str, Any] = {"suite": record.suite, "digest": record.digest, "status": str(record.status)}
    columns.update(_DEFAULTS)
    columns.update(flat_spec(record.spec))
    columns["matched"] = record.matched
    return columns


def flat_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a canonical spec: ``{"task": {"name": "copy", "delay": 9}}`` is ``task = copy, task.delay = 9``."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if key == "techniques" and isinstance(value, list):
            flat[key] = "+".join(str(ref.get("name")) for ref in value if isinstance(ref, dict))
            for ref in value:
                if isinstance(ref, dict):
                    params = {name: entry for name, entry in ref.items() if name != "name"}
                    flat.update(_flat(str(ref.get("name")), params))
        else:
            flat.update(_flat(key, value))
    return flat


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, entry in value.items():
            if name == "name":
                yield key, entry
            else:
                yield from _flat(f"{key}.{name}", entry)
    elif isinstance(value, list):
        from rnnbench.spec import canonical_json

        yield key, canonical_json(value)  # a list in a cell of a frame can be neither grouped nor compared
    else:
        yield key, value


def _runs_frame(runs: Iterable[tuple[RunFolder, RunRecord]], columns: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (_, record), named in zip(runs, columns, strict=True):
        rows.append(
            {
                **named,
                "steps": record.steps,
                "sequences": record.sequences,
                "steps_to_solve": record.steps_to_solve,
                "first_bad_step": record.first_bad_step,
                "parameters": record.parameters,
                "path": record.resolved.path,
                "threads": record.environment.threads,
                "resumed": len(record.resumed),
                "error": record.error,
                "first_batch_sha256": record.first_batch_sha256,
                "metric": record.summary.metric,
                "better": record.summary.better,
                "created": record.created,
                **dict(record.timings),
                **{f"summary.{metric}": value for metric, value in record.summary.metrics.items()},
                **{
                    f"baseline.{metric}.{name}": value
                    for metric, values in record.baselines.items()
                    for name, value in values.items()
                },
            }
        )
    frame = pd.DataFrame(rows, columns=_in_order(rows) if rows else _EMPTY)
    for name in ("steps_to_solve", "first_bad_step", "parameters"):
        if name in frame:
            frame[name] = frame[name].astype("Int64")
    return frame


def _in_order(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the union of the rows' keys: those of every row in their order, a late one after its namesakes."""
    order: dict[str, None] = {}
    for row in rows:
        order.update(dict.fromkeys(row))
    heads = {name: position for position, name in enumerate(order)}
    return sorted(order, key=lambda name: (heads.get(name.partition(".")[0], heads[name]), "." in name, heads[name]))


def _metrics_frame(runs: list[tuple[RunFolder, RunRecord]], columns: list[dict[str, Any]]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    tables, lengths = [], []
    for folder, record in runs:
        mine = [_segment(folder, record, name) for name in sorted(record.files) if name.startswith("metrics-")]
        tables.extend(mine)
        lengths.append(sum(table.num_rows for table in mine))
    table = pa.concat_tables(tables) if tables else metrics_schema().empty_table()
    metrics = table.combine_chunks().to_pandas()
    names = pd.DataFrame(columns, columns=_in_order(columns) if columns else _EMPTY)
    owner = np.repeat(np.arange(len(runs)), lengths)
    named = names.take(owner).reset_index(drop=True) if len(runs) else names
    frame: pd.DataFrame = pd.concat([named, metrics[list(METRIC_KEYS)]], axis=1)
    return frame


def _segment(folder: RunFolder, record: RunRecord, name: str) -> Any:
    path = folder.path / name
    data = read_file(path)
    if data is None or hash_of(data) != record.files[name]:
        raise CorruptData(f"{shown(path)}: is missing or not what was written; `rnnbench results verify` lists all")
    return read_metrics(data, shown(path))
