"""Parquet, by pieces of its row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipelines.sources.chunks import Chunk, check_header, numbered
from pipelines.sources.files import File

_ROWS = 1 << 17


def columns_of(file: File) -> list[str]:
    """The names of the columns."""
    with _open(file) as parquet:
        return list(parquet.schema_arrow.names)


def read(file: File, wanted: Sequence[str]) -> Iterator[Chunk]:
    """The wanted columns with their types.

    Raises:
        UserError: a column is not there.
    """
    with _open(file) as parquet:
        check_header(file.uri, parquet.schema_arrow.names, wanted)
        first = 1
        for batch in parquet.iter_batches(_ROWS, columns=list(wanted)):
            numbers = np.arange(first, first + batch.num_rows)
            # A wanted column `a` brings one called `a.b` along, as if it were a part of it.
            rows = pa.record_batch({column: _computable(batch.column(column)) for column in wanted})
            yield Chunk(file.name, numbered(rows, numbers))
            first += batch.num_rows


def _computable(column: pa.Array) -> pa.Array:
    """The same values in a type that DuckDB and Arrow's functions know."""
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    return column.cast(pa.string()) if pa.types.is_decimal256(column.type) else column


def _open(file: File) -> pyarrow.parquet.ParquetFile:
    system, path = file.place
    return pyarrow.parquet.ParquetFile(system.open_input_file(path))
