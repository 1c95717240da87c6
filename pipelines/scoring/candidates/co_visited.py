"""Items that were met by the same users, counted in the log: item-item collaborative filtering (Sarwar et al. 2001).

The score of item j for one who met item i is a sum over the users who met both, divided by n_i^0.7 of the n_i users who
met i: each user counts 1 / √(items met), and less the longer ago j was met (`met.HALF_LIVES`). That is the similarity
of Deshpande & Karypis (2004) with a power on n_i, and with what is popular now kept: dividing by n_j, as the cosine
does, puts rare items first. What it is worth is in docs/kuairand.md.

DuckDB gathers the users' items, and a product of sparse matrices counts the pairs, some items at a time: many times as
fast as the same join in SQL, which hashes each pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipelines import sql
from pipelines.config import CoVisited
from pipelines.scoring.candidates import met
from pipelines.scoring.candidates.lists import Lists, best_of_each
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.candidates.neighbours import Neighbours

NAME = "co_visited"
POWER = 0.7
MOST_ROWS, MOST_PAIRS = 20_000_000, 500_000_000
"""A user with n items brings n rows and n² pairs. Of each user only so many items count, the last ones, that all users
together bring no more than this; where two items each are too many rows, so do only some of the users."""
_PAIRS_AT_ONCE = 5_000_000


def make(making: Making, wanted: CoVisited) -> None:
    """Write users' seeds, and the neighbours of each item."""
    table = sql.name(met.make_seeds(making, wanted))
    shown = making.fetch("SELECT position FROM known_items WHERE allowed ORDER BY position").column(0).to_numpy()
    counts = _Counts(_baskets(making, table), np.isin(np.arange(len(making.items)), shown))
    near = [*counts.nearest(wanted.neighbours)]
    item, other, score = (np.concatenate([part[column] for part in near]) for column in range(3))
    Neighbours(Lists.of((item, other), len(making.items)), score).write(making.staging, NAME)


def _baskets(making: Making, table: str) -> sparse.csr_array:
    """[users, I] how fresh each item is that a user met, of those that count."""
    last, every = _what_counts(making, table)
    rows = sql.stream(
        making.connection,
        f"SELECT item, place, fresh FROM {table} WHERE place < {last} AND hash(user_id) % {every} = 0 "
        "ORDER BY user_id, place",
    )
    items, starts, count = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
    fresh = [np.zeros(0, np.float32)]
    for batch in rows:
        items.append(batch.column("item").to_numpy())
        fresh.append(batch.column("fresh").to_numpy())
        starts.append(count + np.flatnonzero(batch.column("place").to_numpy() == 0))
        count += len(batch)
    offsets = np.append(np.concatenate(starts), count)
    shape = len(offsets) - 1, len(making.items)
    return sparse.csr_array((np.concatenate(fresh), np.concatenate(items), offsets), shape=shape)


def _what_counts(making: Making, table: str) -> tuple[int, int]:
    """How many items of a user count, and that one user in how many does."""
    sizes = making.fetch(
        "SELECT size, count(*) AS users FROM ("
        f"SELECT max(place) + 1 AS size FROM {table} GROUP BY user_id) GROUP BY size ORDER BY size"
    )
    size, users = (sizes.column(name).to_numpy().astype(np.float64) for name in ("size", "users"))
    last = np.arange(2, max(2, int(size.max(initial=0))) + 1)
    counted = np.minimum(size, last[:, None])
    rows, pairs = (counted * users).sum(axis=1), (counted**2 * users).sum(axis=1)
    chosen = max(0, int(np.sum((rows <= MOST_ROWS) & (pairs <= MOST_PAIRS))) - 1)
    return int(last[chosen]), max(1, int(np.ceil(rows[chosen] / MOST_ROWS)))


@dataclass(frozen=True)
class _Counts:
    """How fresh each item is that users [users, I] met, and which of these [I] may be shown."""

    met: sparse.csr_array
    shown: NDArray[np.bool_]

    def nearest(self, count: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]]:
        """Items, ascending, their `count` nearest, and the scores; some items at a time."""
        sizes = np.diff(self.met.indptr)
        shares = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes).astype(np.float32)
        users_of = sparse.csr_array((shares, self.met.indices, self.met.indptr), shape=self.met.shape).T.tocsr()
        divisor = (np.diff(users_of.indptr) + 1.0) ** POWER
        for start, stop in self._parts(users_of):
            together = users_of[start:stop] @ self.met
            item = np.repeat(np.arange(start, stop), np.diff(together.indptr))
            other = together.indices.astype(np.int64)
            score = (together.data / divisor[item]).astype(np.float32)
            kept = np.flatnonzero((item != other) & self.shown[other])
            best = kept[best_of_each(item[kept] - start, other[kept], score[kept], count)]
            yield item[best].astype(np.int32), together.indices[best], score[best]

    def _parts(self, users_of: sparse.csr_array) -> Iterator[tuple[int, int]]:
        """Ranges of items that together have about `_PAIRS_AT_ONCE` pairs with others, or are one."""
        items_of_user = np.diff(self.met.indptr)
        pairs = np.concatenate([[0], np.cumsum(items_of_user[users_of.indices], dtype=np.int64)])[users_of.indptr]
        wanted = np.arange(0, pairs[-1] + _PAIRS_AT_ONCE, _PAIRS_AT_ONCE)
        bounds = np.unique([0, *np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1).tolist(), len(pairs) - 1])
        return pairwise(bounds.tolist())
