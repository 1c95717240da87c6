"""A day's scores in PostgreSQL: a table with a partition for each day, and a view of the newest.

    scores                           by ds; what readers may see
    scores_newest                    its newest day
    scores_20260105_3f2a81c09d4e     a day that is being loaded, or a partition of `scores` from then on
    scores_loads                     what is loaded how far

A part goes in together with the note that it is in, in one transaction; so does the finished day as a partition, in
place of the one before. Two processes that load the same day find by the note that they are two: one goes on.
"""

from __future__ import annotations

import io
from typing import LiteralString

import pyarrow as pa
import pyarrow.csv
from psycopg.sql import Literal

from pipelines.config import PostgresExport
from pipelines.errors import TryAgainError
from pipelines.export.connections import title
from pipelines.export.lists import DayLists
from pipelines.export.statements import Statements, connected
from recsys_moe.errors import UserError


def load(target: PostgresExport, day: DayLists) -> str:
    """Bring the day in, from where a load that was interrupted has stopped. Returns what was done.

    Raises:
        TryAgainError: the server cannot be reached, another process loads the day, or readers hold the table.
        UserError: the server refuses, or there is a table of this name with other columns.
    """
    with connected(target) as connection:
        loading = _Load(Statements(connection, target, day), target, day)
        loading.prepare()
        if state := loading.served():
            return state
        done = loading.begin()
        for part in day.parts(target.name, after=done):
            loading.bring_in(part, done)
            done += len(part)
        loading.serve()
    return "loaded"


class _Load:
    """One day on its way into the table."""

    def __init__(self, database: Statements, target: PostgresExport, day: DayLists) -> None:
        self._database, self._run, self._target, self._day = database, database.run, target, day

    def prepare(self) -> None:
        """Make the table and what belongs to it, where they are not there."""
        with self._database.alone():
            if not self._database.exists("scores"):
                self._run("CREATE TABLE {scores} ({fields}, PRIMARY KEY ({key})) PARTITION BY LIST (ds)")
            self._check_shape()
            if not self._database.exists("loads"):
                self._run(
                    "CREATE TABLE {loads} (ds date NOT NULL, generation text PRIMARY KEY, rows bigint NOT NULL,"
                    " model_version bigint NOT NULL, loaded_at timestamp with time zone)"
                )
            if not self._database.exists("newest"):
                self._run(
                    "CREATE VIEW {newest} AS SELECT * FROM {scores}"
                    " WHERE ds = (SELECT max(ds) FROM {loads} WHERE loaded_at IS NOT NULL)"
                )

    def served(self) -> str | None:
        """Why there is nothing to load, if so."""
        known = self._run("SELECT loaded_at FROM {loads} WHERE generation = {generation}").fetchone()
        if known and known[0] is not None and self._database.exists("part"):
            return "there already"
        newer = self._run("SELECT 1 FROM {loads} WHERE loaded_at IS NOT NULL AND ds - {kept} >= {day}").fetchone()
        return "newer days are there" if newer else None

    def begin(self) -> int:
        """How many rows are in already. What else was begun for this day is removed."""
        with self._database.alone():
            self._drop("ds = {day} AND loaded_at IS NULL AND generation <> {generation}")
            if not self._database.exists("part"):
                self._run("DELETE FROM {loads} WHERE generation = {generation}")
                self._run("CREATE TABLE {part} (LIKE {scores} INCLUDING DEFAULTS, CHECK (ds = {day}))")
                self._run("INSERT INTO {loads} VALUES ({day}, {generation}, 0, {version})")
            return self._loaded()

    def bring_in(self, part: pa.Table, after: int) -> None:
        """Write the rows of a part, which come after the first `after`, and that they are in."""
        rows = io.BytesIO()
        # Everything but nulls in quotes: an empty text is not null.
        pyarrow.csv.write_csv(part, rows, pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid"))
        into = self._database.filled("COPY {part} ({columns}) FROM STDIN (FORMAT csv)")
        with self._database.transaction():
            if self._loaded() != after:
                raise self._beaten()
            with self._database.connection.cursor() as cursor, cursor.copy(into) as copy:
                copy.write(rows.getbuffer())
            self._run(
                "UPDATE {loads} SET rows = rows + {more} WHERE generation = {generation}", more=Literal(len(part))
            )

    def serve(self) -> None:
        """Make the day a partition, in place of the one it replaces and of days that are too old.

        What takes long comes before the lock that readers wait for.
        """
        with self._database.alone():
            self._loaded()
            self._run("ALTER TABLE {part} ADD PRIMARY KEY ({key})")
            self._run("ANALYZE {part}")
            self._run("LOCK TABLE {scores} IN ACCESS EXCLUSIVE MODE")
            self._drop("ds = {day} AND loaded_at IS NOT NULL")
            self._drop("ds + {kept} <= (SELECT max(ds) FROM {loads} WHERE loaded_at IS NOT NULL OR ds = {day})")
            self._run("ALTER TABLE {scores} ATTACH PARTITION {part} FOR VALUES IN ({day})")
            self._run("UPDATE {loads} SET loaded_at = now() WHERE generation = {generation}")

    def _loaded(self) -> int:
        """How many rows are in; nobody else can bring in more until the transaction ends."""
        query = "SELECT rows FROM {loads} WHERE generation = {generation} AND loaded_at IS NULL FOR UPDATE"
        found = self._run(query).fetchone()
        if found is None:
            raise self._beaten()
        return int(found[0])

    def _beaten(self) -> TryAgainError:
        return TryAgainError(f"{title(self._target)}: another process loads {self._day.ds} now")

    def _drop(self, which: LiteralString) -> None:
        """Remove loads with their tables."""
        condition = self._database.filled(which)
        for (generation,) in self._run("SELECT generation FROM {loads} WHERE {which}", which=condition).fetchall():
            self._run("DROP TABLE IF EXISTS {old}", old=self._database.partition(generation))
            self._run("DELETE FROM {loads} WHERE generation = {old}", old=Literal(generation))

    def _check_shape(self) -> None:
        name, wanted = self._database.text("scores"), self._database.columns
        columns = self._run(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = {name}::regclass AND attnum > 0 AND NOT attisdropped",
            name=name,
        )
        found = dict(columns.fetchall())
        partitioned = self._run("SELECT 1 FROM pg_partitioned_table WHERE partrelid = {name}::regclass", name=name)
        odd = sorted({column for column, _ in found.items() ^ wanted.items()})
        if odd or not partitioned.fetchone():
            which = f"column {odd[0]!r} is not what scores have" if odd else "it has no partitions"
            raise UserError(
                f"{title(self._target)}: there is a table {self._target.table} of another shape, {which}; "
                f"name another table, or remove this one with {self._target.table}_newest and _loads"
            )
