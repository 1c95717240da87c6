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

import duckdb

from pipelines import labels, sql
from pipelines.config import Recommender, history_feature, last_seen_feature

ALL = ""
"""The key of all rows together: what a rate is smoothed towards."""
_JOINT = "\x1f"


@dataclass(frozen=True)
class Lookup:
    """A table with features of the value of a key on a day: columns `__moment`, `__value`, and the features.

    Attributes:
        table: its name.
        value: an SQL expression: the value for a row that asks.
    """

    table: str
    value: str


@dataclass(frozen=True)
class _Measure:
    """A column of `daily_counts`, the days until it is known, and whether its sums are whole numbers."""

    name: str
    delay: int
    exact: bool


def key_name(key: tuple[str, ...]) -> str:
    """What `daily_counts` calls a key."""
    return "_x_".join(key)


def key_value(key: tuple[str, ...]) -> str:
    """An SQL expression: the value of a key, null where one of its columns is null."""
    parts = [sql.name(column) for column in key]
    return parts[0] if len(parts) == 1 else f" || {sql.text(_JOINT)} || ".join(parts)


def daily_counts(config: Recommender, events: str) -> str:
    """A query: the sums per key and event day of the relation `events` (which has labels and key columns), in order.

    Columns: event_day, key, value, rows, and for each task `<task>_rows` (where it is defined) and `<task>_sum`.
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
    return f"SELECT * FROM ({union}) ORDER BY key, value, event_day"


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
    connection: duckdb.DuckDBPyConnection, config: Recommender, rows: str, keys: Iterable[tuple[str, ...]]
) -> list[Lookup]:
    """Leave a table with the history features of each key, for the days and values of the relation `rows`.

    Expects the relation `daily_counts` of all days that may be looked at. Without any earlier day a count is 0 and a
    rate null; a key that was never seen has the rate of all rows. One key at a time, for the memory's sake.
    """
    _leave_sums(connection, config, rows, ALL, sql.text(ALL))
    connection.execute("CREATE OR REPLACE TEMP TABLE everyone AS SELECT * FROM asked LEFT JOIN sums USING (__id)")
    found = []
    for number, key in enumerate(keys):
        lookup = Lookup(f"history{number}", key_value(key))
        _leave_sums(connection, config, rows, key_name(key), lookup.value)
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {lookup.table} AS "
            f"SELECT asked.__moment, asked.__value, {', '.join(_features(config, key))} FROM asked "
            "LEFT JOIN sums AS k USING (__id) JOIN everyone AS a ON a.__moment = asked.__moment"
        )
        found.append(lookup)
    return found


def join(rows: str, found: Sequence[Lookup]) -> str:
    """A query: the relation `rows` (with event_day and the keys' columns) with the features of the lookups."""
    joins = " ".join(
        f"LEFT JOIN {one.table} ON {one.table}.__moment = event_day AND {one.table}.__value IS NOT DISTINCT FROM "
        f"{one.value}"
        for one in found
    )
    columns = "".join(f", {one.table}.* EXCLUDE (__moment, __value)" for one in found)
    return f"SELECT {rows}.*{columns} FROM {rows} {joins}"


def leave_asked(connection: duckdb.DuckDBPyConnection, rows: str, value: str) -> None:
    """Leave the table `asked`: each day and value that the relation `rows` asks for, with a number `__id`."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE asked AS SELECT CAST(row_number() OVER () AS INTEGER) AS __id, * FROM "
        f"(SELECT DISTINCT event_day AS __moment, {value} AS __value FROM {rows})"
    )


def _leave_sums(connection: duckdb.DuckDBPyConnection, config: Recommender, rows: str, key: str, value: str) -> None:
    """Leave the tables `asked` and `sums`: for each number that was asked for, the sums over each window.

    First by bands of days, which most of the rows fall into one of, then over the bands of each window.
    """
    history = config.features.history
    assert history is not None
    leave_asked(connection, rows, value)
    measures = _measures(config)
    edges = sorted({measure.delay + days for measure in measures for days in (0, *history.days)} - {0})
    band = " ".join(f"WHEN __moment - c.event_day <= {edge} THEN {edge}" for edge in edges)
    daily = ", ".join(
        f"{_sum(f'c.{sql.name(m.name)}', m.exact, 'c.event_day, c.ds')}{_known_after(m.delay)} AS {sql.name(m.name)}"
        for m in measures
    )
    windows = ", ".join(
        f"{_sum(sql.name(m.name), m.exact, '__band')} FILTER (__band > {m.delay} AND __band <= {m.delay + days}) "
        f"AS {sql.name(f'{m.name}_{days}d')}"
        for m in measures
        for days in history.days
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE sums AS WITH banded AS ("
        f"SELECT __id, CASE {band} END AS __band, min(__moment - c.event_day) AS __age, {daily} "
        f"FROM asked JOIN daily_counts AS c ON c.value = __value WHERE c.key = {sql.text(key)} AND c.ds < __moment "
        f"AND c.event_day < __moment AND c.event_day >= __moment - {edges[-1]} GROUP BY ALL) "
        f"SELECT __id, min(__age) FILTER (__band <= {max(history.days)}) AS __age, {windows} FROM banded GROUP BY __id"
    )


def _known_after(delay: int) -> str:
    """An SQL filter: rows that came in so long ago that their labels were known before the moment."""
    return f" FILTER (c.ds < __moment - {delay})" if delay else ""


def _measures(config: Recommender) -> list[_Measure]:
    found = [_Measure("rows", 0, exact=True)]
    for task in config.tasks:
        delay = labels.delay_days(config, task)
        found.append(_Measure(f"{task.name}_rows", delay, exact=True))
        found.append(_Measure(f"{task.name}_sum", delay, exact=task.kind == "binary"))
    return found


def _features(config: Recommender, key: tuple[str, ...]) -> list[str]:
    """SQL expressions: the features of one key, from its sums (`k`) and the sums of all rows (`a`).

    Rates are single precision, as the model reads them.
    """
    history = config.features.history
    assert history is not None
    expressions = []
    for days in history.days:
        name = sql.name(history_feature(key, days, "rows"))
        expressions.append(f"CAST(coalesce(k.{sql.name(f'rows_{days}d')}, 0) AS BIGINT) AS {name}")
        for task in config.tasks:
            total, hits = sql.name(f"{task.name}_rows_{days}d"), sql.name(f"{task.name}_sum_{days}d")
            name = sql.name(history_feature(key, days, f"{task.name}_rate"))
            expressions.append(
                f"CAST((coalesce(k.{hits}, 0) + {history.smoothing} * a.{hits} / nullif(a.{total}, 0)) "
                f"/ (coalesce(k.{total}, 0) + {history.smoothing}) AS FLOAT) AS {name}"
            )
    if history.days_since_last:
        expressions.append(f"CAST(k.__age AS INTEGER) AS {sql.name(last_seen_feature(key))}")
    return expressions
