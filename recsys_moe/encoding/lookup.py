"""Finding values in a vocabulary: what that takes is made once, and not again for every block or every request."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_moe.encoding.hashing import hash_of


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
        self._starts, self._deepest = bounds[:-1].astype(np.int32), int(np.diff(bounds).max())
        self._most_alike = int(np.unique(hashes, return_counts=True)[1].max(initial=0))

    def __call__(self, values: pa.Array) -> pa.Array:
        """[rows] int32 indices from 1; 0 where a value is missing or not in the vocabulary."""
        if not len(self._order):
            return pa.array(np.zeros(len(values), np.int32))
        hashes, last = hash_of(values), len(self._order) - 1
        place = self._starts[hashes >> self._shift]
        for _ in range(self._deepest):
            place += self._hashes[np.minimum(place, last)] < hashes
        index = np.zeros(len(values), np.int32)
        for further in range(self._most_alike):
            candidate = self._order[np.minimum(place + further, last)]
            same = pc.equal(self._vocabulary.take(pa.array(candidate)), values).fill_null(False)
            index = np.where(same.to_numpy(zero_copy_only=False), candidate + 1, index)
        return pa.array(index)
