"""One day of examples: labels, raw feature values, and history as of each event."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow.compute as pc

from pipelines import history, labels, recent, sql
from pipelines.catalog import Sides
from pipelines.config import Recommender, feature_columns
from pipelines.sampling import made_negatives
from pipelines.tables import TableName, Tables, snapshots
from recsys_moe.config import Side
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def prepare(config: Recommender, ds: date) -> dict[str, Any]:
    """Publish the examples of day `ds`, one a row of the log, and what the day leaves for the history of days to come.

    Days before it whose labels `ds` makes known are made again. A day is held on disk where memory does not suffice.

    Raises:
        UserError: the day was not ingested.
    """
    tables = Tables(config.storage)
    rejected = tables.path("rejected")
    if ds not in tables.days("interactions"):
        raise UserError(
            f"{ds}: has no rows; run `recsys-moe ingest --as-of {ds}` first, and if it accepts none see {rejected}"
        )
    days = labels.days_to_prepare(config, tables, ds)
    results = {day: _prepare_day(config, tables, day) for day in days}
    again = [day.isoformat() for day in days if day != ds]
    return {"step": "prepare", "ds": ds.isoformat(), **results[ds], "prepared_again": again}


def _prepare_day(config: Recommender, tables: Tables, ds: date) -> dict[str, Any]:
    versions: dict[TableName, int] = {}
    with sql.connect(config.columns.timezone, spill=config.workspace / "scratch") as connection:
        sides = sides_of(config, tables)
        _leave_log(connection, config, tables, ds)
        _leave_events(connection, config, sides, "labelled")
        queries = _leaves_for_later(config)
        for name, query in queries.items():
            versions[name] = tables.replace_day(name, ds, sql.stream(connection, query))
        if config.sampling.make_negatives:
            _leave_events(connection, config, sides, f"({made_negatives(connection, config, tables, ds, 'labelled')})")
        rows = with_features(connection, config, tables, "events", through=ds - timedelta(days=1))
        # The events are in order, and joins keep that of their left side as long as sides are not swapped and one
        # thread does it all. (The files are encoded in another.)
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        connection.execute("SET threads = 1")
        connection.execute("SET TimeZone = 'UTC'")
        versions["examples"] = tables.replace_day("examples", ds, sql.stream(connection, rows))
        count = sql.value(connection, "SELECT count(*) FROM events")
    log.info("prepared %s: %d examples", ds, count)
    return {"examples": count, "versions": versions}


def _leaves_for_later(config: Recommender) -> dict[TableName, str]:
    """Queries over `events`: what the history of later days is made of."""
    written = config.features.history
    queries: dict[TableName, str] = {}
    if written:
        queries["daily_counts"] = history.daily_counts(config, "events")
    if written and written.recent:
        queries["daily_recent"] = recent.daily_recent(config, "events")
    return queries


def sides_of(config: Recommender, tables: Tables) -> Sides:
    """Whose property each column is, by the tables that ingest filled."""
    users = snapshots.columns(tables, "users") if tables.exists("users") else []
    items = snapshots.columns(tables, "items") if tables.exists("items") else []
    named = set(feature_columns(config))
    return Sides.of(config, [c for c in users if c in named], [c for c in items if c in named])


def with_features(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    tables: Tables,
    rows: str,
    *,
    through: date,
    keys: Iterable[tuple[str, ...]] | None = None,
) -> str:
    """A query: the relation `rows` with its numbers as numbers, lists as lists, and history features.

    `rows` has event_day and may have a part of the raw columns: a user's alone, say, for scoring. `keys` are the
    history keys to look up, all where None; lists are looked up for the columns that `rows` has. History is read
    through the day `through` at most.
    """
    present = {row[0] for row in connection.execute(f"DESCRIBE {rows}").fetchall()}
    # History keys are raw text, which typing may turn into numbers or lists: look up first, type after.
    found = _lookups(connection, config, tables, rows, present, through, keys)
    known = ", ".join(map(sql.name, sorted(present)))
    return f"SELECT {_typed(config, present)}, * EXCLUDE ({known}) FROM ({history.join(rows, found)})"


def _lookups(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    tables: Tables,
    rows: str,
    present: set[str],
    through: date,
    keys: Iterable[tuple[str, ...]] | None,
) -> list[history.Lookup]:
    """Leave the tables that hold the history of `rows`."""
    written = config.features.history
    if written is None:
        return []
    # Late rows look further back than the day they came in does.
    first = sql.value(connection, f"SELECT min(event_day) FROM {rows}") or through
    wanted, recents = (
        tuple(written.keys if keys is None else keys),
        [one for one in written.recent if one.key in present],
    )
    since = first - timedelta(days=history.longest_look_back(config))
    found = []
    if wanted:
        _view_days(connection, tables, "daily_counts", since, through)
        found += history.lookups(connection, config, rows, wanted)
    if recents:
        _view_days(connection, tables, "daily_recent", since, through)
        found += recent.lookups(connection, config, rows, recents)
    return found


def _view_days(
    connection: duckdb.DuckDBPyConnection, tables: Tables, name: TableName, since: date, through: date
) -> None:
    """Make the days of a table that events may look at a view of its name."""
    if not tables.exists(name):
        raise UserError(f"{tables.path(name)}: there is no history yet; run `recsys-moe prepare` first")
    # An event may lie a day after the one that brought it (`columns.tolerance_minutes`).
    days = (pc.field("ds") >= since - timedelta(days=1)) & (pc.field("ds") <= through)
    sql.view(connection, name, tables.dataset(name), days)


def _leave_log(connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date) -> None:
    """Leave `labelled`, the day's log with labels, and `users` and `items` where there are any."""
    sql.view(connection, "whole_log", tables.dataset("interactions"), pc.field("ds") == ds)
    connection.execute("CREATE TEMP VIEW log AS SELECT * EXCLUDE (ds) FROM whole_log")
    query = labels.with_labels(connection, config, tables, ds, "log")
    kept = "TABLE" if config.sampling.make_negatives else "VIEW"
    connection.execute(f"CREATE TEMP {kept} labelled AS {query}")
    entities: tuple[TableName, ...] = ("users", "items")
    for name in entities:
        if snapshots.exists(tables, name, ds):
            snapshots.view(connection, tables, name, ds, name)


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
    order = ", ".join(sql.name(c) for c in ("event_time", config.columns.user, config.columns.item, "source_row"))
    rest = ", COLUMNS(*)" if config.sampling.make_negatives else ""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE events AS SELECT * EXCLUDE (source_row) FROM ("
        f"SELECT * EXCLUDE (source_file){_weight(config)}{derived} FROM {labelled} AS labelled{joins} "
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


def _typed(config: Recommender, present: set[str]) -> str:
    """SQL expressions: the present columns, numbers cast, lists split, dates turned into days until the event."""
    features = config.features
    columns = {column: sql.name(column) for column in sorted(present)}
    for column in present & set(features.multivalued):
        quoted = sql.name(column)
        columns[column] = f"[trim(part) FOR part IN string_split({quoted}, {sql.text(features.separator)})] AS {quoted}"
    for feature in features.numeric:
        source = feature.days_since or feature.name
        if source not in present:
            continue
        raw, name = f"CAST({sql.name(source)} AS VARCHAR)", sql.name(feature.name)
        if feature.days_since:
            columns[feature.name] = f"CAST(event_day - TRY_CAST({raw} AS DATE) AS DOUBLE) AS {name}"
        else:
            columns[feature.name] = f"TRY_CAST({raw} AS DOUBLE) AS {name}"
    return ", ".join(columns.values())
