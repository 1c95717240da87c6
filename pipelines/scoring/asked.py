"""Who gets lists: the users that are known, or those of a list, sorted by id and cut into shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines import sources, sql
from pipelines.config import Recommender, Source
from pipelines.entities import view_known
from pipelines.ingest.cleaning import Cleaner
from pipelines.scoring.staging import Staging
from pipelines.tables import Tables, snapshots
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

FILE = "users.parquet"
"""Users in order, a row group a shard: their ids, and columns of the list that `users` has, too."""


def stage(config: Recommender, tables: Tables, ds: date, staging: Staging, spill: Path) -> list[str]:
    """Write who is asked for. Returns the first id of each shard.

    Raises:
        UserError: nobody is asked for; the list lacks the column of ids.
    """
    user, size = config.columns.user, config.scoring.users_per_shard
    with sql.connect(config.columns.timezone, spill=spill) as connection:
        view_known(connection, config, tables, ds, "user")
        relation, columns = "known", [user]
        if config.scoring.users is not None:
            relation, columns = "listed", _register(connection, config, tables, ds, config.scoring.users)
        rows = sql.stream(connection, f"{_once(relation, columns, user)} ORDER BY {sql.name(user)}")
        firsts: list[str] = []
        staging.write_rows(FILE, rows.schema, _noted(_in_pieces(rows, size), user, firsts))
    if not firsts:
        raise UserError(f"scoring.users: {_title(config)} names nobody, so there is nobody to score for")
    return firsts


def _once(relation: str, columns: list[str], user: str) -> str:
    """A query: of each user who is there, one row."""
    key, others = sql.name(user), [sql.name(column) for column in columns if column != user]
    said = "".join(f", any_value({column}) AS {column}" for column in others)
    return f"SELECT {key}{said} FROM {relation} WHERE {key} IS NOT NULL GROUP BY {key}"


def read(staging: Staging, shard: int) -> pa.Table:
    """The rows of a shard's users, in order."""
    with staging.parquet(FILE) as file:
        return file.read_row_group(shard)


def count(staging: Staging) -> int:
    """How many users are asked for."""
    with staging.parquet(FILE) as file:
        return int(file.metadata.num_rows)


def _register(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, source: Source
) -> list[str]:
    """Leave the table `listed`, of ids and of columns that users have. Returns their names."""
    user = config.columns.user
    header = sources.columns_of(source, ds)
    if user not in header:
        raise UserError(f"{source.title}: has no column {user!r}, which scoring.users needs; it has {header}")
    known = snapshots.columns(tables, "users") if tables.exists("users") else []
    wanted = [user, *(column for column in known if column in header and column != user)]
    connection.execute(f"CREATE TEMP TABLE listed ({', '.join(f'{sql.name(column)} VARCHAR' for column in wanted)})")
    cleaner, malformed = Cleaner(connection, config), 0
    # Chunk by chunk: what goes wrong with a file while DuckDB reads a stream of them is no line of ours any more.
    for chunk in sources.gathered(sources.read(source, ds, wanted)):
        connection.register("listed_rows", pa.Table.from_batches([cleaner.clean(chunk.rows.select(wanted))]))
        connection.execute("INSERT INTO listed FROM listed_rows")
        malformed += len(chunk.malformed)
    if malformed:
        log.warning("%s: %d lines are not of its columns; they are left out", source.title, malformed)
    return wanted


def _title(config: Recommender) -> str:
    return config.scoring.users.title if config.scoring.users else "the storage"


def _in_pieces(rows: pa.RecordBatchReader, size: int) -> Iterator[pa.Table]:
    """All rows, `size` at a time; the last ones are fewer."""
    waiting = rows.schema.empty_table()
    for batch in rows:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while len(waiting) >= size:
            yield waiting.slice(0, size)
            waiting = waiting.slice(size)
    if len(waiting):
        yield waiting


def _noted(pieces: Iterator[pa.Table], column: str, firsts: list[str]) -> Iterator[pa.Table]:
    for piece in pieces:
        firsts.append(piece.column(column)[0].as_py())
        yield piece
