"""The rows of a query, through SQLAlchemy, in pieces of a cursor on the server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy
from sqlalchemy import Connection, TextClause
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from pipelines.config import Source
from pipelines.sources.chunks import Chunk, check_header, numbered
from recsys_moe.errors import UserError

FILE = "sql"
"""What tables call the file of rows that came from a query."""

_ROWS = 20_000
_CONNECT_SECONDS = 10
_KNOW_CONNECT_TIMEOUT = ("postgresql", "mysql", "mariadb")
_PLAIN = {int, float, bool, str, bytes, datetime, date}


def columns_of(source: Source, ds: date) -> list[str]:
    """The names of the columns that the query has.

    Raises:
        UserError: the database cannot be reached, or refuses the query.
    """
    assert source.sql is not None
    with _connected(source) as connection:
        inner = source.sql.strip().rstrip(";")
        # On lines of its own: the query may end with a comment.
        none_of_it = _bound(f"SELECT * FROM (\n{inner}\n) AS q WHERE 1 = 0", ds)
        return list(connection.execute(none_of_it).keys())


def read(source: Source, ds: date, wanted: Sequence[str]) -> Iterator[Chunk]:
    """The wanted columns of the query, with types told from the values; `:ds` in it is the day.

    Rows are numbered from 1 in the order that the database gives them.

    Raises:
        UserError: the database cannot be reached, refuses the query, or it has no such column.
    """
    assert source.sql is not None
    with _connected(source) as connection:
        query = _bound(source.sql.strip().rstrip(";"), ds)
        options = {"stream_results": True, "max_row_buffer": _ROWS}
        with connection.execute(query, execution_options=options) as result:
            header = list(result.keys())
            check_header(source.title, header, wanted)
            places = [header.index(column) for column in wanted]
            first = 1
            for rows in result.partitions(_ROWS):
                values = list(zip(*rows, strict=True))
                batch = pa.record_batch({c: _array(values[p]) for c, p in zip(wanted, places, strict=True)})
                yield Chunk(FILE, numbered(batch, np.arange(first, first + len(rows))))
                first += len(rows)


def _bound(query: str, ds: date) -> TextClause:
    """The query with the day as a parameter: it is never pasted in."""
    text = sqlalchemy.text(query)
    day = sqlalchemy.bindparam("ds", ds, type_=sqlalchemy.Date())
    return text.bindparams(day) if "ds" in text.compile().params else text


@contextmanager
def _connected(source: Source) -> Iterator[Connection]:
    """A connection to the source's database, with all complaints as one line that has no password in it."""
    url = _url(source)
    try:
        waits = url.get_backend_name() in _KNOW_CONNECT_TIMEOUT and "connect_timeout" not in url.query
        options = {"connect_timeout": _CONNECT_SECONDS} if waits else {}
        engine = sqlalchemy.create_engine(url, connect_args=options, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            yield connection
    except ImportError as error:
        driver = f"the driver {error.name!r} of {url.drivername}:// is not installed"
        raise UserError(f"{source.title}: {driver}; for PostgreSQL write postgresql+psycopg://") from None
    except (SQLAlchemyError, pa.ArrowException) as error:
        raise UserError(f"{source.title}: {_without_secrets(error, url)}") from None


def _url(source: Source) -> sqlalchemy.URL:
    assert source.connection is not None
    written = os.environ.get(source.connection)
    if not written:
        raise UserError(f"{source.title}: the environment has no variable {source.connection} with the database's URL")
    try:
        return sqlalchemy.make_url(written)
    except (ArgumentError, ValueError):
        form = "dialect+driver://user:password@host:port/database"
        raise UserError(f"{source.title}: ${source.connection} is no URL of a database ({form})") from None


def _without_secrets(error: Exception, url: sqlalchemy.URL) -> str:
    """The first line of what went wrong, without the query's parameters and the password."""
    text = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line.replace(str(url.password), "***") if url.password else line


def _array(values: Sequence[Any]) -> pa.Array:
    """Values of one column. What is no number, time, truth or text, nor a list of these, becomes text."""
    kinds = set(map(type, values)) - {type(None)}
    if (len(kinds) == 1 and kinds <= _PLAIN) or kinds == {int, float}:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass  # Integers past 64 bits, or past what a float of the same column can hold: as text.
    if list in kinds:
        lists = [value if isinstance(value, list) or value is None else [value] for value in values]
        return pa.array([one and [_text(part) for part in one] for one in lists], pa.list_(pa.string()))
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, Decimal):
        return format(value, "f")
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
