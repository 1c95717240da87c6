"""Parquet, by pieces of its row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
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
            yield Chunk(file.name, numbered(batch.select(list(wanted)), numbers))
            first += batch.num_rows


def _open(file: File) -> pyarrow.parquet.ParquetFile:
    system, path = file.place
    return pyarrow.parquet.ParquetFile(system.open_input_file(path))
