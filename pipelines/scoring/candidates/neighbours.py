"""Items near an item, and what a user's last items make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from pipelines.scoring.candidates import small
from pipelines.scoring.candidates.lists import Lists, Pairs, Positions, best_of_each
from pipelines.scoring.candidates.seen import holds
from pipelines.scoring.staging import Staging


@dataclass(frozen=True)
class Neighbours:
    """Of each item the nearest ones, the nearest first.

    Attributes:
        lists: a list an item.
        scores: [N] how near each item in `lists` is, above 0, float32.
    """

    lists: Lists
    scores: NDArray[np.float32]

    def write(self, staging: Staging, name: str) -> None:
        """Keep them for the shards."""
        scores = pa.ListArray.from_arrays(pa.array(self.lists.offsets, pa.int32()), pa.array(self.scores, pa.float32()))
        small.write(staging, name, pa.table({"items": self.lists.as_column(), "scores": scores}))

    @classmethod
    def read(cls, staging: Staging, name: str) -> Self:
        """What was written; of a local file nothing is in memory before it is looked at."""
        found = small.read(staging, name)
        scores = found.column("scores").combine_chunks().values.to_numpy()
        return cls(Lists.of_column(found.column("items").combine_chunks()), scores)

    def as_matrix(self) -> sparse.csr_array:
        """[I, I] the scores, a row an item."""
        count = len(self.lists)
        return sparse.csr_array((self.scores, self.lists.items, self.lists.offsets), shape=(count, count))


@dataclass(frozen=True)
class FromSeeds:
    """The items with the greatest sums of scores over a user's seeds.

    Attributes:
        seeds: a list a user.
        neighbours: [I, I] the scores of the neighbours of each item.
        limit: how many items a user gets.
        key: makes numbers of pairs, as those that are left out have them.
    """

    seeds: Lists
    neighbours: sparse.csr_array
    limit: int
    key: Callable[[Pairs], Positions]

    def propose(self, start: int, stop: int, seen: Positions) -> Pairs:
        """The best that are not seen; equal sums go by id."""
        owner, item = self.seeds.take(np.arange(start, stop))
        shape = (stop - start, self.neighbours.shape[0])
        of_user = sparse.csr_array((np.ones(len(item), np.float32), (owner, item)), shape=shape)
        sums = of_user @ self.neighbours
        user, found = np.repeat(np.arange(stop - start), np.diff(sums.indptr)), sums.indices.astype(np.int64)
        kept = np.flatnonzero(~holds(seen, self.key((user, found))))
        best = kept[best_of_each(user[kept], found[kept], sums.data[kept], self.limit)]
        return user[best], found[best]
