"""Which events came before: a memory of 64-bit hashes that does not grow with the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_MERGED_RUNS = 8
_LARGE = 1 << 20


class SeenHashes:
    """The hashes of all rows so far, 8 bytes each.

    They lie in sorted runs: small ones in memory, large ones in files, read back one at a time to be searched. Two of
    20 million different keys share a hash of 64 bits with a probability of 1 in 90,000; a row lost that way is rarer
    than a broken disk.

    Args:
        folder: for the files; it must exist, and may be removed when the hashes are no longer needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._small: list[Hashes] = []
        self._large: list[Path] = []

    def first_time(self, hashes: Hashes) -> NDArray[np.bool_]:
        """[rows] whether each of `hashes` is seen for the first time, here and in all calls before."""
        order = np.argsort(hashes, kind="stable")
        ranked = hashes[order]
        fresh = np.ones(len(ranked), np.bool_)
        fresh[1:] = ranked[1:] != ranked[:-1]
        for run in self._runs():
            place = np.minimum(np.searchsorted(run, ranked), len(run) - 1)
            fresh &= run[place] != ranked
        self._add(ranked[fresh])
        first = np.empty(len(ranked), np.bool_)
        first[order] = fresh
        return first

    def _runs(self) -> Iterator[Hashes]:
        yield from self._small
        for path in self._large:
            yield np.fromfile(path, np.uint64)

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
