"""What happened before: counts and smoothed rates per key, over windows of days strictly before the event.

Each day leaves its sums per key in the table `daily_counts`; a feature is a sum over days. A row counts for an event
when both the day it happened and the day it came in lie before the event's day: late rows leak nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from pipelines import sql
from pipelines.config import Recommender, history_feature

ALL = ""
"""The key of all rows together: what a rate is smoothed towards."""
_JOINT = "\x1f"


def key_value(key: tuple[str, ...]) -> str:
    """An SQL expression: the value of a key, null where one of its columns is null."""
    parts = [sql.name(column) for column in key]
    return parts[0] if len(parts) == 1 else f" || {sql.text(_JOINT)} || ".join(parts)


def daily_counts(config: Recommender, events: str) -> str:
    """A query: the sums per key and event day of the relation `events` (which has labels and key columns).

    Columns: event_day, key, value, rows, and for each task `<task>_rows` (where it is defined) and `<task>_sum`.
    """
    assert config.features.history is not None
    keys: list[tuple[str, str]] = [(ALL, "''")]
    keys += [("_x_".join(key), key_value(key)) for key in config.features.history.keys]
    sums = ", ".join(
        f"count({label}) AS {sql.name(f'{task}_rows')}, coalesce(sum({label}), 0.0) AS {sql.name(f'{task}_sum')}"
        for task, label in ((task.name, sql.name(f"label_{task.name}")) for task in config.tasks)
    )
    return " UNION ALL ".join(
        f"SELECT event_day, {sql.text(name)} AS key, {value} AS value, count(*) AS rows, {sums} "
        f"FROM {events} WHERE {value} IS NOT NULL GROUP BY ALL"
        for name, value in keys
    )


def join_history(
    connection: duckdb.DuckDBPyConnection, config: Recommender, rows: str, keys: Iterable[tuple[str, ...]]
) -> str:
    """A query: the relation `rows` (with event_day and the keys' columns) with the history features of `keys`.

    Expects the relation `daily_counts` of all days that may be looked at. Without any earlier day a count is 0 and a
    rate null; a key that was never seen has the rate of all rows.
    """
    assert config.features.history is not None
    keys = tuple(keys)
    connection.execute(f"CREATE OR REPLACE TEMP TABLE asked AS {_asked(rows, keys)}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE past AS {_past(config)}")
    joins, features = [], []
    for number, key in enumerate(keys):
        alias = f"k{number}"
        joins.append(
            f"LEFT JOIN past AS {alias} ON {alias}.key = {sql.text('_x_'.join(key))} "
            f"AND {alias}.moment = r.event_day AND {alias}.value = r.__key{number}"
        )
        features += _features(config, key, alias)
    values = ", ".join(f"{key_value(key)} AS __key{number}" for number, key in enumerate(keys))
    names = ", ".join(f"__key{number}" for number, _ in enumerate(keys))
    return (
        f"WITH r AS (SELECT *, {values} FROM {rows}) SELECT r.* EXCLUDE ({names}), {', '.join(features)} FROM r "
        f"LEFT JOIN past AS a ON a.key = {sql.text(ALL)} AND a.moment = r.event_day {' '.join(joins)}"
    )


def _asked(rows: str, keys: tuple[tuple[str, ...], ...]) -> str:
    """A query: the moments and key values of the relation `rows`, each once."""
    pairs = [(ALL, "''"), *(("_x_".join(key), key_value(key)) for key in keys)]
    return " UNION ALL ".join(
        f"SELECT DISTINCT event_day AS moment, {sql.text(name)} AS key, {value} AS value FROM {rows}"
        for name, value in pairs
    )


def _past(config: Recommender) -> str:
    """A query: per moment and key that is asked for, the sums over each window that ends the day before."""
    assert config.features.history is not None
    measures = ["rows", *(f"{task.name}_{what}" for task in config.tasks for what in ("rows", "sum"))]
    sums = ", ".join(
        f"sum(CAST({sql.name(measure)} AS DOUBLE)) FILTER (c.event_day >= moment - {days}) "
        f"AS {sql.name(f'{measure}_{days}d')}"
        for days in config.features.history.days
        for measure in measures
    )
    longest = max(config.features.history.days)
    return (
        f"SELECT moment, key, value, {sums} FROM asked JOIN daily_counts AS c USING (key, value) "
        f"WHERE c.event_day < moment AND c.ds < moment AND c.event_day >= moment - {longest} GROUP BY ALL"
    )


def _features(config: Recommender, key: tuple[str, ...], alias: str) -> list[str]:
    """SQL expressions: the features of one key, from its sums (`alias`) and the sums of all rows (`a`)."""
    assert config.features.history is not None
    smoothing = config.features.history.smoothing
    expressions = []
    for days in config.features.history.days:
        rows = sql.name(f"rows_{days}d")
        name = sql.name(history_feature(key, days, "rows"))
        expressions.append(f"coalesce({alias}.{rows}, 0) AS {name}")
        for task in config.tasks:
            total, hits = sql.name(f"{task.name}_rows_{days}d"), sql.name(f"{task.name}_sum_{days}d")
            name = sql.name(history_feature(key, days, f"{task.name}_rate"))
            expressions.append(
                f"(coalesce({alias}.{hits}, 0) + {smoothing} * a.{hits} / nullif(a.{total}, 0)) "
                f"/ (coalesce({alias}.{total}, 0) + {smoothing}) AS {name}"
            )
    return expressions
