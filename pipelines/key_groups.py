"""The rows of a relation by day and by the value of a key: what counts of a value and look-ups of it share.

A row's group is a number, so that counting and looking up are a few passes over numbers. Text is looked at once for
each column, to tell its values apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import sql

Key = tuple[str, ...]
"""Columns whose values together are one; none: all rows have the same."""
NULL = -1
"""What stands for the hash of a missing value: rows may ask for it, and no day has counted it."""
_JOINT = "\x1f"
_MIXER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Groups:
    """N groups of rows that have the day and the value of one key in common.

    Attributes:
        days: [N] as days since 1970, ascending.
        values: [N] text; null where a column of the key is missing.
        hashes: [N] of the values, ascending within a day.
        of_row: [rows] the group of each row, in the relation's order.
    """

    days: NDArray[np.int32]
    values: pa.StringArray
    hashes: NDArray[np.int64]
    of_row: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.days)

    def sizes(self) -> NDArray[np.int64]:
        """[N] rows in each group."""
        sizes: NDArray[np.int64] = np.bincount(self.of_row, minlength=len(self))
        return sizes

    def sums(self, values: NDArray[np.float64], order: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """[N] sums of `values` [rows], added up in the order of rows or another."""
        at, values = (self.of_row, values) if order is None else (self.of_row[order], values[order])
        return np.bincount(at, weights=values, minlength=len(self)).astype(np.float64, copy=False)


def group_by(connection: duckdb.DuckDBPyConnection, rows: str, keys: Iterable[Key]) -> dict[Key, Groups]:
    """Group the relation `rows`, which has event_day and the keys' columns, by each of the keys."""
    wanted = list(dict.fromkeys(keys))
    days = sql.fetch(connection, f"SELECT event_day FROM {rows}").column(0).cast(pa.int32()).to_numpy()
    if not len(days):
        return dict.fromkeys(wanted, Groups(days, pa.array([], pa.string()), np.zeros(0, np.int64), days))
    columns = {name: _Values.of(connection, rows, name) for name in sorted({name for key in wanted for name in key})}
    same = _Values(np.zeros(len(days), np.int32), pa.array([""]), np.zeros(1, np.int64))
    return {key: _grouped(days, reduce(_Values.beside, [columns[name] for name in key] or [same])) for key in wanted}


@dataclass(frozen=True)
class _Values:
    """The V distinct values of a column, or of several side by side: `place` [rows] is where each row's stands."""

    place: NDArray[np.int32]
    values: pa.StringArray
    hashes: NDArray[np.int64]

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, rows: str, column: str) -> _Values:
        place, values = _numbered(sql.fetch(connection, f"SELECT {sql.name(column)} FROM {rows}").column(0))
        return cls(place, values, _hashes(connection, values))

    def beside(self, other: _Values) -> _Values:
        """The pairs of values that occur together."""
        width = len(other.values)
        place, codes = _numbered(pa.chunked_array([self.place * np.int64(width) + other.place]))
        left, right = np.divmod(codes.to_numpy(), width)
        values = pc.binary_join_element_wise(
            self.values.take(pa.array(left)), other.values.take(pa.array(right)), _JOINT
        )
        return _Values(place, values, _mixed(self.hashes[left], other.hashes[right]))


def _grouped(days: NDArray[np.int32], of: _Values) -> Groups:
    """Groups in order of day and hash."""
    order = _order(of.hashes, of.values)
    values, hashes, place = of.values.take(pa.array(order)), of.hashes[order], _inverse(order)[of.place]
    first, last = int(days.min()), int(days.max())
    if first == last:
        return Groups(np.full(len(order), first, np.int32), values, hashes, place)
    group, codes = _numbered(pa.chunked_array([(days - np.int64(first)) * len(order) + place]))
    ascending = np.argsort(codes)
    day, which = np.divmod(codes.to_numpy()[ascending], len(order))
    return Groups(
        (day + first).astype(np.int32), values.take(pa.array(which)), hashes[which], _inverse(ascending)[group]
    )


def _order(hashes: NDArray[np.int64], values: pa.StringArray) -> NDArray[np.int64]:
    order = np.argsort(hashes)
    if (np.diff(hashes[order]) == 0).any():
        # Text decides, so that the order never depends on that of the rows.
        order = np.lexsort((pc.rank(values).to_numpy(), hashes))
    return order


def _numbered(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """The place of each value among the distinct ones, null among them, and these."""
    encoded = column.dictionary_encode("encode")  # all chunks with the same dictionary
    return np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]), encoded.chunk(0).dictionary


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int32]:
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank


def _hashes(connection: duckdb.DuckDBPyConnection, values: pa.Array) -> NDArray[np.int64]:
    """[V] half of each text's MD5, as a whole number from 0: the same in every version of DuckDB."""
    connection.register("hashed_values", pa.table({"value": values}))
    query = f"SELECT coalesce(CAST(md5_number_lower(value) >> 1 AS BIGINT), {NULL}) AS hash FROM hashed_values"
    hashes: NDArray[np.int64] = sql.fetch(connection, query).column("hash").to_numpy()
    connection.unregister("hashed_values")
    return hashes


def _mixed(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """[V] a hash of two hashes, spread as evenly as they are; `NULL` where one of them is."""
    mixed = ((left.astype(np.uint64) * _MIXER + right.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)
    return np.where((left == NULL) | (right == NULL), NULL, mixed)
