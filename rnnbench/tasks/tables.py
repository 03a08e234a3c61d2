"""Reading columns of numbers from a CSV or Parquet file, strictly: what is wrong is named by row, column and value."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput, CorruptData, quoted, unknown

MAX_BYTES = 1 << 28  # a CSV file takes some ten times its size while it is read
MAX_VALUES = 10**8

_DATE = re.compile(r"^\d{4}-\d{2}(-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?)?Z?$")


@dataclass(frozen=True)
class Table:
    """The columns of a file as they stand in it.

    Attributes:
        place: the file, as errors name it.
        columns: cells by column, as text (CSV) or as a pyarrow array (Parquet).
        lines: the line of each row, counted from 1 as an editor does; None for Parquet.
    """

    place: str
    columns: dict[str, Any]
    lines: list[int] | None

    def at(self, row: int) -> str:
        """Name a row as the user finds it."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def numbers(self, name: str) -> NDArray:
        """Return column `name` as float64 [row].

        Raises:
            CorruptData: on a cell that is empty, text, or not finite.
        """
        cells = self._column(name)
        if self.lines is not None:
            values = np.array([self._number(cell, row, name) for row, cell in enumerate(cells)], dtype=np.float64)
        else:
            values = self._arrow_numbers(cells, name)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise CorruptData(
                f"{self.place}: {self.at(int(bad[0]))}, column {quoted(name)}: {values[bad[0]]} is not a finite number"
            )
        return values

    def times(self, name: str) -> NDArray:
        """Return column `name` as float64 or as datetime64[us] [row], whichever its first cell is.

        Raises:
            CorruptData: on a cell that is neither a number nor an ISO 8601 date without a time zone.
        """
        cells = self._column(name)
        if self.lines is None:
            import pyarrow as pa

            kind = cells.type
            if pa.types.is_temporal(kind) and not pa.types.is_duration(kind) and not pa.types.is_time(kind):
                self._whole(cells, name)
                plain = cells.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)
                return np.asarray(plain.cast(pa.int64()).to_numpy()).astype("datetime64[us]")
            if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
                return self.numbers(name)
            self._whole(cells, name)
            cells = cells.to_pylist()
        if cells and not _DATE.match(cells[0].strip()):
            return np.array([self._number(cell, row, name, " or an ISO date") for row, cell in enumerate(cells)])
        return np.array([self._date(cell, row, name) for row, cell in enumerate(cells)], dtype="datetime64[us]")

    def _column(self, name: str) -> Any:
        if name not in self.columns:
            raise unknown(f"{self.place}: columns", name, self.columns)
        return self.columns[name]

    def _number(self, cell: str, row: int, name: str, more: str = "") -> float:
        text = cell.strip()
        if not text:
            raise CorruptData(f"{self.place}: {self.at(row)}, column {quoted(name)}: the cell is empty")
        try:
            if "_" in text:  # float() would take 1_000 for a thousand
                raise ValueError
            value = float(text)
        except ValueError:
            raise CorruptData(
                f"{self.place}: {self.at(row)}, column {quoted(name)}: {quoted(text)} is not a number{more}"
            ) from None
        if not math.isfinite(value):
            raise CorruptData(
                f"{self.place}: {self.at(row)}, column {quoted(name)}: {quoted(text)} is not a finite number"
            )
        return value

    def _date(self, cell: str, row: int, name: str) -> np.datetime64:
        text = cell.strip()
        try:
            if not _DATE.match(text):
                raise ValueError
            return np.datetime64(text.removesuffix("Z"), "us")
        except ValueError:
            raise CorruptData(
                f"{self.place}: {self.at(row)}, column {quoted(name)}: {quoted(text)} is not a date, as the first is; "
                "dates are written YYYY-MM-DD or YYYY-MM-DD HH:MM:SS"
            ) from None

    def _whole(self, cells: Any, name: str) -> None:
        if cells.null_count:
            row = cells.is_null().to_pylist().index(True)
            raise CorruptData(f"{self.place}: {self.at(row)}, column {quoted(name)}: the cell is empty")

    def _arrow_numbers(self, cells: Any, name: str) -> NDArray:
        import pyarrow as pa

        if not (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type)):
            raise CorruptData(f"{self.place}: column {quoted(name)} holds {cells.type}, not numbers")
        self._whole(cells, name)
        return np.asarray(cells.to_numpy(), dtype=np.float64)


def read_table(content: bytes, place: str) -> Table:
    """Read a whole file, CSV (comma, semicolon or tab, with a header line) or Parquet.

    Raises:
        CorruptData: when it is neither, or damaged.
    """
    if content[:4] == b"PAR1":
        return _read_parquet(content, place)
    if content[:2] == b"PK":
        raise BadInput(f"{place}: a zip archive or a spreadsheet; save it as CSV or Parquet")
    if content[:2] == b"\x1f\x8b":
        raise BadInput(f"{place}: a gzip archive; unpack it first")
    return _read_csv(content, place)


def _read_csv(content: bytes, place: str) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptData(f"{place}: neither Parquet nor UTF-8 text (byte {error.start})") from None
    first = text.split("\n", 1)[0]
    if first.lstrip()[:1] == "<":
        raise CorruptData(f"{place}: an HTML or XML page, not a CSV file")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            rows.append(row or [""])  # an empty line is a row with one empty cell
            lines.append(reader.line_num)
    except csv.Error as error:
        raise CorruptData(f"{place}: line {reader.line_num}: {error}") from None
    while rows and rows[-1] == [""] and len(header) != 1:
        rows.pop()
    while rows and rows[-1] == [""]:
        rows.pop()
    if not any(header):
        raise CorruptData(f"{place}: the file is empty; a CSV file starts with a line of column names")
    _check_header(header, place)
    for row, line in zip(rows, lines, strict=False):
        if len(row) != len(header):
            what = "the line is empty" if row == [""] else f"{len(row)} cells, where the header has {len(header)}"
            raise CorruptData(f"{place}: line {line}: {what}")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return Table(place, columns, lines[: len(rows)])


def _check_header(header: list[str], place: str) -> None:
    for i, name in enumerate(header):
        if name in header[:i]:
            raise CorruptData(f"{place}: two columns are called {quoted(name)}")
    try:
        [float(name) for name in header]
    except ValueError:
        return
    raise CorruptData(f"{place}: the first line holds numbers, where the names of the columns belong")


def _read_parquet(content: bytes, place: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_rows * file.metadata.num_columns > MAX_VALUES:
            raise BadInput(f"{place}: holds more than {MAX_VALUES} values")
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise CorruptData(f"{place}: damaged Parquet file ({' '.join(str(error).split())[:120]})") from None
    _check_header_names(table.column_names, place)
    return Table(place, {name: table.column(name).combine_chunks() for name in table.column_names}, None)


def _check_header_names(names: list[str], place: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise CorruptData(f"{place}: two columns are called {quoted(twice)}")


def check_steps(table: Table, name: str, times: NDArray, gaps_allowed: bool) -> None:
    """Check that `times` [row] increase, and by equal steps (a calendar month counts as one) unless gaps are allowed.

    Raises:
        CorruptData: naming the first row that is out of order, twice there, or after a gap.
    """
    if len(times) < 2:
        return
    zero = times.dtype.type(0, "us") if times.dtype.kind == "M" else 0.0
    differences = times[1:] - times[:-1]
    wrong = np.flatnonzero(differences <= (zero - zero))
    if wrong.size:
        row = int(wrong[0]) + 1
        what = "is there twice" if times[row] == times[row - 1] else f"comes after {times[row - 1]}"
        raise CorruptData(f"{table.place}: {table.at(row)}, column {quoted(name)}: {times[row]} {what}")
    if gaps_allowed:
        return
    late = min((_uneven(clock) for clock in _clocks(times)), key=len)
    if late.size:
        row = int(late[0]) + 1
        raise CorruptData(
            f"{table.place}: {table.at(row)}, column {quoted(name)}: the step from {times[row - 1]} to {times[row]} "
            'differs from the others; fill the gap, or set gaps = "ignore" to count rows instead of time'
        )


def _clocks(times: NDArray) -> list[NDArray]:
    """Return ways to count time in equal steps: as it is; for dates also by month, from its start or its end."""
    if times.dtype.kind != "M":
        return [times]
    clocks = [times.astype(np.int64).astype(np.float64)]
    for shifted in (times, times + np.timedelta64(1, "D")):
        months = shifted.astype("datetime64[M]")
        if len(np.unique(shifted - months.astype(times.dtype))) == 1:
            clocks.append(months.astype(np.int64).astype(np.float64))
    return clocks


def _uneven(clock: NDArray) -> NDArray:
    """Return where the step differs from the median one."""
    steps = np.diff(clock)
    usual = float(np.median(steps))
    # Decimal times such as 0.1, 0.2, 0.3 are rounded to binary: allow for that and no more.
    slack = 1e-6 * abs(usual) + 4 * np.finfo(np.float64).eps * float(np.max(np.abs(clock)))
    return np.flatnonzero(np.abs(steps - usual) > slack)
