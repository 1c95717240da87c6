"""What happened before: counts and smoothed rates per key, over windows of days strictly before the event.

Each day leaves its sums per key in the table `daily_counts`; a feature is a sum over days. A row counts for an event
when both the day it happened and the day it came in lie before the event's day: late rows leak nothing. Where a task's
labels are known only days later, its windows end as many days earlier:

    days before the event           6   5   4   3   2   1   event
    rows, a window of 3 days                    [-------]
    a task whose labels take 2          [-------]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import labels, sql
from pipelines.config import Recommender, history_feature, last_seen_feature
from pipelines.window_sums import Measure, WindowSums

ALL = ""
"""The key of all rows together: what a rate is smoothed towards."""
_JOINT = "\x1f"
_NULL, _NOBODY = -1, -2
"""What stands for hashes: of a missing value, which rows may ask for and no day has counted; and of none at all."""


@dataclass(frozen=True)
class Lookup:
    """A table with features of the value of a key on a day: columns `__moment`, `__value`, and the features.

    Attributes:
        table: its name.
        value: an SQL expression: the value for a row that asks.
    """

    table: str
    value: str


def key_name(key: tuple[str, ...]) -> str:
    """What `daily_counts` calls a key."""
    return "_x_".join(key)


def key_value(key: tuple[str, ...]) -> str:
    """An SQL expression: the value of a key, null where one of its columns is null."""
    parts = [sql.name(column) for column in key]
    return parts[0] if len(parts) == 1 else f" || {sql.text(_JOINT)} || ".join(parts)


def daily_counts(config: Recommender, events: str) -> str:
    """A query: the sums per key and event day of the relation `events` (which has labels and key columns), in order.

    Columns: event_day, key, value, its hash, rows, and for each task `<task>_rows` (where it is defined) and
    `<task>_sum`.
    """
    assert config.features.history is not None
    keys: list[tuple[str, str]] = [(ALL, "''")]
    keys += [(key_name(key), key_value(key)) for key in config.features.history.keys]
    sums = ", ".join(_sums_of(task.name, task.kind == "binary") for task in config.tasks)
    union = " UNION ALL ".join(
        f"SELECT event_day, {sql.text(name)} AS key, {value} AS value, CAST(count(*) AS INTEGER) AS rows, {sums} "
        f"FROM {events} WHERE {value} IS NOT NULL GROUP BY ALL"
        for name, value in keys
    )
    # Tells that the day was counted by this key, where nothing has a value: of a hash that nobody asks for.
    nothing = "".join(
        f", CAST(0 AS INTEGER) AS rows_{n}, CAST(0 AS DOUBLE) AS sum_{n}" for n, _ in enumerate(config.tasks)
    )
    names = ", ".join(f"({sql.text(name)})" for name, _ in keys[1:])
    union += f" UNION ALL SELECT first, name, NULL, CAST(0 AS INTEGER){nothing} FROM (VALUES {names}) AS names(name), "
    union += f"(SELECT min(event_day) AS first FROM {events})"
    hashed = f"SELECT *, coalesce({_hash('value')}, {_NOBODY}) AS hash FROM ({union})"
    return f"{hashed} ORDER BY key, hash, value, event_day"


def _hash(value: str) -> str:
    """An SQL expression: half of a text's MD5, as a whole number above 0; the same in every version of DuckDB."""
    return f"CAST(md5_number_lower({value}) >> 1 AS BIGINT)"


def _sums_of(task: str, exact: bool) -> str:
    label = sql.name(f"label_{task}")
    total = _sum(label, exact, label)
    return (
        f"CAST(count({label}) AS INTEGER) AS {sql.name(f'{task}_rows')}, "
        f"coalesce({total}, 0.0) AS {sql.name(f'{task}_sum')}"
    )


def _sum(column: str, exact: bool, order: str) -> str:
    """An SQL aggregate: a sum as a double. Whole numbers add up to the same in any order; others need one."""
    return f"sum(CAST({column} AS DOUBLE){'' if exact else f' ORDER BY {order}'})"


def longest_look_back(config: Recommender) -> int:
    """How many days before an event the oldest row lies that its features may see."""
    history = config.features.history
    assert history is not None
    delays = {task.name: labels.delay_days(config, task) for task in config.tasks}
    recent = [one.days + (delays[one.task] if one.task else 0) for one in history.recent]
    return max(*recent, max(history.days) + max(delays.values()), 0)


def lookups(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    rows: str,
    keys: Iterable[tuple[str, ...]],
    counts: Iterable[tuple[date, pa.RecordBatch]],
    counted: str | None = None,
) -> list[Lookup]:
    """Leave a table with the history features of each key, for the days and values of the relation `rows`.

    Without any earlier day a count is 0 and a rate null; a key that was never seen has the rate of all rows.

    Args:
        connection: computes.
        config: says which features there are.
        rows: has event_day and the keys' columns.
        keys: of which history is looked up.
        counts: what `daily_counts` left, with the day that brought it, for all days that may be looked at.
        counted: the relation that `daily_counts` made of `rows`, which saves looking for distinct values once more.
    """
    history = config.features.history
    assert history is not None
    values = {ALL: sql.text(ALL)} | {key_name(key): key_value(key) for key in keys}
    asked = {name: _asked(connection, rows, name, value, counted) for name, value in values.items()}
    sums = WindowSums(history.days, measures(config), {name: _sorted(table) for name, table in asked.items()})
    for ds, batch in counts:
        sums.add(ds, batch)
    connection.register("past", _side_by_side(asked.pop(ALL), sums.result(ALL)))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE everyone AS SELECT * FROM past WHERE __value = {sql.text(ALL)}")
    found = []
    for number, key in enumerate(keys):
        lookup, name = Lookup(f"history{number}", key_value(key)), key_name(key)
        connection.register("past", _side_by_side(asked.pop(name), sums.result(name)))
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {lookup.table} AS SELECT k.__moment, k.__value, "
            f"{', '.join(_features(config, key))} FROM past AS k JOIN everyone AS a ON a.__moment = k.__moment"
        )
        connection.unregister("past")
        found.append(lookup)
    return found


def _asked(connection: duckdb.DuckDBPyConnection, rows: str, name: str, value: str, counted: str | None) -> pa.Table:
    """Each day and value of a key that the relation `rows` asks for, and null, with their hashes, sorted by these."""
    if counted is None:
        distinct = f"SELECT DISTINCT event_day, {value} AS value FROM {rows} WHERE {value} IS NOT NULL"
        known = f"SELECT event_day, value, {_hash('value')} AS hash FROM ({distinct})"
    else:
        known = f"SELECT event_day, value, hash FROM {counted} WHERE key = {sql.text(name)} AND value IS NOT NULL"
    nothing = f"SELECT DISTINCT event_day, NULL AS value, {_NULL} AS hash FROM {rows}"
    query = f"SELECT event_day AS __moment, value AS __value, hash AS __hash FROM ({known} UNION ALL {nothing})"
    return sql.fetch(connection, f"{query} ORDER BY __moment, __hash, __value")


def _sorted(asked: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    return asked.column("__moment").cast(pa.int32()).to_numpy(), asked.column("__hash").to_numpy()


def _side_by_side(asked: pa.Table, sums: pa.Table) -> pa.Table:
    for name in sums.column_names:
        asked = asked.append_column(name, sums.column(name))
    return asked


def join(rows: str, found: Sequence[Lookup]) -> str:
    """A query: the relation `rows` (with event_day and the keys' columns) with the features of the lookups."""
    joins = " ".join(
        f"LEFT JOIN {one.table} ON {one.table}.__moment = event_day AND {one.table}.__value IS NOT DISTINCT FROM "
        f"{one.value}"
        for one in found
    )
    columns = "".join(f", {one.table}.* EXCLUDE (__moment, __value)" for one in found)
    return f"SELECT {rows}.*{columns} FROM {rows} {joins}"


def measures(config: Recommender) -> list[Measure]:
    """The columns of `daily_counts` that are summed, and the days until each is known."""
    found = [Measure("rows", 0)]
    for task in config.tasks:
        delay = labels.delay_days(config, task)
        # Most tasks are defined on all rows.
        found += [Measure(f"{task.name}_rows", delay, None if delay else "rows"), Measure(f"{task.name}_sum", delay)]
    return found


def _features(config: Recommender, key: tuple[str, ...]) -> list[str]:
    """SQL expressions: the features of one key, from its sums (`k`) and the sums of all rows (`a`).

    All are single precision, as the model reads them: whole numbers could not be missing in its input.
    """
    history = config.features.history
    assert history is not None
    expressions = []
    for days in history.days:
        name = sql.name(history_feature(key, days, "rows"))
        expressions.append(f"CAST(coalesce(k.{sql.name(f'rows_{days}d')}, 0) AS FLOAT) AS {name}")
        for task in config.tasks:
            total, hits = sql.name(f"{task.name}_rows_{days}d"), sql.name(f"{task.name}_sum_{days}d")
            name = sql.name(history_feature(key, days, f"{task.name}_rate"))
            expressions.append(
                f"CAST((coalesce(k.{hits}, 0) + {history.smoothing} * a.{hits} / nullif(a.{total}, 0)) "
                f"/ (coalesce(k.{total}, 0) + {history.smoothing}) AS FLOAT) AS {name}"
            )
    if history.days_since_last:
        expressions.append(f"CAST(k.__age AS FLOAT) AS {sql.name(last_seen_feature(key))}")
    return expressions
