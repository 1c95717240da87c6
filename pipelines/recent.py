"""The last values that a key was seen with, as lists: a user's last items, say, newest first.

Each day leaves the last of each key in the table `daily_recent`; a list is the last of these over the days before the
event. As in `pipelines.history`, both the day an event happened and the day it came in lie before the event's day.
Events of one moment are in the order of their values, so that a list does not depend on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from pipelines import labels, sql
from pipelines.config import Recent, Recommender
from pipelines.history import Lookup


def daily_recent(config: Recommender, events: str) -> str:
    """A query: the last events of each key and event day of the relation `events`, in order.

    Columns: event_day, key (the feature's name), value, event_time, item (the value that the list is of).
    """
    assert config.features.history is not None
    union = " UNION ALL ".join(
        f"SELECT event_day, {sql.text(one.feature)} AS key, {sql.name(one.key)} AS value, event_time, "
        f"{sql.name(one.of)} AS item FROM {events} WHERE {_is_counted(one)} "
        f"QUALIFY row_number() OVER (PARTITION BY event_day, {sql.name(one.key)} "
        f"ORDER BY event_time DESC, {sql.name(one.of)}) <= {one.last}"
        for one in config.features.history.recent
    )
    return f"SELECT * FROM ({union}) ORDER BY key, value, event_time DESC, item, event_day"


def _is_counted(recent: Recent) -> str:
    """An SQL condition: the row has both columns, and, where a task is named, its label is above 0."""
    rule = f"{sql.name(recent.key)} IS NOT NULL AND {sql.name(recent.of)} IS NOT NULL"
    return f"{rule} AND {sql.name(f'label_{recent.task}')} > 0" if recent.task else rule


def lookups(
    connection: duckdb.DuckDBPyConnection, config: Recommender, rows: str, recents: Iterable[Recent]
) -> list[Lookup]:
    """Leave a table with the list of each of `recents`, for the days and values of the relation `rows`.

    Expects the relation `daily_recent` of all days that may be looked at. A key that was never seen has no list (null).
    """
    delays = {task.name: labels.delay_days(config, task) for task in config.tasks}
    found = []
    for number, one in enumerate(recents):
        lookup, delay = Lookup(f"recent{number}", sql.name(one.key)), delays[one.task] if one.task else 0
        _leave_asked(connection, rows, lookup.value)
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {lookup.table} AS WITH newest AS ("
            "SELECT __moment, __value, event_time, item FROM asked JOIN daily_recent AS d ON d.value = __value "
            f"WHERE d.key = {sql.text(one.feature)} AND d.ds < __moment - {delay} "
            f"AND d.event_day < __moment - {delay} AND d.event_day >= __moment - {delay + one.days} "
            "QUALIFY row_number() OVER (PARTITION BY __id ORDER BY event_time DESC, item) "
            f"<= {one.last}) SELECT __moment, __value, list(item ORDER BY event_time DESC, item) "
            f"AS {sql.name(one.feature)} FROM newest GROUP BY ALL"
        )
        found.append(lookup)
    return found


def _leave_asked(connection: duckdb.DuckDBPyConnection, rows: str, value: str) -> None:
    """Leave the table `asked`: each day and value that the relation `rows` asks for, with a number `__id`."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE asked AS SELECT CAST(row_number() OVER () AS INTEGER) AS __id, * FROM "
        f"(SELECT DISTINCT event_day AS __moment, {value} AS __value FROM {rows})"
    )
