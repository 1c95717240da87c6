"""A day's counts, as the table `ingested` keeps them: what later days are compared with."""

from __future__ import annotations

import pyarrow as pa

from pipelines.ingest.judging import Counts

SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("read", "accepted", "rejected", "duplicates", "late", "files", "bytes")]
)


def as_row(counts: Counts, files: int, size: int) -> pa.Table:
    """One row: the counts, how many files the log had, and their size in bytes."""
    known = {"files": files, "bytes": size}
    return pa.table({name: [known.get(name, getattr(counts, name, None))] for name in SCHEMA.names}, schema=SCHEMA)
