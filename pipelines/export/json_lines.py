"""A day's scores as lines of JSON, an object for each row."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import sql
from pipelines.export.files import placed

_LEVEL = 6


def write(path: str, workspace: Path, schema: pa.Schema, parts: Iterator[pa.Table]) -> None:
    """Write the parts, gzipped where the path ends with `.gz`, and put the file in its place.

    Days are written like `2026-01-05`, times in UTC, and fractions with as many digits as tell them apart.

    Raises:
        UserError: the place cannot be written to.
    """
    fields = ", ".join(f"{sql.text(field.name)}: {as_json(field)}" for field in schema)
    query = f"SELECT CAST(to_json({{{fields}}}) AS VARCHAR) || chr(10) AS line FROM part"
    with placed(path, workspace) as draft, _opened(draft, path.endswith(".gz")) as file, sql.connect() as connection:
        for part in parts:
            connection.register("part", part)
            file.write(joined(sql.fetch(connection, query).column("line").combine_chunks()))


@contextmanager
def _opened(draft: Path, gzipped: bool) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with draft.open("wb") as plain:
        if not gzipped:
            yield plain
            return
        # Without a name and a time in its header, the same rows make the same file.
        with gzip.GzipFile("", "wb", _LEVEL, plain, mtime=0) as packed:
            yield packed


def as_json(field: pa.Field) -> str:
    """A column in SQL. A narrow fraction by itself would become a wide one, 0.1 as 0.10000000149011612."""
    column = sql.name(field.name)
    return f"CAST(CAST({column} AS VARCHAR) AS JSON)" if pa.types.is_float32(field.type) else column


def joined(texts: pa.Array) -> memoryview:
    """[N] texts, one after another."""
    all_of_it = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return memoryview(pc.binary_join(all_of_it, "")[0].as_buffer())
