"""A day's scores as one Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.export.files import placed


def write(path: str, workspace: Path, schema: pa.Schema, parts: Iterator[pa.Table]) -> None:
    """Write the parts, a row group each, and put the file in its place.

    Raises:
        UserError: the place cannot be written to.
    """
    with placed(path, workspace) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part)
