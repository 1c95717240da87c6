"""Finding values in a vocabulary: what that takes is made once, and not again for every block or every request."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys_moe.encoding.hashing import hash_of
from recsys_moe.mixing import Hashes


class Lookup:
    """Where each value of a vocabulary is, by its hash.

    The hashes are sorted, and their first bits say where to begin: the one looked for is at most a few places on.
    What is found is compared as text, so that two texts of one hash are no mistake.
    """

    def __init__(self, vocabulary: pa.Array) -> None:
        hashes = hash_of(vocabulary)
        self._vocabulary, self._order = vocabulary, np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]
        bits = len(vocabulary).bit_length()
        self._shift = np.uint64(64 - bits)
        bounds = np.searchsorted(self._hashes >> self._shift, np.arange(2**bits + 1, dtype=np.uint64))
        self._starts = bounds[:-1].astype(np.int32)
        self._most_alike = int(np.unique(hashes, return_counts=True)[1].max(initial=0))

    def __call__(self, values: pa.Array) -> pa.Array:
        """[rows] int32 indices from 1; 0 where a value is missing or not in the vocabulary."""
        index = np.zeros(len(values), np.int32)
        if not len(self._order):
            return pa.array(index)
        place = self._places(hash_of(values))
        for further in range(self._most_alike):
            candidate = self._order[np.minimum(place + further, len(self._order) - 1)]
            same = pc.equal(self._vocabulary.take(pa.array(candidate)), values).fill_null(False)
            index = np.where(same.to_numpy(zero_copy_only=False), candidate + 1, index)
        return pa.array(index)

    def _places(self, hashes: Hashes) -> NDArray[np.int32]:
        """[rows] the first place of those in order whose hash is not below the row's; it may be after the last."""
        place: NDArray[np.int32] = self._starts[hashes >> self._shift]
        last = len(self._order) - 1
        below = np.flatnonzero(self._hashes[np.minimum(place, last)] < hashes)
        while len(below):
            place[below] += 1
            here = place[below]
            below = below[(here <= last) & (self._hashes[np.minimum(here, last)] < hashes[below])]
        return place
