"""What candidates are put together with, against plain Python on drawn data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from pipelines.scoring.candidates import nearest, user_candidates
from pipelines.scoring.candidates.lists import Lists, Pairs, Positions, best_of_each, first_of_each
from pipelines.scoring.candidates.neighbours import FromSeeds
from pipelines.scoring.candidates.seen import Seen
from pipelines.scoring.candidates.user_candidates import Asked, Grouped, Ranked, combined

ITEMS = 12
USER_LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=6, unique=True), min_size=1, max_size=7)


def lists_of(rows: list[list[int]]) -> Lists:
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return Lists.of((owner, np.array([item for row in rows for item in row], np.int64)), len(rows))


def as_rows(pairs: Pairs, count: int) -> list[list[int]]:
    return [pairs[1][pairs[0] == user].tolist() for user in range(count)]


@settings(max_examples=30, deadline=None)
@given(USER_LISTS, st.data())
def test_lists_are_taken_in_any_order(rows: list[list[int]], data: st.DataObject) -> None:
    wanted = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), np.int64)
    lists = lists_of(rows)
    assert as_rows(lists.take(wanted), len(wanted)) == [rows[one] for one in wanted]
    assert as_rows(first_of_each(lists.take(wanted), 2), len(wanted)) == [rows[one][:2] for one in wanted]
    again = Lists.of_column(lists.as_column())
    assert (again.offsets.tolist(), again.items.tolist()) == (lists.offsets.tolist(), lists.items.tolist())


SCORED = st.dictionaries(st.integers(0, 9), st.sampled_from([1e-30, 0.5, 0.75, 3.0]), max_size=9)


@settings(max_examples=30, deadline=None)
@given(st.lists(SCORED, max_size=6), st.integers(1, 4))
def test_the_best_of_each(scored: list[dict[int, float]], limit: int) -> None:
    rows = [(owner, item, score) for owner, row in enumerate(scored) for item, score in row.items()]
    owner, item, score = (np.array(column) for column in zip(*rows, strict=True)) if rows else np.zeros((3, 0))
    best = best_of_each(owner.astype(np.int64), item.astype(np.int64), score.astype(np.float32), limit)
    ranked = [sorted(row, key=lambda item, row=row: (-row[item], item))[:limit] for row in scored]
    assert item[best].tolist() == [item for row in ranked for item in row]


@settings(max_examples=30, deadline=None)
@given(USER_LISTS, st.data())
def test_the_first_source_has_a_pair_and_nothing_seen_is_given(rows: list[list[int]], data: st.DataObject) -> None:
    count = len(rows)
    of_users = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=4, unique=True), min_size=count, max_size=count)
    seen, groups = data.draw(of_users), data.draw(USER_LISTS)
    group = np.array(data.draw(st.lists(st.integers(0, len(groups) - 1), min_size=count, max_size=count)))
    left_out = Seen(lists_of([sorted(row) for row in seen]), ITEMS)
    below = data.draw(st.none() | st.integers(1, 3))
    sources = {
        "table": Asked(Ranked(lists_of(rows), 2, left_out.key)),
        "popular": Asked(Grouped(lists_of(groups), group), below),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_candidates, "USERS_AT_ONCE", 2)
        made = combined(sources, left_out, count)
    block = made.block(0, count)
    user, place = np.nonzero(block >= 0)
    said = made.sources(user, block[user, place]).to_pylist()
    found = {(int(u), int(i)): source for u, i, source in zip(user, block[user, place], said, strict=True)}
    wanted = {}
    for one in range(count):
        own = [item for item in rows[one] if item not in seen[one]][:2]
        shared = [item for item in groups[group[one]] if item not in seen[one]]
        if below is not None and len(own) >= below:
            shared = []
        wanted |= {(one, item): "popular" for item in shared} | {(one, item): "table" for item in own}
    assert found == wanted
    assert len(found) == len(user)
    assert made.block(count - 1, count).tolist() == [[i for i in block[-1] if i >= 0]]


def test_seeds_without_neighbours_and_users_without_seeds() -> None:
    near = sparse.csr_array((np.array([0.5], np.float32), ([3], [1])), shape=(ITEMS, ITEMS))
    source = FromSeeds(lists_of([[], [2], [3, 2]]), near, 5, lambda pairs: pairs[0] * ITEMS + pairs[1])
    assert as_rows(source.propose(0, 3, np.zeros(0, np.int64)), 3) == [[], [], [1]]
    assert as_rows(source.propose(1, 3, np.array([ITEMS + 1])), 2) == [[], []]


def vectors(count: int) -> np.ndarray:
    """Of length 1, around forty centres."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((40, 16))[rng.integers(0, 40, count)] + 0.3 * rng.standard_normal((count, 16))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def by_hand(found: np.ndarray, among: Positions, asked: Positions, count: int) -> np.ndarray:
    products = found[asked] @ found[among].T
    products[asked[:, None] == among] = -np.inf
    return among[np.argsort(-products, axis=1)[:, :count]]


def test_the_nearest_among_few() -> None:
    found, among, asked = vectors(300), np.arange(0, 300, 2), np.arange(0, 300, 3)
    rows, products = nearest.find(found, among, asked, 9)
    assert rows.tolist() == by_hand(found, among, asked, 9).tolist()
    np.testing.assert_allclose(products, np.take_along_axis(found[asked] @ found.T, rows, 1), atol=1e-6)


def test_the_nearest_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "EXACT", 1000)
    monkeypatch.setattr(nearest, "CELLS_LOOKED_AT", 16)
    found, among, asked = vectors(8000), np.arange(0, 8000, 2), np.arange(0, 8000, 40)
    rows, _ = nearest.find(found, among, asked, 10)
    wanted = by_hand(found, among, asked, 10)
    shared = [len({*one} & {*other}) for one, other in zip(rows.tolist(), wanted.tolist(), strict=True)]
    assert np.mean(shared) / 10 > 0.95
    assert np.array_equal(rows, nearest.find(found, among, asked, 10)[0])


@pytest.mark.parametrize("among", [[], [5], [4, 5]])
def test_fewer_than_asked_for(among: list[int]) -> None:
    rows, products = nearest.find(vectors(6), np.array(among, np.int64), np.array([5]), 3)
    others = [one for one in among if one != 5]
    assert rows.tolist() == [others + [-1] * (3 - len(others))]
    assert (products[0, len(others) :] == 0).all()
