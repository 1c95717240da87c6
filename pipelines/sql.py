"""DuckDB, as the steps use it: one short-lived connection, and names that are always quoted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa


@contextmanager
def connect(timezone: str = "UTC", **relations: object) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, with Arrow tables or datasets as `relations`, closed at the end.

    `timezone` decides which local day a time belongs to. Row order is kept, so that results do not depend on threads.
    """
    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
    try:
        connection.execute(f"SET TimeZone = {text(timezone)}")
        for name, relation in relations.items():
            connection.register(name, relation)
        yield connection
    finally:
        connection.close()


def name(identifier: str) -> str:
    """A column's name, quoted: no name from a file or a YAML can be anything else in a statement."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string literal, quoted."""
    return "'" + value.replace("'", "''") + "'"


def fetch(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The rows of a query, as Arrow."""
    return connection.sql(query).to_arrow_table()


def value(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """What a query of one row and one column finds. Read to its end: the connection is free for more."""
    ((found,),) = connection.execute(query).fetchall()
    return found
