"""What users have met already, and so are not to be shown again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import sql
from pipelines.config import Recommender
from pipelines.scoring.candidates import sharded
from pipelines.scoring.candidates.lists import Lists, Pairs, Positions
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.staging import Staging

NAME = "seen"


def make(making: Making) -> None:
    """Cut what users met on the days that count by shard."""
    wanted, ds = making.config.scoring.exclude_seen, making.ds
    if wanted is False:
        return
    days = pc.field("ds") <= ds
    if wanted is not True:
        days &= pc.field("ds") > ds - timedelta(days=wanted)
    sql.view(making.connection, "seen_log", making.tables.dataset("interactions"), days)
    user, item = sql.name(making.config.columns.user), sql.name(making.config.columns.item)
    sharded.write(
        making,
        NAME,
        f"SELECT DISTINCT l.{user} AS user_id, k.position AS item FROM seen_log AS l "
        f"JOIN known_items AS k ON l.{item} = k.item_id WHERE k.allowed AND {making.is_asked_for(f'l.{user}')}",
    )


@dataclass(frozen=True)
class Seen:
    """Of each user, the items that are left out; sorted.

    Attributes:
        lists: a list a user.
        num_items: of how many items there are.
    """

    lists: Lists
    num_items: int

    def pairs(self, start: int, stop: int) -> Pairs:
        """What users start to stop have seen; users are counted from `start`."""
        return self.lists.take(np.arange(start, stop))

    def keys(self, start: int, stop: int) -> Positions:
        """The same pairs as `key` makes numbers of them, ascending."""
        return self.key(self.pairs(start, stop))

    def key(self, pairs: Pairs) -> Positions:
        """[N] a number for each pair, in the order of user, then item."""
        user, item = pairs
        return user * self.num_items + item


def read(config: Recommender, staging: Staging, shard: int, users: pa.Array | pa.ChunkedArray, num_items: int) -> Seen:
    """What each of a shard's users (ids [U]) must not get again."""
    if config.scoring.exclude_seen is False:
        return Seen(Lists.none(len(users)), num_items)
    return Seen(sharded.read(staging, NAME, shard, users), num_items)


def without(pairs: Pairs, keys: Positions, among: Positions) -> Pairs:
    """The pairs whose keys [N] are not `among` the ascending ones."""
    kept = ~holds(among, keys)
    return pairs[0][kept], pairs[1][kept]


def holds(ascending: Positions, values: Positions) -> NDArray[np.bool_]:
    """[N] which values are among the ascending ones."""
    if not len(ascending):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[at] == values
    return found
