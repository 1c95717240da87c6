"""Lists of different lengths, held as two arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Pairs = tuple[Positions, Positions]
"""Users [N], ascending, and an item of each [N]; of one user the best first."""


@dataclass(frozen=True)
class Lists:
    """L lists of items, one after the other.

    Attributes:
        offsets: [L + 1] where each list begins; the last is where the last one ends.
        items: [N] positions in the table of items, int32.
    """

    offsets: Positions
    items: NDArray[np.int32]

    @classmethod
    def of(cls, pairs: tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]], count: int) -> Self:
        """`count` lists of pairs that are sorted by list."""
        owner, items = pairs
        lengths = np.bincount(owner, minlength=count)
        return cls(np.concatenate([[0], np.cumsum(lengths)]), items.astype(np.int32, copy=False))

    @classmethod
    def none(cls, count: int) -> Self:
        """`count` empty lists."""
        return cls(np.zeros(count + 1, np.int64), np.zeros(0, np.int32))

    @classmethod
    def of_column(cls, column: pa.ListArray) -> Self:
        """The lists of an Arrow column without nulls."""
        return cls(column.offsets.to_numpy().astype(np.int64), column.values.to_numpy())

    def as_column(self) -> pa.ListArray:
        """The lists as an Arrow column."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.items, pa.int32()))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, wanted: Positions) -> Pairs:
        """The items of some lists, with the place in `wanted` [W] of the list that each is in."""
        owner, at = self.places(wanted)
        return owner, self.items[at].astype(np.int64)

    def places(self, wanted: Positions) -> Pairs:
        """The same, with the places in `items` instead of the items."""
        first, lengths = self.offsets[wanted], np.diff(self.offsets)[wanted]
        owner = np.repeat(np.arange(len(wanted)), lengths)
        ends = np.cumsum(lengths)
        return owner, np.arange(len(owner)) + np.repeat(first - (ends - lengths), lengths)


def first_of_each(pairs: Pairs, limit: int) -> Pairs:
    """At most `limit` items of each user."""
    user, item = pairs
    kept = is_early(user, limit)
    return user[kept], item[kept]


def is_early(owner: Positions, limit: int) -> NDArray[np.bool_]:
    """[N] whether a place is among its owner's first `limit`; owners ascend."""
    early: NDArray[np.bool_] = np.arange(len(owner)) - np.searchsorted(owner, owner) < limit
    return early


def best_of_each(owner: Positions, item: Positions, score: NDArray[np.float32], limit: int) -> Positions:
    """The places in these arrays [N] of each owner's `limit` items of the greatest scores, the best first, ties by
    item. Scores are above 0; owners, from 0, ascend."""
    # Such floats are in the order of their bits.
    keys = owner << 31 | (2**31 - 1 - score.view(np.int32).astype(np.int64))
    # A plain sort is many times as fast as one that gives the order, which only those that may be kept need.
    ordered = np.sort(keys)
    first = np.searchsorted(owner, np.arange(int(owner[-1]) + 2 if len(owner) else 1))
    worst = ordered[np.minimum(first[:-1] + limit, np.maximum(first[1:], 1)) - 1]
    near = np.flatnonzero(keys <= worst[owner])
    near = near[np.lexsort((item[near], keys[near]))]
    return near[is_early(owner[near], limit)]
