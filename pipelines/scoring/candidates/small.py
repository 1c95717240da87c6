"""Small tables that all shards read: Arrow files, mapped into memory where they are local."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs

from pipelines import places
from pipelines.scoring.staging import Staging


def write(staging: Staging, name: str, rows: pa.Table) -> None:
    """Write a table as one batch, so that its columns are read as one piece each."""
    with staging.writing(_file(name)) as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())


def read(staging: Staging, name: str) -> pa.Table:
    """What was written. Of a local file, only what is looked at comes into memory, and all processes share it."""
    system, path = places.file_system(staging.place(_file(name)))
    if isinstance(system, pyarrow.fs.LocalFileSystem):
        system = pyarrow.fs.LocalFileSystem(use_mmap=True)
    return pa.ipc.open_file(system.open_input_file(path)).read_all()


def _file(name: str) -> str:
    return f"candidates-{name}.arrow"
