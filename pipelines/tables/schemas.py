"""What a table's columns may become: they keep their kind and their spelling, and new ones are added at the end."""

from __future__ import annotations

import pyarrow as pa

from recsys_moe.errors import UserError


def merged(path: str, table: pa.Schema | None, rows: pa.Schema) -> pa.Schema:
    """The schema of a table once `rows`, without `ds`, are in it.

    Raises:
        UserError: a column is of another kind than in the table, where a cast would change it: `007` would become 7.
            Or it differs from one of the table's in upper and lower case alone.
    """
    if table is None:
        table = pa.schema([])
    old = {field.name.lower(): field for field in table}
    for field in rows:
        known = old.get(field.name.lower())
        if known is not None and (problem := _problem(known, field)):
            raise UserError(
                f"{path}: column {field.name!r} {problem}; where the YAML has changed, give it "
                "a new storage folder, or remove this one"
            )
    new = [pa.field(field.name, _plain(field.type)) for field in rows if field.name.lower() not in old]
    partition = [] if "ds" in old else [pa.field("ds", pa.date32())]
    return pa.schema([*table, *new, *partition])


def written(rows: pa.Schema, table: pa.Schema) -> pa.Schema:
    """How the columns of `rows` go into files of the table: as the table has them, but text stays as it is encoded."""
    return pa.schema([_as_written(field, table.field(field.name).type) for field in rows])


def fitted(batch: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    """A batch in the schema of its files.

    Raises:
        UserError: a value does not fit its column, such as 2.5 in one of whole numbers.
    """
    if batch.schema.equals(schema):
        return batch
    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            # Times finer than the table's microseconds lose the rest; all else must survive whole.
            columns.append(column.cast(field.type, safe=not pa.types.is_timestamp(field.type)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"{path}: column {field.name!r} holds {field.type}; {error}") from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _problem(known: pa.Field, field: pa.Field) -> str | None:
    was, now = _kind(known.type), _kind(field.type)
    if known.name != field.name:
        return f"was called {known.name!r} before"
    if was != now and not pa.types.is_null(field.type):
        return f"holds {was} and would now get {now}"
    return None


def _as_written(field: pa.Field, stored: pa.DataType) -> pa.Field:
    keep = _kind(field.type) == "text" == _kind(stored)
    return pa.field(field.name, field.type if keep else stored)


def _plain(column: pa.DataType) -> pa.DataType:
    """The type that Delta has for a column; one that is all null may be text as well as anything."""
    if pa.types.is_dictionary(column):
        return _plain(column.value_type)
    if _is_text(column) or pa.types.is_null(column):
        return pa.string()
    if pa.types.is_unsigned_integer(column):
        return pa.int64()
    if pa.types.is_timestamp(column):
        return pa.timestamp("us", column.tz)
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        return pa.list_(_plain(column.value_type))
    return column


def _kind(column: pa.DataType) -> str:
    """What a column holds, in a word; how it is stored does not matter."""
    if pa.types.is_dictionary(column):
        return _kind(column.value_type)
    if _is_text(column):
        return "text"
    if pa.types.is_integer(column) or pa.types.is_floating(column):
        return "numbers"
    if pa.types.is_timestamp(column):
        return "times"
    return "lists" if pa.types.is_nested(column) else str(column)


def _is_text(column: pa.DataType) -> bool:
    return column in (pa.string(), pa.large_string(), pa.string_view())
