"""DuckDB, as the steps use it: one short-lived connection, and names that are always quoted."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs

from recsys_moe.errors import UserError

MEMORY = "RECSYS_MOE_MEMORY"
"""The environment variable with the memory that a database with a spill folder may take, such as `2GB`."""
_DEFAULT_MEMORY = "1GB"
_BATCH_ROWS = 65_536


@contextmanager
def connect(
    timezone: str = "UTC", *, spill: Path | None = None, **relations: object
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, with Arrow tables or datasets as `relations`, closed at the end.

    `timezone` decides which local day a time belongs to. Row order is kept, so that results do not depend on threads.
    With `spill`, a folder, memory is limited to what `RECSYS_MOE_MEMORY` says (1GB) and the rest goes to files there,
    which are removed at the end.

    Raises:
        UserError: the environment variable holds no size.
    """
    with ExitStack() as stack:
        settings: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": "false"}
        settings["threads"] = _threads()
        if spill is not None:
            spill.mkdir(parents=True, exist_ok=True)
            # A folder of its own: two processes would write files of the same names.
            settings["temp_directory"] = stack.enter_context(tempfile.TemporaryDirectory(dir=spill, prefix="spill-"))
            settings["memory_limit"] = _memory()
        connection = duckdb.connect(":memory:", config=settings)
        stack.callback(connection.close)
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET TimeZone = {text(timezone)}")
        for relation, rows in relations.items():
            connection.register(relation, rows)
        yield connection


def _threads() -> int:
    """As many as `OMP_NUM_THREADS` says, like everything else here that computes, or as there are cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if re.fullmatch(r"[1-9]\d*", said) else len(os.sched_getaffinity(0))


def _memory() -> str:
    said = os.environ.get(MEMORY, _DEFAULT_MEMORY)
    if not re.fullmatch(r"\d+(\.\d+)? ?[MGT]i?B", said):
        raise UserError(f"{MEMORY}: {said!r} is no amount of memory; give one such as 2GB or 500MB")
    return said


def name(identifier: str) -> str:
    """A column's name, quoted: no name from a file or a YAML can be anything else in a statement."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string literal, quoted."""
    return "'" + value.replace("'", "''") + "'"


def fetch(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The rows of a query, as Arrow."""
    return connection.sql(query).to_arrow_table()


def stream(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """The rows of a query as they come, without all of them in memory. Read it to its end before the next query."""
    return connection.sql(query).to_arrow_reader(_BATCH_ROWS)


def value(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """What a query of one row and one column finds. Read to its end: the connection is free for more."""
    ((found,),) = connection.execute(query).fetchall()
    return found


def view(
    connection: duckdb.DuckDBPyConnection, alias: str, rows: pyarrow.dataset.FileSystemDataset, days: pc.Expression
) -> None:
    """Make those rows of a dataset, partitioned by `ds`, of which `days` (a condition on `ds`) holds a view `alias`.

    Local files are read by DuckDB itself, in half the time that it takes through Arrow: it skips what no join asks for.
    """
    chosen = list(rows.get_fragments(filter=days))
    folder = rows.filesystem
    local = isinstance(folder, pyarrow.fs.SubTreeFileSystem) and isinstance(folder.base_fs, pyarrow.fs.LocalFileSystem)
    # A folder above the table such as `env=prod` would be taken for a partition, too.
    if not chosen or not local or "=" in folder.base_path:
        connection.register(alias, pyarrow.dataset.FileSystemDataset(chosen, rows.schema, rows.format, folder))
        return
    # In the order of their days, whenever these were written.
    paths = ", ".join(text(f"{folder.base_path.rstrip('/')}/{path}") for path in sorted(one.path for one in chosen))
    query = f"FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = true, hive_types = {{'ds': DATE}})"
    present = {row[0] for row in connection.execute(f"DESCRIBE {query}").fetchall()}
    if not present.issuperset(rows.schema.names):  # columns that came into the table with other days
        connection.register(f"{alias}_none", rows.schema.empty_table())
        query += f" UNION ALL BY NAME FROM {alias}_none"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {alias} AS {query}")
