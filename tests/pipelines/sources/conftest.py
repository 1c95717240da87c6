"""What a source gives, put together for a test to look at."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from pipelines import sources
from pipelines.config import Source

Given = tuple[dict[str, list[Any]], list[tuple[int, str]]]


@pytest.fixture(scope="session")
def read_all() -> Callable[..., Given]:
    """Reads a source on a day: its columns by name, and its malformed lines as number and text."""

    def read(source: Source, *wanted: str, ds: date = date(2026, 1, 1)) -> Given:
        names = wanted or sources.columns_of(source, ds)
        chunks = list(sources.read(source, ds, names))
        assert {tuple(chunk.rows.schema.names) for chunk in chunks} == {(*sorted(names), sources.ROW_NUMBER)}
        tables = [pa.Table.from_batches([chunk.rows]) for chunk in chunks]
        malformed = [(line.row, line.text) for chunk in chunks for line in chunk.malformed]
        return pa.concat_tables(tables, promote_options="permissive").to_pydict(), malformed

    return read
