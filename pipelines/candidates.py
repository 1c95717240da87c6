"""Which items are scored for which user."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import sql
from pipelines.config import Recommender
from pipelines.tables import Tables
from recsys_moe.scoring import ForAll

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class CandidateLists:
    """The same items for every user, less those that the user has seen.

    Attributes:
        items: [C] positions in the table of items.
        seen_user, seen_candidate: [P] positions of pairs that are left out: of a user, and of a place in `items`;
            sorted by user.
    """

    items: Positions
    seen_user: Positions
    seen_candidate: Positions

    @classmethod
    def of(
        cls,
        connection: duckdb.DuckDBPyConnection,
        config: Recommender,
        tables: Tables,
        ds: date,
        user_ids: pa.ChunkedArray,
        item_ids: pa.ChunkedArray,
    ) -> CandidateLists:
        """The candidates that the YAML asks for, by what was known at the end of `ds`."""
        items = _items(connection, config, tables, ds, item_ids)
        if not config.scoring.exclude_seen:
            return cls(items, np.empty(0, np.int64), np.empty(0, np.int64))
        columns = [config.columns.user, config.columns.item]
        pairs = tables.dataset("interactions").to_table(columns=columns, filter=pc.field("ds") <= ds)
        place = np.full(len(item_ids), -1)
        place[items] = np.arange(len(items))
        user = _positions(pairs.column(columns[0]), user_ids)
        item = _positions(pairs.column(columns[1]), item_ids)
        candidate = np.where(item >= 0, place[item], -1)
        known = (user >= 0) & (candidate >= 0)
        order = np.argsort(user[known], kind="stable")
        return cls(items, user[known][order], candidate[known][order])

    def block(self, start: int, stop: int) -> Positions:
        """[stop - start, C] item positions of some users, -1 for what is left out."""
        listed = np.tile(self.items, (stop - start, 1))
        listed[self._seen(start, stop)] = -1
        return listed

    def for_all(self) -> ForAll:
        """The same without a matrix of users × items."""
        return ForAll(self.items, self._seen)

    def _seen(self, start: int, stop: int) -> tuple[Positions, Positions]:
        """What users start to stop have seen: users [P], counted from `start`, and places in `items` [P]."""
        first, last = np.searchsorted(self.seen_user, [start, stop])
        return self.seen_user[first:last] - start, self.seen_candidate[first:last]


def _items(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, item_ids: pa.ChunkedArray
) -> Positions:
    """All items, or the most shown ones of the last days that are still known; ties go to the smaller id."""
    wanted = config.scoring.candidates
    if wanted.source == "all":
        return np.arange(len(item_ids))
    item = config.columns.item
    recent = (pc.field("ds") <= ds) & (pc.field("ds") > ds - timedelta(days=wanted.days))
    connection.register("shown", tables.dataset("interactions").to_table(columns=[item], filter=recent))
    connection.register("available", pa.table({item: item_ids}))
    column = sql.name(item)
    most = sql.fetch(
        connection,
        f"SELECT {column} FROM shown SEMI JOIN available USING ({column}) "
        f"GROUP BY {column} ORDER BY count(*) DESC, {column} LIMIT {wanted.limit}",
    )
    return np.sort(_positions(most.column(item), item_ids))


def _positions(values: pa.ChunkedArray, among: pa.ChunkedArray) -> Positions:
    """Where each value stands in `among`, -1 for nowhere."""
    found = pc.index_in(values, value_set=among)
    positions: Positions = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return positions
