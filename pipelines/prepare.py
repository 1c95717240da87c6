"""One day of examples: labels, raw feature values, and history as of each event."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import history, sql
from pipelines.catalog import Sides
from pipelines.config import Recommender, TaskSource, feature_columns
from pipelines.tables import TableName, Tables
from recsys_moe.config import Side
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def prepare(config: Recommender, ds: date) -> dict[str, Any]:
    """Publish the examples of day `ds`, one a row of the log, and the day's counts for the days to come.

    Raises:
        UserError: the day was not ingested.
    """
    tables = Tables(config.storage)
    rejected = tables.path("rejected")
    if ds not in tables.days("interactions"):
        raise UserError(
            f"{ds}: has no rows; run `recsys-moe ingest --as-of {ds}` first, and if it accepts none see {rejected}"
        )
    versions = {}
    with sql.connect(config.columns.timezone, **_day_of(tables, ds)) as connection:
        sides = sides_of(config, tables)
        connection.execute(f"CREATE TEMP TABLE events AS {_events(connection, config, sides)}")
        if config.features.history:
            counts = sql.fetch(connection, f"{history.daily_counts(config, 'events')} ORDER BY ALL")
            versions["daily_counts"] = tables.replace_day("daily_counts", ds, counts)
        rows = with_features(connection, config, tables, "events", through=ds - timedelta(days=1))
        order = ", ".join(sql.name(c) for c in ("event_time", config.columns.user, config.columns.item, "source_row"))
        examples = sql.fetch(connection, f"SELECT * EXCLUDE (source_row) FROM ({rows}) ORDER BY {order}")
    place = examples.schema.get_field_index("event_time")
    examples = examples.set_column(place, "event_time", examples.column(place).cast(pa.timestamp("us", "UTC")))
    versions["examples"] = tables.replace_day("examples", ds, examples)
    log.info("prepared %s: %d examples, %d columns", ds, len(examples), examples.num_columns)
    return {"step": "prepare", "ds": ds.isoformat(), "examples": len(examples), "versions": versions}


def sides_of(config: Recommender, tables: Tables) -> Sides:
    """Whose property each column is, by the tables that ingest filled."""
    users = tables.dataset("users").schema.names if tables.exists("users") else []
    items = tables.dataset("items").schema.names if tables.exists("items") else []
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
    history keys to look up, all where None. History is read through the day `through` at most.
    """
    present = {row[0] for row in connection.execute(f"DESCRIBE {rows}").fetchall()}
    connection.execute(f"CREATE OR REPLACE TEMP VIEW typed AS SELECT {_typed(config, present)} FROM {rows}")
    wanted = tuple(config.features.history.keys if config.features.history and keys is None else keys or ())
    if not wanted:
        return "SELECT * FROM typed"
    # Late rows look further back than the day they came in does.
    first = sql.value(connection, f"SELECT min(event_day) FROM {rows}") or through
    connection.register("daily_counts", _counts(config, tables, first, through))
    # History keys are raw text, which `typed` may have turned into numbers or lists: look up first, type after.
    joined = history.join_history(connection, config, rows, wanted)
    known = ", ".join(map(sql.name, sorted(present)))
    return f"SELECT {_typed(config, present)}, * EXCLUDE ({known}) FROM ({joined})"


def _counts(config: Recommender, tables: Tables, first: date, through: date) -> pa.Table:
    """The daily counts through the day `through` that events from the day `first` on may look at."""
    assert config.features.history is not None
    if not tables.exists("daily_counts"):
        raise UserError(f"{tables.path('daily_counts')}: there is no history yet; run `recsys-moe prepare` first")
    since = first - timedelta(days=max(config.features.history.days))
    seen = (pc.field("ds") <= through) & (pc.field("event_day") >= since)
    return tables.dataset("daily_counts").to_table(filter=seen)


def _day_of(tables: Tables, ds: date) -> dict[str, pa.Table]:
    """The day's log, users and items as relations; no relation where there is no such table."""
    log_rows = tables.read_day("interactions", ds)
    relations = {"log": log_rows.drop_columns(["ds"])}
    entities: tuple[TableName, ...] = ("users", "items")
    for name in entities:
        if tables.exists(name):
            relations[name] = tables.read_day(name, ds).drop_columns(["ds"])
    return relations


def _events(connection: duckdb.DuckDBPyConnection, config: Recommender, sides: Sides) -> str:
    """A query: the log's rows with labels, what is known of user and item, and the derived columns."""
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
    labels = ", ".join(f"{_label(config, task)} AS {sql.name(f'label_{task.name}')}" for task in config.tasks)
    left_out = ", ".join(sql.name(c) for c in [*config.label_columns, "source_file"])
    derived = derived_columns(connection, "log")
    return f"SELECT * EXCLUDE ({left_out}), {labels}{derived} FROM log{joins}"


def _has(connection: duckdb.DuckDBPyConnection, relation: str) -> bool:
    return bool(sql.value(connection, f"SELECT count(*) FROM duckdb_views() WHERE view_name = {sql.text(relation)}"))


def derived_columns(connection: duckdb.DuckDBPyConnection, relation: str) -> str:
    """SQL expressions, each behind a comma: the derived columns that the relation does not bring itself."""
    # In lower case, as SQL compares names: a log with an `Hour` of its own keeps that.
    present = {row[0].lower() for row in connection.execute(f"DESCRIBE {relation}").fetchall()}
    made = {"hour": "hour(event_time)", "weekday": "isodow(event_time)"}
    return "".join(f", CAST({how} AS VARCHAR) AS {name}" for name, how in made.items() if name not in present)


def _label(config: Recommender, task: TaskSource) -> str:
    """An SQL expression: the task's label; null where the column is, or where the task it is given is not 1."""
    assert task.label is not None
    value = sql.name(task.label)
    rules = [f"{value} >= {task.at_least}"] if task.at_least is not None else []
    rules += [f"{value} <= {task.at_most}"] if task.at_most is not None else []
    if rules:
        value = f"CAST({' AND '.join(rules)} AS DOUBLE)"
    if task.given is None:
        return value
    parent = next(other for other in config.tasks if other.name == task.given)
    return f"CASE WHEN {_label(config, parent)} = 1 THEN {value} END"


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
