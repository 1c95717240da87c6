"""One day of examples: labels, raw feature values, and history as of each event."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow.compute as pc

from pipelines import history, labels, made_of, past_days, recent, sql
from pipelines.catalog import Sides, model_features
from pipelines.config import Recommender, feature_columns
from pipelines.errors import RaceLostError
from pipelines.featured import with_features
from pipelines.key_groups import Groups, Key, group_by
from pipelines.sampling import made_negatives
from pipelines.tables import TableName, Tables, snapshots
from pipelines.tables.publishing import attempts
from recsys_moe.config import Side
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def prepare(config: Recommender, ds: date, alone: bool = False) -> dict[str, Any]:
    """Publish the examples of day `ds`, one a row of the log, and what the day leaves for the history of days to come.

    Days before it whose labels `ds` makes known are made again, and later days that look back at it, where it was not
    there or was another. Those that `ds` looks back at and that were never prepared leave their history first. So days
    may come in any order, and several at once. A day is held on disk where memory does not suffice.

    Args:
        config: the recommender.
        ds: the day.
        alone: leave those that look back at it to `catch_up`, with which a training begins: of many days in a row, none
            is then made again for each day before it.

    Raises:
        UserError: the day was not ingested.
        TryAgainError: other processes prepare the same days all the time.
    """
    tables = Tables(config.storage)
    rejected = tables.path("rejected")
    if ds not in tables.days("interactions"):
        raise UserError(
            f"{ds}: has no rows; run `recsys-moe ingest --as-of {ds}` first, and if it accepts none see {rejected}"
        )
    model_features(config, sides_of(config, tables))  # what cannot be a feature is told before there is a training
    days = labels.days_to_prepare(config, tables, ds)
    for day in _without_history(config, tables, days):
        with suppress(RaceLostError):  # another process has left it
            _leave_history_alone(config, tables, day)
    results = _prepare_all(config, tables, days, only=frozenset(days) if alone else None)
    again = [day.isoformat() for day in sorted(results) if day != ds]
    return {"step": "prepare", "ds": ds.isoformat(), **results[ds], "prepared_again": again}


def catch_up(config: Recommender) -> list[date]:
    """Prepare again every day that was made of something else than is there now. Returns which.

    Raises:
        TryAgainError: other processes prepare the same days all the time.
    """
    again = sorted(_prepare_all(config, Tables(config.storage), []))
    if again:
        log.info(
            "prepared again, since days that they look back at came in late or anew: %s", ", ".join(map(str, again))
        )
    return again


def _prepare_all(
    config: Recommender, tables: Tables, days: list[date], only: Collection[date] | None = None
) -> dict[date, dict[str, Any]]:
    """Prepare days, and what is out of date from the first of them on, until nothing is. Returns each result.

    With `only`, other days may stay out of date; without `days`, all that there are count.
    """
    results: dict[date, dict[str, Any]] = {}
    due = days
    for _ in attempts(tables.path("examples")):
        for day in due:
            with suppress(RaceLostError):  # another process is at this day, too
                results[day] = _prepare_day(config, tables, day)
        out_of_date = made_of.out_of_date(config, tables, min(days, default=date.min))
        lost = [day for day in days if day not in results]
        due = sorted({*lost, *(day for day in out_of_date if only is None or day in only)})
        if not due:
            return results
    raise AssertionError("the last attempt has raised")


def _without_history(config: Recommender, tables: Tables, days: list[date]) -> list[date]:
    """The ingested days that events of `days` look back at and that were never prepared, oldest first.

    They would be missing in the features, and days could only be prepared in order.
    """
    if config.features.history is None:
        return []
    since = past_days.oldest_seen(config, past_days.first_event_day(tables, days))
    left = {*days, *past_days.days_with_history(config, tables, since)}
    return [day for day in tables.days("interactions") if since <= day < max(days) and day not in left]


def _connect(config: Recommender) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    return sql.connect(config.columns.timezone, spill=config.workspace / "scratch")


def _leave_history_alone(config: Recommender, tables: Tables, ds: date) -> None:
    inputs = made_of.Present(config, tables).inputs(ds)
    with _connect(config) as connection:
        _leave_history(connection, config, tables, sides_of(config, tables), ds)
    made_of.note(tables, ds, inputs)


def _prepare_day(config: Recommender, tables: Tables, ds: date) -> dict[str, Any]:
    present = made_of.Present(config, tables)
    inputs, (since, looked_at) = present.inputs(ds), present.looked_at(ds)
    with _connect(config) as connection:
        sides = sides_of(config, tables)
        versions, groups = _leave_history(connection, config, tables, sides, ds)
        if config.sampling.make_negatives:
            _leave_events(connection, config, sides, f"({made_negatives(connection, config, tables, ds, 'labelled')})")
            groups = None  # what was counted are the rows without these
        connection.execute("SET TimeZone = 'UTC'")
        rows = with_features(connection, config, tables, "events", through=ds - timedelta(days=1), groups=groups)
        versions["examples"] = tables.replace_day("examples", ds, rows)
        count = sql.value(connection, "SELECT count(*) FROM events")
    left = made_of.Present(config, Tables(config.storage, versions)).left(ds)
    made_of.note(tables, ds, {**looked_at, **inputs, **left}, since)
    log.info("prepared %s: %d examples", ds, count)
    return {"examples": count, "versions": versions}


def _leave_history(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, sides: Sides, ds: date
) -> tuple[dict[TableName, int], dict[Key, Groups] | None]:
    """Publish what day `ds` is for the history of later days. Leaves the tables `labelled` and `events`.

    Returns: the tables' versions, and the groups of `events` by all keys.
    """
    _leave_log(connection, config, tables, ds)
    _leave_events(connection, config, sides, "labelled")
    versions: dict[TableName, int] = {}
    written = config.features.history
    if written is None:
        return versions, None
    if written.recent:
        connection.execute("SET TimeZone = 'UTC'")  # Delta tables have no other
        last = sql.stream(connection, recent.daily_recent(config, "events"))
        versions["daily_recent"] = tables.replace_day("daily_recent", ds, last)
        connection.execute(f"SET TimeZone = {sql.text(config.columns.timezone)}")
    # The last of what a day leaves: one that has its counts has left all.
    groups = group_by(connection, "events", [history.ALL, *written.keys])
    counts = history.daily_counts(connection, config, "events", groups)
    versions["daily_counts"] = tables.replace_day("daily_counts", ds, counts)
    return versions, groups


def sides_of(config: Recommender, tables: Tables) -> Sides:
    """Whose property each column is, by the tables that ingest filled."""
    users = snapshots.columns(tables, "users") if tables.exists("users") else []
    items = snapshots.columns(tables, "items") if tables.exists("items") else []
    named = set(feature_columns(config))
    return Sides.of(config, [c for c in users if c in named], [c for c in items if c in named])


def _leave_log(connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date) -> None:
    """Leave `labelled`, the day's log with labels, and `users` and `items` where there are any."""
    sql.view(connection, "whole_log", tables.dataset("interactions"), pc.field("ds") == ds)
    connection.execute("CREATE TEMP VIEW log AS SELECT * EXCLUDE (ds) FROM whole_log")
    query = labels.with_labels(connection, config, tables, ds, "log")
    kept = "TABLE" if config.sampling.make_negatives else "VIEW"
    connection.execute(f"CREATE TEMP {kept} labelled AS {query}")
    entities: tuple[TableName, ...] = ("users", "items")
    for name in entities:
        # An event knows what was known at the end of the day before, as scoring does; the first day has only its own.
        known = [day for day in (ds - timedelta(days=1), ds) if snapshots.exists(tables, name, day)]
        if known:
            snapshots.view(connection, tables, name, known[0], name)


def _leave_events(connection: duckdb.DuckDBPyConnection, config: Recommender, sides: Sides, labelled: str) -> None:
    """Leave the table `events`: the rows of `labelled` with what is known of user and item, and the derived columns.

    In order of time, user, item and place in the log; what is equal in all of that is made, and in order of the rest.
    """
    joins = ""
    entities: tuple[tuple[str, str, Side], ...] = (
        ("users", config.columns.user, "user"),
        ("items", config.columns.item, "item"),
    )
    for relation, key, side in entities:
        if _has(connection, relation):
            found = [column for column in sides.columns(side) if column != key]
            picked = ", ".join(sql.name(c) for c in (key, *found))
            joins += f" LEFT JOIN (SELECT {picked} FROM {relation}) AS {relation} USING ({sql.name(key)})"
    derived = derived_columns(connection, labelled)
    columns = ("event_time", config.columns.user, config.columns.item, "source_file", "source_row")
    order = ", ".join(map(sql.name, columns))
    rest = ", COLUMNS(*)" if config.sampling.make_negatives else ""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE events AS SELECT * EXCLUDE (source_file, source_row) FROM ("
        f"SELECT *{_weight(config)}{derived} FROM {labelled} AS labelled{joins} "
        f"ORDER BY {order}{rest})"
    )


def _weight(config: Recommender) -> str:
    """An SQL expression behind a comma: the row's weight in training, 1 where it is missing; empty without weights."""
    if config.columns.weight is None:
        return ""
    return f", coalesce(TRY_CAST({sql.name(config.columns.weight)} AS DOUBLE), 1.0) AS row_weight"


def _has(connection: duckdb.DuckDBPyConnection, relation: str) -> bool:
    return bool(sql.value(connection, f"SELECT count(*) FROM duckdb_views() WHERE view_name = {sql.text(relation)}"))


def derived_columns(connection: duckdb.DuckDBPyConnection, relation: str) -> str:
    """SQL expressions, each behind a comma: the derived columns that the relation does not bring itself."""
    # In lower case, as SQL compares names: a log with an `Hour` of its own keeps that.
    present = {row[0].lower() for row in connection.execute(f"DESCRIBE {relation}").fetchall()}
    made = {"hour": "hour(event_time)", "weekday": "isodow(event_time)"}
    return "".join(f", CAST({how} AS VARCHAR) AS {name}" for name, how in made.items() if name not in present)
