"""A hash of texts that is the same on every machine and in every version, without a loop over texts or bytes.

Models that were trained with it read their tables by it, so it must never change. It is the polynomial hash
sum((byte_i + 1) * MULTIPLIER ** i) of the text's UTF-8 bytes, plus its length, all modulo 2 ** 64, and then the
finaliser of SplitMix64 (Steele, Lea & Flood 2014), so that all bits of the result depend on all of the sum's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_moe.mixing import Hashes, mixed

MULTIPLIER = 0x9E3779B97F4A7C15


def bucket_of(texts: pa.Array, buckets: int) -> pa.Array:
    """Index from 1 to `buckets` of each text, 0 where it is missing: int32 [rows]."""
    index = 1 + (hash_of(texts) % np.uint64(buckets)).astype(np.int64)
    return pa.array(index.astype(np.int32), mask=texts.is_null().to_numpy(zero_copy_only=False)).fill_null(0)


def hash_of(texts: pa.Array) -> Hashes:
    """[rows] a 64-bit hash of each text; that of "" where it is missing."""
    texts = pc.cast(pc.fill_null(texts, ""), pa.large_string())
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(bounds)
    # An array of empty texts only may have no buffer of bytes at all.
    content = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]].astype(np.uint64)
    starts = bounds[:-1] - bounds[0]
    place = np.arange(len(content)) - np.repeat(starts, lengths)
    terms = (content + np.uint64(1)) * _powers(int(lengths.max(initial=0)))[place]
    until = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return mixed(until[starts + lengths] - until[starts] + lengths.astype(np.uint64))


def _powers(count: int) -> Hashes:
    """[count] MULTIPLIER ** i modulo 2 ** 64."""
    powers = np.full(count, MULTIPLIER, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
