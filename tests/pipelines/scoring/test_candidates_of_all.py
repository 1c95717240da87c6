"""All items for everyone, less what each user has seen."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.scoring.candidates import Everything
from pipelines.scoring.candidates.lists import Lists
from pipelines.scoring.candidates.seen import Seen


@pytest.mark.parametrize("pairs", [1, 5, 100])
def test_in_tiles_as_in_a_matrix(pairs: int) -> None:
    rng = np.random.default_rng(0)
    items, users = np.array([2, 3, 5, 8, 9]), 7
    seen = np.unique(rng.integers(0, users, 12) * 10 + rng.choice(items, 12))
    candidates = Everything(items, Seen(Lists.of((seen // 10, seen % 10), users), 10))
    may = {(user, item) for user in range(users) for item in items.tolist()} - {
        (k // 10, k % 10) for k in seen.tolist()
    }
    assert set(zip(*np.nonzero(candidates.mask(users)), strict=True)) == may
    for start, stop in ((0, 3), (3, 7), (6, 7)):
        tiles = list(candidates.given().tiles(start, stop, pairs))
        assert max(tile.item.numel() for tile in tiles) <= max(pairs, stop - start)
        found = np.concatenate([np.where(tile.valid, tile.item, -1) for tile in tiles], axis=1)
        listed = [[item if (user, item) in may else -1 for item in items.tolist()] for user in range(start, stop)]
        assert found.tolist() == listed
