"""A hash of texts that is the same on every machine and in every version, without a loop over texts or bytes.

Models that were trained with it read their tables by it, so it must never change. It is the polynomial hash
sum((byte_i + 1) * MULTIPLIER ** i) of the text's UTF-8 bytes, plus its length, all modulo 2 ** 64, and then the
finaliser of SplitMix64 (Steele, Lea & Flood 2014), so that all bits of the result depend on all of the sum's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys_moe.encoding.columns import utf8_of
from recsys_moe.mixing import Hashes, mixed

MULTIPLIER = 0x9E3779B97F4A7C15
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
"""[count] what keeps so many bytes of eight."""
_BYTES_A_PASS = 200
"""Bytes that take about as long as what a pass costs whatever it passes over."""

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


def bucket_of(texts: pa.Array, buckets: int) -> pa.Array:
    """Index from 1 to `buckets` of each text, 0 where it is missing: int32 [rows]."""
    index = 1 + (hash_of(texts) % np.uint64(buckets)).astype(np.int64)
    return pa.array(index.astype(np.int32), mask=texts.is_null().to_numpy(zero_copy_only=False)).fill_null(0)


def hash_of(texts: pa.Array) -> Hashes:
    """[rows] a 64-bit hash of each text; that of "" where it is missing."""
    content, bounds = utf8_of(texts)
    starts, lengths = bounds[:-1], np.diff(bounds)
    is_worth_it = len(content) > _BYTES_A_PASS * lengths.max(initial=0)
    sums = (_sums_by_place if is_worth_it else _sums)(content, starts, lengths)
    return mixed(sums + lengths.astype(np.uint64))


def _sums(content: Bytes, starts: Places, lengths: Places) -> Hashes:
    """[rows] the polynomial of each text, which begins at `starts` in `content`: a pass over all bytes."""
    place = np.arange(len(content)) - np.repeat(starts, lengths)
    terms = (content.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max(initial=0)))[place]
    until = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    sums: Hashes = until[starts + lengths] - until[starts]
    return sums


def _sums_by_place(content: Bytes, starts: Places, lengths: Places) -> Hashes:
    """The same in passes over the texts, one for each byte of the longest: much less where texts are many and short.

    Eight bytes of each text are read as one number. What is after the text's end counts as 0.
    """
    powers = _powers(int(lengths.max()))
    words = np.ndarray(len(content) + 1, "<u8", np.concatenate([content, np.zeros(8, np.uint8)]), strides=(1,))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(powers)])[lengths]  # of the 1 in `byte + 1`
    for first in range(0, len(powers), 8):
        texts = np.flatnonzero(lengths > first) if first else slice(None)
        word = words[starts[texts] + first] & _FIRST_BYTES[np.minimum(lengths[texts] - first, 8)]
        part = np.zeros(len(word), np.uint64)
        for power in powers[first : first + 8]:
            part += (word & np.uint64(255)) * power
            word >>= np.uint64(8)
        sums[texts] += part
    return sums


def _powers(count: int) -> Hashes:
    """[count] MULTIPLIER ** i modulo 2 ** 64."""
    powers = np.full(count, MULTIPLIER, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
