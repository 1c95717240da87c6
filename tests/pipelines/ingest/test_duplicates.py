"""The memory of hashes: each is new exactly once, in whatever pieces they come, in memory and in files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest import duplicates
from pipelines.ingest.duplicates import SeenHashes


@given(st.lists(st.lists(st.integers(0, 40) | st.integers(2**64 - 3, 2**64 - 1), max_size=12), max_size=40))
def test_only_the_first_is_new(pieces: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(duplicates, "_LARGE", 16)
        patch.setattr(duplicates, "_MERGED_RUNS", 3)
        seen, known = SeenHashes(Path(folder)), set[int]()
        for piece in pieces:
            expected = [value not in known and value not in piece[:n] for n, value in enumerate(piece)]
            assert seen.first_time(np.array(piece, np.uint64)).tolist() == expected
            known |= set(piece)


def test_many_go_to_files(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    seen = SeenHashes(tmp_path)
    pieces = [draw.integers(0, 2**64, 150_000, dtype=np.uint64) for _ in range(17)]
    assert all(seen.first_time(piece).all() for piece in pieces)
    assert len(list(tmp_path.iterdir())) == 2
    assert not seen.first_time(np.concatenate(pieces)).any()
