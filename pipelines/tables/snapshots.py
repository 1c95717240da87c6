"""Users and items as they were on each day, with what did not change stored once.

A day's partition of the table holds the rows that differ from the snapshot of the day known before it: new ones,
changed ones, and for each key that is gone a row with `removed`. One more row, without a key, tells that the day is
known when nothing changed. The snapshot of a day is each key's newest row up to it, without the removed ones:

    ds          user  city   removed          snapshot of 01-05: a Rome, b Oslo
    2026-01-05  a     Rome   false            snapshot of 01-06: a Rome, b Bern
    2026-01-05  b     Oslo   false            snapshot of 01-07: b Bern
    2026-01-06  b     Bern   false
    2026-01-07  a     null   true             (and a row without a key for each of the three days)

The key is the table's first column.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from pipelines import sql
from pipelines.tables import TableName, Tables
from pipelines.tables.files import DayFiles
from pipelines.tables.publishing import Place, attempts, commit, days_of, schema_of
from pipelines.tables.schemas import merged, written
from recsys_moe.errors import UserError

_OWN = ("removed", "ds")


def publish(
    tables: Tables,
    name: TableName,
    ds: date,
    rows: pa.Table | pa.RecordBatchReader,
    key: str,
    spill: Path | None = None,
) -> int:
    """Make `rows` the snapshot of day `ds`. Returns the table's version that has it.

    The snapshots of all other known days stay what they are, also of later ones: the day known after `ds` is stored
    anew, as it differs from this one, in the same commit. So days may come in any order, more than once, and from
    several processes at once. Rows that the snapshot has already change nothing.

    Args:
        rows: the whole snapshot, without `ds`; no two rows with the same key.
        key: the column that tells users (or items) apart.
        spill: the folder for what does not fit the memory that `sql.connect` allows; without it, there is no limit.

    Raises:
        UserError: rows without a key or with the same, a column called `removed`, or a column of another kind than in
            the table.
    """
    place = tables.place(name)
    schema = _of_rows(place, rows.schema, key)
    with sql.connect(spill=spill, given=rows) as connection:
        connection.execute("CREATE TEMP TABLE restated AS SELECT * FROM given")
        _check_keys(connection, place, ds, key)
        for _ in attempts(place.path):
            try:
                return _publish(connection, place, ds, schema)
            except CommitFailedError:
                continue
    raise AssertionError("the last attempt has raised")


def read(tables: Tables, name: TableName, ds: date) -> pa.Table:
    """The snapshot as of the end of `ds`: that of the newest known day up to it, sorted by key.

    Raises:
        UserError: no day up to `ds` is known.
    """
    dataset = _known(tables, name, ds)
    with sql.connect() as connection:
        _view(connection, "snapshot", ds, dataset, dataset.schema)
        return sql.fetch(connection, f"SELECT * FROM snapshot ORDER BY {sql.name(dataset.schema.names[0])}")


def view(connection: duckdb.DuckDBPyConnection, tables: Tables, name: TableName, ds: date, alias: str) -> None:
    """Make the same a temporary view of the connection, in no order; it reads the table's files as it is used.

    Args:
        alias: its name, a plain word.

    Raises:
        UserError: no day up to `ds` is known.
    """
    dataset = _known(tables, name, ds)
    _view(connection, alias, ds, dataset, dataset.schema)


def exists(tables: Tables, name: TableName, ds: date) -> bool:
    """Whether any snapshot is known at or before `ds`."""
    return any(known <= ds for known in tables.days(name))


def columns(tables: Tables, name: TableName) -> list[str]:
    """The snapshots' columns, the key first.

    Raises:
        UserError: there is no such table yet.
    """
    return _columns(_checked(tables.path(name), tables.dataset(name).schema))


def _known(tables: Tables, name: TableName, ds: date) -> pyarrow.dataset.FileSystemDataset:
    """The table's rows, if any day up to `ds` is known."""
    place, table = tables.place(name), tables.delta(name)
    if not any(known <= ds for known in days_of(table)):
        raise UserError(f"{place}: no {name} are known as of {ds}; run `recsys-moe ingest` for a day up to it first")
    dataset = place.dataset(table)
    _checked(place.path, dataset.schema)
    return dataset


def _columns(schema: pa.Schema) -> list[str]:
    return [column for column in schema.names if column not in _OWN]


def _publish(connection: duckdb.DuckDBPyConnection, place: Place, ds: date, rows: pa.Schema) -> int:
    """One try, on the table as it is now."""
    table = place.find_or_create(merged(place.path, None, rows))
    schema = merged(place.path, _checked(place.path, schema_of(table)), rows)
    if schema.names[0] != rows.names[0]:
        raise UserError(f"{place}: the key was {schema.names[0]!r} and would now be {rows.names[0]!r}")
    connection.register("blank", schema.empty_table().drop_columns(list(_OWN)))
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW wanted AS SELECT * FROM blank UNION ALL BY NAME SELECT * FROM restated"
    )
    changes = _changes(connection, place, table, ds, schema)
    return table.version() if changes is None else _commit(connection, place, table, changes, schema)


def _changes(
    connection: duckdb.DuckDBPyConnection, place: Place, table: DeltaTable, ds: date, schema: pa.Schema
) -> dict[date, str] | None:
    """Queries of the partitions to replace: that of `ds`, and that of the day known after it. None: all is there."""
    days, dataset = days_of(table), place.dataset(table)
    if ds in days:
        _view(connection, "present", ds, dataset, schema)
        if sql.value(connection, f"SELECT count(*) FROM ({_difference('present', 'wanted', schema)})") == 0:
            return None
    earlier, later = [day for day in days if day < ds], [day for day in days if day > ds]
    # A day before all others: with no row up to it, the snapshot is empty.
    _view(connection, "before", max(earlier, default=date.min), dataset, schema)
    changes = {ds: _difference("before", "wanted", schema)}
    if later:
        _view(connection, "after", min(later), dataset, schema)
        changes[min(later)] = _difference("wanted", "after", schema)
    return changes


def _view(
    connection: duckdb.DuckDBPyConnection,
    alias: str,
    ds: date,
    dataset: pyarrow.dataset.FileSystemDataset,
    schema: pa.Schema,
) -> None:
    """The snapshot as of `ds`, in the columns of `schema`, those that the dataset does not have yet as nulls."""
    rows, key = f"{alias}_rows", sql.name(schema.names[0])
    sql.view(connection, rows, dataset.replace_schema(schema), pc.field("ds") <= ds)
    chosen = ", ".join(f"r.{sql.name(column)}" for column in _columns(schema))
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {alias} AS SELECT {chosen} FROM {rows} AS r JOIN ("
        f"SELECT {key} AS k, max(ds) AS newest FROM {rows} WHERE {key} IS NOT NULL GROUP BY ALL"
        f") AS n ON r.{key} = n.k AND r.ds = n.newest WHERE NOT r.removed"
    )


def _difference(old: str, new: str, schema: pa.Schema) -> str:
    """The rows of `new` that `old` does not have, and the keys of `old` that `new` does not have, as removed."""
    key, *others = map(sql.name, _columns(schema))
    values = "".join(f", n.{column}" for column in others)
    differs = "".join(f" OR n.{column} IS DISTINCT FROM o.{column}" for column in others)
    return (
        f"SELECT coalesce(n.{key}, o.{key}) AS {key}{values}, n.{key} IS NULL AS removed "
        f"FROM {new} AS n FULL JOIN {old} AS o ON n.{key} = o.{key} WHERE n.{key} IS NULL OR o.{key} IS NULL{differs}"
    )


def _commit(
    connection: duckdb.DuckDBPyConnection,
    place: Place,
    table: DeltaTable,
    changes: dict[date, str],
    schema: pa.Schema,
) -> int:
    key = sql.name(schema.names[0])
    with ExitStack() as stack:
        drafts = []
        for day, query in changes.items():
            marked = f"SELECT * FROM ({query}) UNION ALL BY NAME SELECT NULL AS {key}, false AS removed"
            rows = sql.stream(connection, f"{marked} ORDER BY {key} NULLS FIRST")
            files = stack.enter_context(DayFiles(place.folder, day, written(rows.schema, schema), place.path))
            for batch in rows:
                files.write(batch)
            drafts.append(files)
        actions = {day: files.close() for day, files in zip(changes, drafts, strict=True)}
        for files in drafts:
            files.keep()
        try:
            return commit(place, table, actions, schema)
        except CommitFailedError:
            for files in drafts:
                files.keep(False)
            raise


def _of_rows(place: Place, rows: pa.Schema, key: str) -> pa.Schema:
    """What the table's schema needs for these rows: the key first, and `removed`."""
    for column in rows.names:
        if column.lower() in _OWN:
            raise UserError(f"{place}: a column called {column!r} is the table's own; name the source's otherwise")
    others = [field for field in rows if field.name != key]
    return pa.schema([rows.field(key), *others, pa.field("removed", pa.bool_())])


def _check_keys(connection: duckdb.DuckDBPyConnection, place: Place, ds: date, key: str) -> None:
    column = sql.name(key)
    spare = sql.value(connection, f"SELECT count(*) - count(DISTINCT {column}) FROM restated")
    if spare:
        raise UserError(f"{place}: {spare} rows of {ds} have no {key!r}, or that of another row")


def _checked(path: str, schema: pa.Schema) -> pa.Schema:
    if "removed" not in schema.names:
        raise UserError(f"{path}: holds full copies, as they were written before; remove this folder and ingest again")
    return schema
