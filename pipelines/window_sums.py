"""Sums of daily counts over windows of days, for the days and values that are asked for.

What bounds it is the number of counts in the longest window, a row for each value and day. Each row is looked at once:
its hash is searched among those asked for (both are sorted), and what is found is added to the sums of its band of
days. A window is the sum of some bands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Sums = dict[str, NDArray[np.float64]]
AGE = "days_since_last"
_HASH_BITS = 63
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Measure:
    """A column of the counts, and the days until it is known.

    `like` names a measure whose values it has wherever it is null. With the same delay, only what differs is added up.
    """

    name: str
    delay: int
    like: str | None = None


class Asked:
    """The days and values of one key that are asked for, and the sums so far.

    Args:
        days: [N] as days since 1970, ascending.
        hashes: [N] of the values, ascending within a day.
        bands: how many there are.

    Attributes:
        moments: by day, where the hashes asked for on it stand.
        sums: by measure, [bands, N]; made when the first number comes that is not 0.
        age: [N] days since each was last seen.
    """

    def __init__(self, days: NDArray[np.int32], hashes: Integers, bands: int) -> None:
        starts = np.flatnonzero(np.diff(days, prepend=_NEVER)).tolist()
        ends = [*starts[1:], len(days)][: len(starts)]
        self.moments = {int(days[at]): _Places(hashes[at:end], at) for at, end in zip(starts, ends, strict=True)}
        self.sums: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros((bands, len(days))))
        self.age = np.full(len(days), _NEVER, np.int32)


class _Places:
    """Where hashes stand among some that are ascending.

    Hashes are spread evenly, so that the first bits of one tell, but for a step or two, where it stands: in half the
    time of a binary search.
    """

    def __init__(self, hashes: Integers, first: int) -> None:
        self._first, self._shift = first, _HASH_BITS - len(hashes).bit_length() - 1
        starts = np.arange(1 << (_HASH_BITS - self._shift), dtype=np.int64) << self._shift
        self._starts = np.searchsorted(hashes, starts)
        # What is missing has a negative hash, which nothing is looked up by. The end stops every search.
        self._hashes = np.append(hashes, np.iinfo(np.int64).max)

    def find(self, hashes: Integers) -> tuple[Integers, Integers]:
        """The places of those of `hashes` that are there, and which of them these are."""
        place = self._starts[np.maximum(hashes, 0) >> self._shift]
        later = np.flatnonzero(self._hashes[place] < hashes)
        while len(later):
            place[later] += 1
            later = later[self._hashes[place[later]] < hashes[later]]
        found = np.flatnonzero(self._hashes[place] == hashes)
        return self._first + place[found], found


class WindowSums:
    """Adds up daily counts. Memory: 8 bytes for each value that is asked for, measure and band.

    Args:
        windows: lengths in days; each ends the day before the event, less the measure's delay.
        measures: what is summed.
        asked: by key, the days since 1970 and the hashes that are asked for, sorted.
    """

    def __init__(
        self,
        windows: Sequence[int],
        measures: Sequence[Measure],
        asked: Mapping[str, tuple[NDArray[np.int32], Integers]],
    ) -> None:
        self._windows, self._measures = windows, measures
        edges = {measure.delay + days for measure in measures for days in (0, *windows)} - {0}
        self._edges = np.array(sorted(edges))
        delays = {measure.name: measure.delay for measure in measures}
        self._differences = {one.name: one.like for one in measures if one.like and delays[one.like] == one.delay}
        self._asked = {key: Asked(*what, len(edges)) for key, what in asked.items()}

    def add(self, ds: date, counts: pa.RecordBatch) -> None:
        """Add counts that came in on day `ds`: columns key, event_day, value_hash and the measures, in order of key."""
        keys = counts.column("key")
        keys = keys if pa.types.is_dictionary(keys.type) else keys.dictionary_encode()
        runs = pc.run_end_encode(keys.indices)
        start = 0
        for key, end in zip(keys.dictionary.take(runs.values).to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if key in self._asked:
                self._add_key(self._asked[key], _days_since_1970(ds), counts.slice(start, end - start))
            start = end

    def _add_key(self, asked: Asked, ds: int, counts: pa.RecordBatch) -> None:
        happened = counts.column("event_day").cast(pa.int32()).to_numpy()
        hashes = counts.column("value_hash").to_numpy()
        values = self._values(counts)
        one_day = bool((happened == happened[0]).all())
        for day in happened[:1] if one_day else np.unique(happened):
            on_day = slice(None) if one_day else happened == day
            block = {name: column[on_day] for name, column in values.items()}
            for moment in asked.moments:
                if ds < moment and 0 < moment - day <= self._edges[-1]:
                    self._add_block(asked, moment, ds, int(day), hashes[on_day], block)

    def _values(self, counts: pa.RecordBatch) -> dict[str, NDArray[np.generic]]:
        """What is to be added up, by measure; a difference where there is one at all."""
        values: dict[str, Any] = {}
        for one in self._measures:
            column = counts.column(one.name)
            if one.name not in self._differences:
                values[one.name] = (
                    column if one.like is None else column.fill_null(counts.column(one.like))
                ).to_numpy()
            elif column.null_count < len(column):
                values[one.name] = pc.subtract(counts.column(one.like), column).fill_null(0).to_numpy()
        return values

    def _add_block(
        self, asked: Asked, moment: int, ds: int, day: int, hashes: Integers, values: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Add counts of one day. A value stands once among them, so that each place is added to once."""
        at, found = asked.moments[moment].find(hashes)
        band = int(np.searchsorted(self._edges, moment - day))
        if moment - day <= max(self._windows):
            asked.age[at] = np.minimum(asked.age[at], moment - day)
        for measure in self._measures:
            if measure.name in values and ds < moment - measure.delay:
                sums = asked.sums[measure.name][band]
                sums[at] += values[measure.name][found]

    def result(self, key: str) -> Sums:
        """[N] for each day and value asked for: `AGE`, days since it was last seen (NaN where it was not, within the
        longest window), and the sums, `<measure>_<days>d`."""
        asked = self._asked[key]
        found = {AGE: np.where(asked.age == _NEVER, np.nan, asked.age)}
        for measure in self._measures:
            for days in self._windows:
                found[f"{measure.name}_{days}d"] = self._total(asked, measure, days, found)
        return found

    def _total(self, asked: Asked, measure: Measure, days: int, found: Sums) -> NDArray[np.float64]:
        like = self._differences.get(measure.name)
        if like is not None and measure.name not in asked.sums:
            return found[f"{like}_{days}d"]
        inside = (self._edges > measure.delay) & (self._edges <= measure.delay + days)
        total: NDArray[np.float64] = asked.sums[measure.name][inside].sum(axis=0)
        return total if like is None else found[f"{like}_{days}d"] - total


def _days_since_1970(day: date) -> int:
    return (day - date(1970, 1, 1)).days
