"""Statements about a day's tables in PostgreSQL: names that are always quoted, and a connection that keeps secrets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import pyarrow as pa
from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from pipelines.config import PostgresExport
from pipelines.errors import TryAgainError
from pipelines.export.connections import in_a_line, title, url_of
from pipelines.export.lists import DayLists
from recsys_moe.errors import UserError

_SECONDS, _LOCK_SECONDS = 30, 5
_KEY = ("ds", "context", "user_id", "rank")
_TYPES = {
    pa.date32(): "date",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.timestamp("us", "UTC"): "timestamp with time zone",
}


class Statements:
    """Runs statements with `{scores}`, `{loads}`, `{day}` and so on in them; see `postgres` for what these tables are.

    Args:
        connection: in autocommit mode.
        target: where scores go.
        day: which.
    """

    def __init__(self, connection: psycopg.Connection[Any], target: PostgresExport, day: DayLists) -> None:
        self.connection = connection
        self.columns = {field.name: _TYPES.get(field.type, "text") for field in day.schema}
        self._target, self._generation = target, day.generation()
        fields = [SQL("{} {}").format(Identifier(name), SQL(kind)) for name, kind in self.columns.items()]
        self._names: dict[str, Composable] = {
            "scores": self._identifier(""),
            "newest": self._identifier("_newest"),
            "loads": self._identifier("_loads"),
            "part": self.partition(self._generation),
            "fields": SQL(", ").join(fields),
            "columns": SQL(", ").join(map(Identifier, self.columns)),
            "key": SQL(", ").join(map(Identifier, _KEY)),
            "day": Literal(day.ds),
            "generation": Literal(self._generation),
            "version": Literal(day.model_version),
            "kept": Literal(target.expire_days),
        }

    def filled(self, query: LiteralString, **more: Composable) -> Composed:
        """A statement with its names in place."""
        return SQL(query).format(**self._names, **more)

    def run(self, query: LiteralString, **more: Composable) -> psycopg.Cursor[Any]:
        """Run a statement with its names in place."""
        return self.connection.execute(self.filled(query, **more))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction that waits for no lock long: readers would wait behind it."""
        with self.connection.transaction():
            self.run("SET LOCAL lock_timeout = {wait}", wait=Literal(f"{_LOCK_SECONDS}s"))
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A transaction that changes tables: one at a time for a target's table."""
        with self.transaction():
            self.run("SELECT pg_advisory_xact_lock(hashtext({title}))", title=Literal(self._target.table))
            yield

    def exists(self, which: str) -> bool:
        """Whether there is the table or view that statements call so."""
        found = self.run("SELECT to_regclass({name})", name=self.text(which)).fetchone()
        return found is not None and found[0] is not None

    def text(self, which: str) -> Literal:
        """The name of a table, quoted, as a text."""
        return Literal(self._names[which].as_string(self.connection))

    def partition(self, generation: str) -> Identifier:
        """The table of a generation."""
        return self._identifier("_" + generation.replace("-", "").replace(".", "_"))

    def _identifier(self, ending: str) -> Identifier:
        return Identifier(*(self._target.table + ending).split("."))


@contextmanager
def connected(target: PostgresExport) -> Iterator[psycopg.Connection[Any]]:
    """A connection, with all complaints as one line that has no password in it.

    Raises:
        TryAgainError: the server cannot be reached, or is busy.
        UserError: it refuses.
    """
    url = url_of(target, "postgresql", "postgres", "postgresql+psycopg")
    try:
        plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
        with psycopg.connect(plain, autocommit=True, connect_timeout=_SECONDS, client_encoding="utf8") as connection:
            yield connection
    except psycopg.Error as error:
        kind = TryAgainError if _passes(error) else UserError
        raise kind(f"{title(target)}: {in_a_line(error.diag.message_primary or error, url)}") from None


def _passes(error: psycopg.Error) -> bool:
    """Whether the server may take the same later: it is not there, busy, or going down; but not if it says no."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    # An error of connecting comes without its code.
    return error.sqlstate is not None or "FATAL" not in str(error) or "starting up" in str(error)
