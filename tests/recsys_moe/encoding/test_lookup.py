from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_moe.encoding import hashing, lookup
from recsys_moe.encoding.lookup import Lookup


def expected(values: pa.Array, vocabulary: pa.Array) -> list[int]:
    return pc.add(pc.index_in(values, value_set=vocabulary, skip_nulls=True).fill_null(-1), 1).to_pylist()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=3), unique=True, max_size=50), st.lists(st.none() | st.text(max_size=3)))
def test_finds_what_is_there_and_nothing_else(known: list[str], asked: list[str | None]) -> None:
    vocabulary, values = pa.array(known, pa.string()), pa.array([*asked, *known], pa.string())
    assert Lookup(vocabulary)(values).to_pylist() == expected(values, vocabulary)


def test_a_large_vocabulary() -> None:
    vocabulary = pa.array([f"v{n}" for n in range(100_000)])
    values = vocabulary.take(pa.array(np.random.default_rng(0).permutation(100_000)))
    assert Lookup(vocabulary)(values).to_pylist() == expected(values, vocabulary)
    assert not np.any(Lookup(vocabulary)(pc.binary_join_element_wise(values, "x", "")))


@pytest.mark.parametrize("bits", [0, 2, 64])
def test_texts_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    kept = np.uint64((1 << 64) - (1 << (64 - bits)) if bits else 0)
    monkeypatch.setattr(lookup, "hash_of", lambda texts: hashing.hash_of(texts) & kept)
    vocabulary, values = pa.array(["a", "b", "c", ""]), pa.array(["c", "d", None, "", "a", "b"])
    assert Lookup(vocabulary)(values).to_pylist() == [3, 0, 0, 4, 1, 2]
