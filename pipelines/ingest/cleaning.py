"""Raw columns as cleaned text, a chunk at a time: what `contract.clean` says, without doing it for every row.

What bounds it is the work per value in SQL (about 1 µs where a pattern is looked for), so that is kept to the distinct
values of a chunk, and columns of digits alone, such as most ids and times, pass as they are.
"""

from __future__ import annotations

import re
from collections.abc import Container

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import contract, sql
from pipelines.config import Recommender

_ZERO, _NINE = ord("0"), ord("9")
_WHOLE = re.compile(r"-?[1-9][0-9]*|0")


class Cleaner:
    """Makes cleaned text of raw columns.

    Args:
        connection: what the rest is computed in.
        config: says which values stand for nothing, and what separates the values of a list.
        numbers: columns that are only looked at as numbers. Whole ones may stay what they are.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, config: Recommender, numbers: Container[str] = ()
    ) -> None:
        self._numbers = numbers
        self._connection, self._separator = connection, config.features.separator
        self._missing = config.columns.missing
        whole = [int(value) for value in self._missing if _WHOLE.fullmatch(value)]
        self._missing_numbers = pa.array([value for value in whole if abs(value) < 2**63], pa.int64())
        self._digits_are_values = not any(value.isascii() and value.isdigit() for value in self._missing)

    def clean(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """[rows] the same columns as text; null where a value says nothing."""
        columns = [self._column(column, field.name) for column, field in zip(rows.columns, rows.schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, rows.schema.names)

    def _column(self, column: pa.Array, name: str) -> pa.Array:
        kind = column.type
        if self._digits_are_values and pa.types.is_string(kind) and _digits_only(column):
            return column
        if pa.types.is_signed_integer(kind):
            if not len(self._missing_numbers):
                return column if name in self._numbers else pc.cast(column, pa.string())
            missing = pc.is_in(column.cast(pa.int64()), value_set=self._missing_numbers)
            return pc.if_else(missing, None, pc.cast(column, pa.string()))
        if pa.types.is_nested(kind):
            return self._in_sql(column)
        distinct = column.dictionary_encode() if not pa.types.is_dictionary(kind) else column
        return self._in_sql(distinct.dictionary).take(distinct.indices)

    def _in_sql(self, values: pa.Array) -> pa.Array:
        expression = contract.clean("value", values.type, self._missing, self._separator)
        self._connection.register("distinct_values", pa.table({"value": values}))
        cleaned = sql.fetch(self._connection, f"SELECT {expression} AS value FROM distinct_values")
        self._connection.unregister("distinct_values")
        return pa.concat_arrays([pa.array([], pa.string()), *cleaned.column("value").cast(pa.string()).chunks])


def _digits_only(column: pa.Array) -> bool:
    """Whether every value is one digit or more, and none is null: told from the bytes, without a look at values."""
    if column.null_count or not len(column):
        return False
    _, offsets, data = column.buffers()
    edges = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    if data is None or not np.diff(edges).all():
        return False
    written = np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]
    return bool(written.min() >= _ZERO and written.max() <= _NINE)
