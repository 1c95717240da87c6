"""Rows told apart by number: of each day and value of a key, in an order that does not depend on that of the rows."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines import sql
from pipelines.key_groups import NULL, Groups, group_by

DAY = date(2026, 1, 1)
ROWS = pd.DataFrame(
    {
        "event_day": [DAY, DAY, DAY - timedelta(days=2), DAY, DAY, DAY - timedelta(days=2)],
        "user": ["u1", "u2", "u1", None, "u1", "u3"],
        "tab": ["a", "b", "a", "a", "b", None],
    }
)


def grouped(rows: pd.DataFrame, *keys: tuple[str, ...]) -> dict[tuple[str, ...], Groups]:
    with sql.connect(rows=pa.Table.from_pandas(rows, preserve_index=False)) as connection:
        return group_by(connection, "rows", keys)


def told(groups: Groups, row: int) -> tuple[date, str | None]:
    """Day and value of a row's group."""
    group = groups.of_row[row]
    return date(1970, 1, 1) + timedelta(days=int(groups.days[group])), groups.values[group].as_py()


def test_a_row_is_in_the_group_of_its_day_and_value() -> None:
    groups = grouped(ROWS, (), ("user",), ("user", "tab"))
    for number, row in enumerate(ROWS.to_dict("records")):
        user, tab = (None if pd.isna(row[name]) else row[name] for name in ("user", "tab"))
        values = ("", user, None if user is None or tab is None else f"{user}\x1f{tab}")
        found = [told(groups[key], number) for key in ((), ("user",), ("user", "tab"))]
        assert found == [(row["event_day"], value) for value in values]
    assert (len(groups[()]), len(groups["user",])) == (2, 5)


def test_hashes_ascend_within_a_day_and_do_not_depend_on_the_order_of_rows() -> None:
    one, other = (grouped(rows, ("user", "tab"))["user", "tab"] for rows in (ROWS, ROWS[::-1]))
    assert np.array_equal(one.days, np.sort(one.days))
    assert all(np.all(np.diff(one.hashes[one.days == day]) >= 0) for day in set(one.days))
    known = one.hashes != NULL
    assert one.values.is_valid().to_numpy(zero_copy_only=False).tolist() == known.tolist()
    for left, right in ((one.days, other.days), (one.hashes, other.hashes)):
        assert np.array_equal(left, right)
    assert one.values.equals(other.values)


def test_no_rows_have_no_groups() -> None:
    with sql.connect() as connection:
        connection.execute('CREATE TEMP TABLE rows (event_day DATE, "user" VARCHAR)')
        groups = group_by(connection, "rows", [("user",)])["user",]
    assert (len(groups), len(groups.of_row)) == (0, 0)


def test_many_rows_are_numbered_in_the_order_in_which_they_are_read() -> None:
    """Threads read parts of a table each: what they find must still stand side by side with its row."""
    with sql.connect() as connection:
        connection.execute(
            "CREATE TEMP TABLE rows AS SELECT DATE '2026-01-01' - CAST(n % 2 AS INTEGER) AS event_day, "
            "CASE WHEN n % 7 > 0 THEN 'u' || (n * 7919) % 40009 END AS \"user\" FROM range(500000) AS numbers(n)"
        )
        groups = group_by(connection, "rows", [("user",)])["user",]
        read = pa.Table.from_batches(sql.stream(connection, 'SELECT "user" FROM rows')).column(0)
    assert groups.values.take(pa.array(groups.of_row)).equals(read.combine_chunks())


def test_sums_and_sizes_of_groups() -> None:
    groups = grouped(ROWS, ("tab",))["tab",]
    sums, b = groups.sums(np.arange(6.0)), groups.values.index("b").as_py()
    assert (sums[b], sums.sum(), groups.sizes()[b], groups.sizes().sum()) == (5.0, 15.0, 2, 6)
