"""What every source of candidates is made of, and where what is made of it goes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import duckdb
import numpy as np
import pyarrow as pa

from pipelines import sql
from pipelines.config import Recommender
from pipelines.scoring.candidates import rules
from pipelines.scoring.staging import Staging
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker


@dataclass(frozen=True)
class Making:
    """Once `leave_tables` was called the connection has `known_items` (item_id, position, allowed) and `shards` (shard,
    first: a user's id).

    Attributes:
        ds: the last day that is looked at.
        items: [I] the rows of all items, sorted by id.
        ranker: the model; only sources that ask it need one.
        bounds: [K] the first user id of each shard, ascending.
        last: the last user id of all shards, or None where nobody knows.
        staging: the folder to write to.
    """

    connection: duckdb.DuckDBPyConnection
    config: Recommender
    tables: Tables
    ds: date
    items: pa.Table
    ranker: Ranker | None
    bounds: pa.Array
    last: str | None
    staging: Staging

    @property
    def day(self) -> date:
        """The day that is scored for."""
        return self.ds + timedelta(days=1)

    def leave_tables(self) -> None:
        """Number items and shards.

        Raises:
            UserError: a rule or an availability names a column that items do not have.
        """
        self._leave("shards", shard=np.arange(len(self.bounds), dtype=np.int32), first=self.bounds)
        ids = self.items.column(self.config.columns.item)
        self._leave("numbered", item_id=ids, position=np.arange(len(ids), dtype=np.int32))
        allowed = rules.allowed(self.connection, self.config, self.tables, self.ds)
        self.connection.execute(
            "CREATE TEMP TABLE known_items AS SELECT n.*, coalesce(a.allowed, true) AS allowed "
            f"FROM numbered AS n LEFT JOIN ({allowed}) AS a USING (item_id)"
        )

    def _leave(self, table: str, **columns: object) -> None:
        self.connection.register("given", pa.table(columns))
        self.connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM given")

    def is_asked_for(self, user: str) -> str:
        """An SQL condition on an expression: whether the user could be in a shard."""
        last = f" AND {user} <= {sql.text(self.last)}" if self.last is not None else ""
        return f"{user} >= {sql.text(self.bounds[0].as_py())}{last}"

    def fetch(self, query: str) -> pa.Table:
        """The rows of a query."""
        return sql.fetch(self.connection, query)
