"""Metrics and signals to the bytes of Parquet files and back.

Metrics are tidy: one row a (step, split, metric). Signals have one row a (step, signal): the array is flattened in C
order into a list, and its shape, the names of its axes, its unit and its dtype stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rnnbench.errors import CorruptData, quoted
from rnnbench.signals import Signal
from rnnbench.store.arrays import DTYPES

METRIC_KEYS = ("step", "sequences", "split", "metric", "value", "seconds")


def metrics_schema() -> Any:
    """Return the Arrow schema of ``metrics-*.parquet``."""
    import pyarrow as pa

    kinds = (pa.int64(), pa.int64(), pa.string(), pa.string(), pa.float64(), pa.float64())
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in zip(METRIC_KEYS, kinds, strict=True)])


def signals_schema() -> Any:
    """Return the Arrow schema of ``signals-*.parquet``."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("step", pa.int64(), nullable=False),
            pa.field("signal", pa.string(), nullable=False),
            pa.field("unit", pa.string(), nullable=False),
            pa.field("dtype", pa.string(), nullable=False),
            pa.field("axes", pa.list_(pa.string()), nullable=False),
            pa.field("shape", pa.list_(pa.int64()), nullable=False),
            pa.field("values", pa.large_list(pa.float64()), nullable=False),
        ]
    )


def pack_metrics(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the bytes of a metrics segment."""
    import pyarrow as pa

    return _pack(pa.Table.from_pylist(list(rows), schema=metrics_schema()))


def pack_signals(signals: Iterable[Signal]) -> bytes:
    """Return the bytes of a signals segment. Values go through float64, which holds floats and small integers."""
    import pyarrow as pa

    kept = list(signals)
    flat = [np.asarray(s.values, dtype=np.float64).reshape(-1) for s in kept]
    offsets = np.concatenate([[0], np.cumsum([len(f) for f in flat], dtype=np.int64)])
    values = pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), pa.array(np.concatenate(flat) if flat else np.empty(0), pa.float64())
    )
    columns = [
        pa.array([s.step for s in kept], pa.int64()),
        pa.array([s.name for s in kept], pa.string()),
        pa.array([s.unit for s in kept], pa.string()),
        pa.array([s.values.dtype.name for s in kept], pa.string()),
        pa.array([list(s.axes) for s in kept], pa.list_(pa.string())),
        pa.array([list(s.values.shape) for s in kept], pa.list_(pa.int64())),
        values,
    ]
    return _pack(pa.Table.from_arrays(columns, schema=signals_schema()))


def _pack(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6", data_page_version="1.0")
    return bytes(sink.getvalue().to_pybytes())


def read_metrics(data: bytes, place: str) -> Any:
    """Return a metrics segment as an Arrow table.

    Raises:
        CorruptData: when it is no Parquet file, or one with other columns.
    """
    return _read(data, place, metrics_schema())


def read_signals(data: bytes, place: str) -> list[Signal]:
    """Return the arrays of a signals segment.

    Raises:
        CorruptData: when it is no Parquet file, or one with other columns.
    """
    table = _read(data, place, signals_schema())
    columns = {name: table.column(name).to_pylist() for name in ("step", "signal", "unit", "dtype", "axes", "shape")}
    lists = table.column("values").combine_chunks()
    flat, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
    found = []
    for index, (step, name, unit, dtype, axes, shape) in enumerate(zip(*columns.values(), strict=True)):
        values = flat[offsets[index] : offsets[index + 1]]
        try:
            if dtype not in DTYPES:
                raise ValueError(f"dtype {quoted(dtype)} is unknown")
            array = values.astype(np.dtype(dtype)).reshape(shape)
        except (TypeError, ValueError) as error:
            raise CorruptData(f"{place}: row {index}: {error}") from None
        found.append(Signal(name=name, axes=tuple(axes), unit=unit, step=step, values=array))
    return found


def _read(data: bytes, place: str, schema: Any) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # pq.read_table would do the same through a data set of one file, four times slower on small segments
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise CorruptData(f"{place}: no whole Parquet file of its kind; {' '.join(str(error).split())[:200]}") from None
