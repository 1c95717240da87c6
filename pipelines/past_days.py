"""What prepared days have left for the history of later ones: which days have, and their rows, read day by day."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import date, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from pipelines import history, sql
from pipelines.config import Recommender
from pipelines.tables import TableName, Tables
from recsys_moe.errors import UserError

_KEY = pa.dictionary(pa.int32(), pa.string())


def oldest_seen(config: Recommender, event_day: date) -> date:
    """The first day whose rows may be in the history of an event."""
    # An event may lie a day after the one that brought it (`columns.tolerance_minutes`).
    return event_day - timedelta(days=history.longest_look_back(config) + 1)


def first_event_day(tables: Tables, days: Collection[date]) -> date:
    """The first day on which a row of these ingested days happened: late rows happened before. Footers tell it."""
    chosen = tables.dataset("interactions").get_fragments(filter=pc.field("ds").isin(pa.array(days, pa.date32())))
    footers = [fragment.metadata for fragment in chosen]
    column = footers[0].schema.names.index("event_day")
    groups = [footer.row_group(number) for footer in footers for number in range(footer.num_row_groups)]
    # Of a day that was only of people who were forgotten, no row is left.
    return min((group.column(column).statistics.min for group in groups if group.num_rows), default=min(days))


def days_with_history(config: Recommender, tables: Tables, since: date) -> list[date]:
    """The days from `since` on that have left counts for all keys and tasks that the YAML names now."""
    if not tables.exists("daily_counts"):
        return []
    assert config.features.history is not None
    keys = set(map(history.key_name, [history.ALL, *config.features.history.keys]))
    seen: dict[date, set[str]] = {}
    for ds, fragment in _fragments(tables, pc.field("ds") >= since):
        if set(_counted_columns(config)) <= set(fragment.physical_schema.names):
            column = fragment.to_table(columns=["key"], schema=pa.schema([("key", _KEY)])).column("key")
            seen.setdefault(ds, set()).update(*(chunk.dictionary.to_pylist() for chunk in column.chunks))
    return [ds for ds, found in seen.items() if keys <= found]


def daily_counts(
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
    return ["key", "event_day", history.HASH, *(measure.name for measure in history.measures(config))]


def _fragments(tables: Tables, days: pc.Expression) -> Iterator[tuple[date, pyarrow.dataset.ParquetFileFragment]]:
    """The files of `daily_counts`, in the order of days, whenever these were written: sums of fractions depend on it.

    Keys are read as numbers that stand for them: their few names are on every row.
    """
    named = pyarrow.dataset.ParquetFileFormat(dictionary_columns=["key"])
    for found in sorted(_known(tables, "daily_counts").get_fragments(filter=days), key=lambda one: one.path):
        fragment = named.make_fragment(found.path, found.filesystem, found.partition_expression)
        yield _day_of(found), fragment


def view_recent(connection: duckdb.DuckDBPyConnection, tables: Tables, since: date, through: date) -> None:
    """Leave the view `daily_recent` of those days."""
    sql.view(connection, "daily_recent", _known(tables, "daily_recent"), _days(since, through))


def _known(tables: Tables, name: TableName) -> pyarrow.dataset.FileSystemDataset:
    if not tables.exists(name):
        raise UserError(f"{tables.path(name)}: there is no history yet; run `recsys-moe prepare` first")
    return tables.dataset(name)


def _days(since: date, through: date) -> pc.Expression:
    return (pc.field("ds") >= since) & (pc.field("ds") <= through)
