"""The candidates of a shard's users, as scoring takes them, and which source each is from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.scoring.candidates.lists import Lists, Pairs, Positions, first_of_each
from pipelines.scoring.candidates.seen import Seen, holds, without
from recsys_moe.scoring import ForAll

USERS_AT_ONCE = 1024


class UserCandidates(ABC):
    """Which items are scored for each user of a shard, less what is seen or against a rule."""

    @abstractmethod
    def given(self) -> ForAll | Callable[[int, int], Positions]:
        """What `score_top_n` takes: `ForAll`, or a function that gives item positions [stop - start, C] of users
        start to stop, ascending, no item twice, with -1 behind the last."""

    @abstractmethod
    def sources(self, user: Positions, item: Positions) -> pa.DictionaryArray:
        """[N] of pairs that were given, the first source in the YAML that has them."""


@dataclass(frozen=True)
class Everything(UserCandidates):
    """The same items for everyone.

    Attributes:
        items: [C] positions, ascending.
        seen: what is left out, by user; all of it is among `items`.
    """

    items: Positions
    seen: Seen

    def given(self) -> ForAll:
        return ForAll(self.items, self.left_out)

    def left_out(self, start: int, stop: int) -> Pairs:
        """Of users start to stop, counted from `start`, the columns of `items` that are left out."""
        user, item = self.seen.pairs(start, stop)
        return user, np.searchsorted(self.items, item)

    def mask(self, users: int) -> NDArray[np.bool_]:
        """[users, I] which items each of the first users may get."""
        may = np.zeros((users, self.seen.num_items), np.bool_)
        may[:, self.items] = True
        may[self.seen.pairs(0, users)] = False
        return may

    def sources(self, user: Positions, item: Positions) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(user), np.int32)), pa.array(["all"]))


@dataclass(frozen=True)
class Chosen(UserCandidates):
    """A list of each user's own.

    Attributes:
        lists: a list a user, ascending.
        source: [N] of each item in `lists` the number of its source, int8.
        names: of the sources.
    """

    lists: Lists
    source: NDArray[np.int8]
    names: tuple[str, ...]

    def given(self) -> Callable[[int, int], Positions]:
        return self.block

    def block(self, start: int, stop: int) -> Positions:
        """[stop - start, C] item positions of some users, ascending, -1 behind the last."""
        user, item = self.lists.take(np.arange(start, stop))
        offsets = self.lists.offsets[start : stop + 1]
        listed = np.full((stop - start, int(np.diff(offsets).max(initial=0))), -1)
        listed[user, np.arange(len(item)) - (offsets[:-1] - offsets[0])[user]] = item
        return listed

    def sources(self, user: Positions, item: Positions) -> pa.DictionaryArray:
        low, high = self.lists.offsets[user], self.lists.offsets[user + 1]
        # All pairs at once are looked for by halves, each in its user's list.
        while np.any(low < high):
            middle = (low + high) // 2
            before = (low < high) & (self.lists.items[np.minimum(middle, len(self.lists.items) - 1)] < item)
            low, high = np.where(before, middle + 1, low), np.where(before, high, np.minimum(middle, high))
        assert np.array_equal(self.lists.items[low], item), "a pair is asked for that was not given"
        return pa.DictionaryArray.from_arrays(pa.array(self.source[low]), pa.array(self.names)).cast(
            pa.dictionary(pa.int32(), pa.string())
        )


class Source(Protocol):
    """Who proposes items for a shard's users."""

    def propose(self, start: int, stop: int, seen: Positions) -> Pairs:
        """Items for users start to stop, counted from `start`, the best first; `seen` are keys that may be left out."""


@dataclass(frozen=True)
class Grouped:
    """The same items for all users of a group: users [U] are in group [U]."""

    lists: Lists
    group: Positions

    def propose(self, start: int, stop: int, seen: Positions) -> Pairs:
        """The group's list."""
        return self.lists.take(self.group[start:stop])


@dataclass(frozen=True)
class Ranked:
    """A list of each user's own, cut to `limit`.

    Attributes:
        lists: a list a user, the best first.
        key: makes numbers of pairs, as those that are left out have them.
    """

    lists: Lists
    limit: int
    key: Callable[[Pairs], Positions]

    def propose(self, start: int, stop: int, seen: Positions) -> Pairs:
        """The first that are not seen."""
        pairs = self.lists.take(np.arange(start, stop))
        return first_of_each(without(pairs, self.key(pairs), seen), self.limit)


@dataclass(frozen=True)
class Asked:
    """A source, and for whom it is asked: users with fewer items than this from those before it, all where None."""

    source: Source
    if_fewer_than: int | None = None


def combined(sources: Mapping[str, Asked], seen: Seen, users: int) -> Chosen:
    """What all sources propose for the users, each pair once, from the first source that has it; nothing seen."""
    made = [
        _block(list(sources.values()), seen, at, min(at + USERS_AT_ONCE, users))
        for at in range(0, users, USERS_AT_ONCE)
    ]
    lengths = np.concatenate([[0], *(lengths for lengths, _, _ in made)])
    items = np.concatenate([np.zeros(0, np.int32), *(items for _, items, _ in made)])
    source = np.concatenate([np.zeros(0, np.int8), *(source for _, _, source in made)])
    return Chosen(Lists(np.cumsum(lengths), items), source, tuple(sources))


def _block(
    sources: Sequence[Asked], seen: Seen, start: int, stop: int
) -> tuple[Positions, NDArray[np.int32], NDArray[np.int8]]:
    """Of users start to stop: how many items each has, the items, and their sources."""
    left_out = seen.keys(start, stop)
    found, number = np.zeros(0, np.int64), np.zeros(0, np.int8)
    lengths = np.zeros(stop - start, np.int64)
    for place, one in enumerate(sources):
        keys = seen.key(one.source.propose(start, stop, left_out))
        if one.if_fewer_than is not None:
            keys = keys[lengths[keys // seen.num_items] < one.if_fewer_than]
        # Of equal keys the first is found.
        found, first = np.unique(np.concatenate([found, keys]), return_index=True)
        number = np.concatenate([number, np.full(len(keys), place, np.int8)])[first]
        kept = ~holds(left_out, found)
        found, number = found[kept], number[kept]
        lengths = np.bincount(found // seen.num_items, minlength=stop - start)
    return lengths, (found % seen.num_items).astype(np.int32), number
