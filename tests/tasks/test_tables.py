"""Steps in time that are equal, and steps that are not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta

import numpy as np
import pytest

from rnnbench.errors import CorruptData
from rnnbench.tasks.tables import Table, check_steps, read_table


def month(i: int) -> date:
    return date(2000 + i // 12, i % 12 + 1, 1)


EVEN: dict[str, Callable[[int], object]] = {
    "counts": lambda i: i,
    "negative counts": lambda i: i - 100,
    "tenths": lambda i: i * 0.1,
    "seconds since 1970": lambda i: 1.7e9 + i * 0.25,
    "days": lambda i: date(2024, 2, 1) + timedelta(days=i),
    "weeks": lambda i: date(2024, 2, 1) + timedelta(weeks=i),
    "hours": lambda i: datetime(2024, 2, 28) + timedelta(hours=i),
    "milliseconds": lambda i: datetime(2024, 2, 28, 0, 0, 0, 500000) + timedelta(milliseconds=i + 1),
    "months": month,
    "months as such": lambda i: month(i).isoformat()[:7],
    "quarters": lambda i: month(3 * i),
    "years": lambda i: month(12 * i),
    "middles of months": lambda i: month(i).replace(day=15),
    "ends of months": lambda i: month(i + 1) - timedelta(days=1),
}


def times(values: list[object]) -> Table:
    return read_table(("t\n" + "\n".join(map(str, values)) + "\n").encode(), "t.csv")


@pytest.mark.parametrize("kind", EVEN)
def test_even_steps_pass_and_a_gap_is_found(kind: str) -> None:
    values = [EVEN[kind](i) for i in range(50)]
    table = times(values)
    check_steps(table, "t", table.times("t"), False)
    table = times(values[:30] + values[31:])
    with pytest.raises(CorruptData, match=r"line 32, .*differs from the others"):
        check_steps(table, "t", table.times("t"), False)
    check_steps(table, "t", table.times("t"), True)
    table = times([*values[:30], values[29], *values[30:]])
    for gaps_allowed in (False, True):
        with pytest.raises(CorruptData, match=r"line 32, .*there twice"):
            check_steps(table, "t", table.times("t"), gaps_allowed)
    table = times([*values[:30], values[20], *values[30:]])
    with pytest.raises(CorruptData, match=r"line 32, .*comes after"):
        check_steps(table, "t", table.times("t"), True)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_dialects(delimiter: str, end: str, mark: str) -> None:
    text = (
        mark + end.join(delimiter.join(row) for row in (("a", " b "), ("1", "2"), ("-3e2", ' "4"'.strip()))) + end + end
    )
    table = read_table(text.encode(), "t.csv")
    assert table.numbers("a").tolist() == [1.0, -300.0]
    assert table.numbers("b").tolist() == [2.0, 4.0]


def test_lines_are_counted_as_an_editor_does() -> None:
    table = read_table(b'a,b\n1,"two\nlines"\n3,x\n', "t.csv")
    assert table.lines == [3, 4]
    with pytest.raises(CorruptData, match="line 4"):
        read_table(b'a,b\n1,2\n"3",4\nx,5\n', "t.csv").numbers("a")


def test_numbers_are_exact() -> None:
    values = [0.1, 1e-300, 123456789.123456789, -2.5e17]
    assert times(list(values)).numbers("t").tolist() == values
    assert np.array_equal(times(["1", "2"]).times("t"), [1.0, 2.0])
