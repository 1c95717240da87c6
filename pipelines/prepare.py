"""One day of examples: labels, raw feature values, and history as of each event."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from pipelines import history, labels, recent, sql
from pipelines.catalog import Sides
from pipelines.config import Recommender, feature_columns
from pipelines.sampling import made_negatives
from pipelines.tables import TableName, Tables, snapshots
from recsys_moe.config import Side
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

_KEY = pa.dictionary(pa.int32(), pa.string())


def prepare(config: Recommender, ds: date) -> dict[str, Any]:
    """Publish the examples of day `ds`, one a row of the log, and what the day leaves for the history of days to come.

    Days before it whose labels `ds` makes known are made again. Days may come in any order: those that `ds` looks back
    at and that were never prepared leave their history first. A day is held on disk where memory does not suffice.

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
    for day in _without_history(config, tables, days):
        with _connect(config) as connection:
            _leave_history(connection, config, tables, sides_of(config, tables), day)
    results = {day: _prepare_day(config, tables, day) for day in days}
    again = [day.isoformat() for day in days if day != ds]
    return {"step": "prepare", "ds": ds.isoformat(), **results[ds], "prepared_again": again}


def _without_history(config: Recommender, tables: Tables, days: list[date]) -> list[date]:
    """The ingested days that events of `days` look back at and that were never prepared, oldest first.

    They would be missing in the features, and days could only be prepared in order.
    """
    if config.features.history is None:
        return []
    with sql.connect() as connection:
        sql.view(connection, "log", tables.dataset("interactions"), pc.field("ds").isin(days))
        first = sql.value(connection, "SELECT min(event_day) FROM log")
    since = _oldest_seen(config, first)
    left = {*days, *_days_with_history(config, tables, since)}
    return [day for day in tables.days("interactions") if since <= day < max(days) and day not in left]


def _days_with_history(config: Recommender, tables: Tables, since: date) -> list[date]:
    """The days from `since` on that have left counts for all keys and tasks that the YAML names now."""
    if not tables.exists("daily_counts"):
        return []
    assert config.features.history is not None
    keys = {history.ALL, *(history.key_name(key) for key in config.features.history.keys)}
    seen: dict[date, set[str]] = {}
    for ds, fragment in _fragments(tables, pc.field("ds") >= since):
        if set(_counted_columns(config)) <= set(fragment.physical_schema.names):
            column = fragment.to_table(columns=["key"], schema=pa.schema([("key", _KEY)])).column("key")
            seen.setdefault(ds, set()).update(*(chunk.dictionary.to_pylist() for chunk in column.chunks))
    return [ds for ds, found in seen.items() if keys <= found]


def _connect(config: Recommender) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    return sql.connect(config.columns.timezone, spill=config.workspace / "scratch")


def _prepare_day(config: Recommender, tables: Tables, ds: date) -> dict[str, Any]:
    with _connect(config) as connection:
        sides = sides_of(config, tables)
        versions = _leave_history(connection, config, tables, sides, ds)
        if config.sampling.make_negatives:
            _leave_events(connection, config, sides, f"({made_negatives(connection, config, tables, ds, 'labelled')})")
        # What is counted is what is asked for, but for negatives that were made.
        counted = None if config.sampling.make_negatives else "counted"
        rows = with_features(connection, config, tables, "events", through=ds - timedelta(days=1), counted=counted)
        # The events are in order, and joins keep that of their left side as long as sides are not swapped and one
        # thread does it all. (The files are encoded in another.)
        connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        connection.execute("SET threads = 1")
        connection.execute("SET TimeZone = 'UTC'")
        versions["examples"] = tables.replace_day("examples", ds, sql.stream(connection, rows))
        count = sql.value(connection, "SELECT count(*) FROM events")
    log.info("prepared %s: %d examples", ds, count)
    return {"examples": count, "versions": versions}


def _leave_history(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, sides: Sides, ds: date
) -> dict[TableName, int]:
    """Publish what day `ds` is for the history of later days. Leaves the tables `labelled`, `events` and `counted`."""
    _leave_log(connection, config, tables, ds)
    _leave_events(connection, config, sides, "labelled")
    versions: dict[TableName, int] = {}
    written = config.features.history
    if written and written.recent:
        last = sql.stream(connection, recent.daily_recent(config, "events"))
        versions["daily_recent"] = tables.replace_day("daily_recent", ds, last)
    if written:
        # The last of what a day leaves: one that has its counts has left all.
        connection.execute(f"CREATE OR REPLACE TEMP TABLE counted AS {history.daily_counts(config, 'events')}")
        counts = sql.stream(connection, "SELECT * FROM counted")
        versions["daily_counts"] = tables.replace_day("daily_counts", ds, counts)
    return versions


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
    counted: str | None = None,
) -> str:
    """A query: the relation `rows` with its numbers as numbers, lists as lists, and history features.

    `rows` has event_day and may have a part of the raw columns: a user's alone, say, for scoring. `keys` are the
    history keys to look up, all where None; lists are looked up for the columns that `rows` has. History is read
    through the day `through` at most. `counted` is what `history.daily_counts` made of `rows`, if that is there.
    """
    present = {row[0] for row in connection.execute(f"DESCRIBE {rows}").fetchall()}
    # History keys are raw text, which typing may turn into numbers or lists: look up first, type after.
    found = _lookups(connection, config, tables, rows, present, through, keys, counted)
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
    counted: str | None,
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
    since = _oldest_seen(config, first)
    found = []
    if wanted:
        counts = _daily_counts(config, tables, since, through)
        found += history.lookups(connection, config, rows, wanted, counts, counted)
    if recents:
        sql.view(connection, "daily_recent", _known(tables, "daily_recent"), _days(since, through))
        found += recent.lookups(connection, config, rows, recents)
    return found


def _oldest_seen(config: Recommender, event_day: date) -> date:
    """The first day whose rows may be in the history of an event."""
    # An event may lie a day after the one that brought it (`columns.tolerance_minutes`).
    return event_day - timedelta(days=history.longest_look_back(config) + 1)


def _daily_counts(
    config: Recommender, tables: Tables, since: date, through: date
) -> Iterator[tuple[date, pa.RecordBatch]]:
    """What the days that events may look at have left, day by day."""
    columns, fragments = _counted_columns(config), []
    for ds, fragment in _fragments(tables, _days(since, through)):
        lacking = [column for column in columns if column not in fragment.physical_schema.names]
        if lacking:
            raise UserError(
                f"{tables.path('daily_counts')}: {ds} has no column {lacking[0]!r}: it is of another YAML or version; "
                f"run `recsys-moe prepare --as-of {ds}` again"
            )
        fragments.append(fragment)
    if not fragments:
        return
    schema = pa.schema([fragments[0].physical_schema.field(column) for column in columns])
    schema = schema.set(0, pa.field("key", _KEY))
    whole = pyarrow.dataset.FileSystemDataset(fragments, schema, fragments[0].format, fragments[0].filesystem)
    # Read a little ahead of what is added up.
    for tagged in whole.scanner(batch_readahead=2, fragment_readahead=2).scan_batches():
        yield _day_of(tagged.fragment), tagged.record_batch


def _day_of(fragment: pyarrow.dataset.Fragment) -> date:
    day: date = pyarrow.dataset.get_partition_keys(fragment.partition_expression)["ds"]
    return day


def _counted_columns(config: Recommender) -> list[str]:
    return ["key", "event_day", "hash", *(measure.name for measure in history.measures(config))]


def _fragments(tables: Tables, days: pc.Expression) -> Iterator[tuple[date, pyarrow.dataset.ParquetFileFragment]]:
    """The files of `daily_counts`, in the order of days, whenever these were written: sums of fractions depend on it.

    Keys are read as numbers that stand for them: their few names are on every row.
    """
    named = pyarrow.dataset.ParquetFileFormat(dictionary_columns=["key"])
    for found in sorted(_known(tables, "daily_counts").get_fragments(filter=days), key=lambda one: one.path):
        fragment = named.make_fragment(found.path, found.filesystem, found.partition_expression)
        yield _day_of(found), fragment


def _known(tables: Tables, name: TableName) -> pyarrow.dataset.FileSystemDataset:
    if not tables.exists(name):
        raise UserError(f"{tables.path(name)}: there is no history yet; run `recsys-moe prepare` first")
    return tables.dataset(name)


def _days(since: date, through: date) -> pc.Expression:
    """Days that events may look at. One may lie a day after the one that brought it (`columns.tolerance_minutes`)."""
    return (pc.field("ds") >= since - timedelta(days=1)) & (pc.field("ds") <= through)


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
