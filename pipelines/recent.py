"""The last values that a key was seen with, as lists: a user's last items, say, newest first.

Each day leaves the last of each key in the table `daily_recent`; a list is the last of these over the days before the
event. As in `pipelines.history`, both the day an event happened and the day it came in lie before the event's day.
Events of one moment are in the order of their values, so that a list does not depend on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import duckdb
import numpy as np
import pyarrow as pa

from pipelines import labels, sql
from pipelines.config import Recent, Recommender
from pipelines.key_groups import Groups, Key


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


def look_up(
    connection: duckdb.DuckDBPyConnection, config: Recommender, recents: Iterable[Recent], groups: Mapping[Key, Groups]
) -> dict[Key, dict[str, pa.Array]]:
    """The list of each of `recents`, a value for each group of its key, by the key and the feature's name.

    Expects the relation `daily_recent` of all days that may be looked at. A key that was never seen has no list (null).

    Args:
        connection: computes.
        config: says how late labels are known.
        recents: which lists.
        groups: of the rows that ask, by each list's key.
    """
    delays = {task.name: labels.delay_days(config, task) for task in config.tasks}
    found: dict[Key, dict[str, pa.Array]] = {}
    for one in recents:
        delay, by = delays[one.task] if one.task else 0, groups[one.key,]
        connection.register("asked", _asked(by))
        lists = sql.fetch(
            connection,
            "WITH newest AS (SELECT __id, event_time, item FROM asked JOIN daily_recent AS d ON d.value = __value "
            f"WHERE d.key = {sql.text(one.feature)} AND d.ds < __moment - {delay} "
            f"AND d.event_day < __moment - {delay} AND d.event_day >= __moment - {delay + one.days} "
            "QUALIFY row_number() OVER (PARTITION BY __id ORDER BY event_time DESC, item) "
            f"<= {one.last}) SELECT __id, list(item ORDER BY event_time DESC, item) AS items FROM newest GROUP BY __id",
        )
        connection.unregister("asked")
        found.setdefault((one.key,), {})[one.feature] = _spread(lists, len(by))
    return found


def _asked(by: Groups) -> pa.Table:
    """Each day and value that rows ask for, with its number `__id`."""
    days = pa.array(by.days).view(pa.date32())
    return pa.table({"__id": np.arange(len(by), dtype=np.int32), "__moment": days, "__value": by.values})


def _spread(lists: pa.Table, count: int) -> pa.Array:
    """[count] the list of each number, null for those without one."""
    place = np.full(count, -1, np.int64)
    place[lists.column("__id").to_numpy()] = np.arange(len(lists))
    items = lists.column("items").combine_chunks().cast(pa.list_(pa.string()))
    return items.take(pa.array(place, mask=place < 0))
