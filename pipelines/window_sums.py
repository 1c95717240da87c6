"""Sums of daily counts over windows of days, for the days and values that are asked for.

What bounds it is the number of counts in the longest window, a row for each value and day. Each row is looked at once:
its hash is searched among those asked for (both are sorted), and what is found is added to the sums of its band of
days. A window is the sum of some bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Integers = NDArray[np.int64]
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Measure:
    """A column of the counts, and the days until it is known.

    `like` names a measure of the same delay whose values are mostly the same: only what differs is then added up.
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
        measures: what is summed.
    """

    def __init__(self, days: NDArray[np.int32], hashes: Integers, bands: int, measures: Sequence[Measure]) -> None:
        self._hashes = hashes
        starts = np.flatnonzero(np.diff(days, prepend=_NEVER))
        ends = [*starts[1:].tolist(), len(days)]
        self.moments = {int(days[at]): slice(int(at), end) for at, end in zip(starts, ends, strict=True)}
        self.sums = {measure.name: np.zeros((bands, len(days))) for measure in measures}
        self.age = np.full(len(days), _NEVER, np.int32)

    def find(self, moment: int, hashes: Integers) -> tuple[Integers, Integers]:
        """Where those of `hashes` that are asked for on a day stand, and which of them these are."""
        where = self.moments[moment]
        mine = self._hashes[where]
        place = np.minimum(np.searchsorted(mine, hashes), len(mine) - 1)
        found = np.flatnonzero(mine[place] == hashes)
        return where.start + place[found], found


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
        self._asked = {key: Asked(*what, len(edges), measures) for key, what in asked.items()}

    def add(self, ds: date, counts: pa.RecordBatch) -> None:
        """Add counts that came in on day `ds`: columns key, event_day, hash and the measures, in order of key."""
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
        hashes = counts.column("hash").to_numpy()
        values = {one.name: counts.column(one.name).to_numpy() for one in self._measures}
        one_day = bool((happened == happened[0]).all())
        for day in happened[:1] if one_day else np.unique(happened):
            on_day = slice(None) if one_day else happened == day
            block = {name: column[on_day] for name, column in values.items()}
            for moment in asked.moments:
                if ds < moment and 0 < moment - day <= self._edges[-1]:
                    self._add_block(asked, moment, ds, int(day), hashes[on_day], block)

    def _add_block(
        self, asked: Asked, moment: int, ds: int, day: int, hashes: Integers, values: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Add counts of one day. A value stands once among them, so that each place is added to once."""
        at, found = asked.find(moment, hashes)
        band = int(np.searchsorted(self._edges, moment - day))
        if moment - day <= max(self._windows):
            asked.age[at] = np.minimum(asked.age[at], moment - day)
        for measure in self._measures:
            if ds >= moment - measure.delay:
                continue
            added = values[measure.name]
            if measure.like is not None:
                added = values[measure.like] - added  # type: ignore[operator]
                if not added.any():
                    continue
            sums = asked.sums[measure.name][band]
            sums[at] += added[found]

    def result(self, key: str) -> pa.Table:
        """[N] for each day and value asked for: `__age`, days since it was last seen (null where it was not, within
        the longest window), and the sums, `<measure>_<days>d`."""
        asked = self._asked[key]
        columns = {"__age": pa.array(asked.age, mask=asked.age == _NEVER)}
        for measure in self._measures:
            for days in self._windows:
                inside = (self._edges > measure.delay) & (self._edges <= measure.delay + days)
                total = asked.sums[measure.name][inside].sum(axis=0)
                if measure.like is not None:
                    total = asked.sums[measure.like][inside].sum(axis=0) - total
                columns[f"{measure.name}_{days}d"] = pa.array(total)
        return pa.table(columns)


def _days_since_1970(day: date) -> int:
    return (day - date(1970, 1, 1)).days
