"""Numbers that look drawn and are the same on every machine, without a generator that has to be in the right state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

STEP = 0x9E3779B97F4A7C15
"""2 ** 64 over the golden ratio, odd: SplitMix64's step from one number to the next."""


def mixed(numbers: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): all bits of the result depend on all of the input's.

    Models read their tables by it (`encoding.hashing`), so it must never change.
    """
    numbers = numbers ^ (numbers >> np.uint64(30))
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


def draws(seed: int, epoch: int, rows: NDArray[np.int64], count: int) -> NDArray[np.uint32]:
    """[count, rows] numbers from 0 to 2 ** 32, drawn for each row by (seed, epoch, its number).

    For every two of them there is a SplitMix64 generator, of which a row takes the value of its number.
    """
    step = np.uint64(STEP)
    key = mixed(np.array([seed + 1], np.uint64) * step)
    key = mixed(key + np.array([epoch + 1], np.uint64) * step)
    keys = mixed(key + np.arange(1, (count + 1) // 2 + 1, dtype=np.uint64) * step)
    pairs = mixed(keys[:, None] + (rows.astype(np.uint64) + np.uint64(1)) * step)
    return np.concatenate([pairs.astype(np.uint32), (pairs >> np.uint64(32)).astype(np.uint32)])[:count]
