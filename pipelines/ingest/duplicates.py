"""Which events came before: a memory of 64-bit hashes that does not grow with the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_MERGED_RUNS = 8
_LARGE = 1 << 20
_MAP_BITS = 28


class SeenHashes:
    """The hashes of all rows so far, 8 bytes each.

    They lie in sorted runs: small ones in memory, large ones in files. A map of bits, 32 MB, says of most hashes that
    they are new (of all but 8 % at 20 million rows); only the others are searched for in the runs. Two of 20 million
    different keys share a hash of 64 bits with a probability of 1 in 90,000; a row lost that way is rarer than a
    broken disk.

    Args:
        folder: for the files; it must exist, and may be removed when the hashes are no longer needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._map = np.zeros(1 << (_MAP_BITS - 3), np.uint8)
        self._small: list[Hashes] = []
        self._large: list[Path] = []

    def first_time(self, hashes: Hashes) -> NDArray[np.bool_]:
        """[rows] whether each of `hashes` is seen for the first time, here and in all calls before."""
        first = np.zeros(len(hashes), np.bool_)
        if not len(hashes):
            return first
        order = np.argsort(hashes)
        ranked = hashes[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        ranked = ranked[starts]
        fresh = np.ones(len(ranked), np.bool_)
        maybe = np.flatnonzero(self._mark(ranked))
        asked = ranked[maybe]
        for run in self._runs() if len(asked) else ():
            place = np.minimum(np.searchsorted(run, asked), len(run) - 1)
            fresh[maybe] &= run[place] != asked
        self._add(ranked[fresh])
        first[np.minimum.reduceat(order, starts)[fresh]] = True
        return first

    def _mark(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Set the bits of some hashes; whether each was set before, by this hash or by another one."""
        place = (hashes >> np.uint64(64 - _MAP_BITS + 3)).astype(np.int64)
        bit = np.left_shift(np.uint8(1), ((hashes >> np.uint64(64 - _MAP_BITS)) & np.uint64(7)).astype(np.uint8))
        known: NDArray[np.bool_] = (self._map[place] & bit) != 0
        np.bitwise_or.at(self._map, place, bit)
        return known

    def _runs(self) -> Iterator[Hashes]:
        yield from self._small
        for path in self._large:
            yield np.memmap(path, np.uint64, "r")

    def _add(self, run: Hashes) -> None:
        if not len(run):
            return
        self._small.append(run)
        if len(self._small) < _MERGED_RUNS:
            return
        # Timsort: runs that are sorted already are merged in linear time.
        merged = np.sort(np.concatenate(self._small), kind="stable")
        self._small = []
        if len(merged) < _LARGE:
            self._small.append(merged)
            return
        path = self._folder / f"{len(self._large)}.hashes"
        merged.tofile(path)
        self._large.append(path)
