"""Candidates of everyone, less what each user has seen."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.candidates import CandidateLists


@pytest.mark.parametrize("pairs", [1, 5, 100])
def test_the_same_for_all_in_tiles_as_in_lists(pairs: int) -> None:
    items, rng = np.array([2, 3, 5, 8, 9]), np.random.default_rng(0)
    user = np.sort(rng.integers(0, 7, 12))
    candidates = CandidateLists(items, user, rng.integers(0, len(items), 12))
    for start, stop in ((0, 3), (3, 7), (6, 7)):
        tiles = list(candidates.for_all().tiles(start, stop, pairs))
        assert max(tile.item.numel() for tile in tiles) <= max(pairs, stop - start)
        found = np.concatenate([np.where(tile.valid, tile.item, -1) for tile in tiles], axis=1)
        assert found.tolist() == candidates.block(start, stop).tolist()
