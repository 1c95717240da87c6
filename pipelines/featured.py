"""Rows with their features: numbers as numbers, lists as lists, and history as of each row's day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import duckdb
import pyarrow as pa

from pipelines import history, past_days, recent, sql
from pipelines.config import Recommender
from pipelines.key_groups import Groups, Key, group_by
from pipelines.tables import Tables


def with_features(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    tables: Tables,
    rows: str,
    *,
    through: date,
    keys: Iterable[Key] | None = None,
    groups: Mapping[Key, Groups] | None = None,
) -> pa.RecordBatchReader:
    """The relation `rows` as it is ordered, its columns typed, with history features. Read it to its end.

    `rows` has event_day and may have a part of the raw columns: a user's alone, say, for scoring. `keys` are the
    history keys to look up, all where None; lists are looked up for the columns that `rows` has. History is read
    through the day `through` at most. `groups` are those of `rows` by all keys, if they are there.
    """
    present = {row[0] for row in connection.execute(f"DESCRIBE {rows}").fetchall()}
    found = _looked_up(connection, config, tables, rows, present, through, keys, groups)
    typed = sql.stream(connection, f"SELECT {_typed(config, present)} FROM {rows}")
    schema = typed.schema
    for one in found:
        for name, values in one.features.items():
            schema = schema.append(pa.field(name, values.type))
    return pa.RecordBatchReader.from_batches(schema, _side_by_side(typed, found, schema))


@dataclass(frozen=True)
class _Found:
    """Features of the groups of rows by one key."""

    groups: Groups
    features: Mapping[str, pa.Array]


def _side_by_side(typed: pa.RecordBatchReader, found: Iterable[_Found], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in typed:
        columns = batch.columns
        for one in found:
            mine = pa.array(one.groups.of_row[start : start + len(batch)])
            columns += [values.take(mine) for values in one.features.values()]
        start += len(batch)
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _looked_up(
    connection: duckdb.DuckDBPyConnection,
    config: Recommender,
    tables: Tables,
    rows: str,
    present: set[str],
    through: date,
    keys: Iterable[Key] | None,
    groups: Mapping[Key, Groups] | None,
) -> list[_Found]:
    written = config.features.history
    if written is None:
        return []
    # Late rows look further back than the day they came in does.
    first = sql.value(connection, f"SELECT min(event_day) FROM {rows}") or through
    since = past_days.oldest_seen(config, first)
    found: dict[Key, dict[str, pa.Array]] = {}
    wanted = tuple(written.keys if keys is None else keys)
    recents = [one for one in written.recent if one.key in present]
    asked = [*([history.ALL, *wanted] if wanted else []), *((one.key,) for one in recents)]
    missing = [key for key in asked if key not in (groups or {})]
    groups = {**(groups or {}), **group_by(connection, rows, missing)}
    if wanted:
        counts = past_days.daily_counts(config, tables, since, through)
        found |= history.look_up(config, wanted, groups, counts)
    if recents:
        past_days.view_recent(connection, tables, since, through)
        for key, lists in recent.look_up(connection, config, recents, groups).items():
            found[key] = found.get(key, {}) | lists
    return [_Found(groups[key], features) for key, features in found.items()]


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
