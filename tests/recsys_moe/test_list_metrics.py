"""Metrics of lists against formulas written out user by user, and against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from recsys_moe import list_metrics


@dataclass(frozen=True)
class World:
    """Lists of different lengths, made of scores of which many tie; users with and without liked items."""

    scores: np.ndarray
    k: int
    user: np.ndarray
    item: np.ndarray
    group: np.ndarray

    @property
    def lists(self) -> np.ndarray:
        return list_metrics.best(self.scores, self.k)

    def listed(self, user: int) -> list[int]:
        return [int(item) for item in self.lists[user] if item >= 0]

    def liked(self, user: int) -> set[int]:
        return {int(item) for item in self.item[self.user == user]}

    @property
    def users_who_like(self) -> list[int]:
        return [user for user in range(len(self.scores)) if self.liked(user)]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users, items = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    scores = rng.integers(0, draw(st.integers(1, 6)), (users, items)) / 4
    scores[rng.random((users, items)) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = rng.choice([-np.inf, np.nan])
    pairs = draw(st.integers(0, 30))
    groups = rng.integers(0, draw(st.integers(1, 4)), items)
    return World(scores, draw(st.integers(1, 15)), rng.integers(0, users, pairs), rng.integers(0, items, pairs), groups)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def approximately(value: float) -> object:
    return pytest.approx(value, rel=0, abs=1e-9, nan_ok=True)


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_the_best_come_first_and_ties_go_to_the_smaller_id(world: World) -> None:
    for user, scores in enumerate(world.scores.tolist()):
        ranked = sorted((-score, item) for item, score in enumerate(scores) if score > -math.inf)
        assert world.listed(user) == [item for _, item in ranked[: world.k]]
    assert world.lists.shape == (len(world.scores), world.k)


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_ndcg(world: World) -> None:
    each = []
    for user in world.users_who_like:
        liked = world.liked(user)
        gained = sum(1 / math.log2(rank + 2) for rank, item in enumerate(world.listed(user)) if item in liked)
        each.append(gained / sum(1 / math.log2(rank + 2) for rank in range(min(len(liked), world.k))))
    assert list_metrics.ndcg(world.lists, world.user, world.item, world.k) == approximately(mean(each))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 35))
def test_ndcg_is_that_of_scikit_learn(seed: int, items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, liked = rng.permuted(np.tile(np.arange(items), (6, 1)), axis=1).astype(float), rng.random((6, items)) < 0.4
    liked[:, 0] = True
    user, item = np.nonzero(liked)
    found = list_metrics.ndcg(list_metrics.best(scores, k), user, item, k)
    assert found == approximately(ndcg_score(liked.astype(float), scores, k=k))


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_recall(world: World) -> None:
    each = [len(world.liked(u) & {*world.listed(u)}) / len(world.liked(u)) for u in world.users_who_like]
    assert list_metrics.recall(world.lists, world.user, world.item, world.k) == approximately(mean(each))


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_coverage_and_diversity(world: World) -> None:
    items, users = world.scores.shape[1], range(len(world.scores))
    shown = set().union(*(world.listed(user) for user in users))
    assert list_metrics.coverage(world.lists, items, world.k) == approximately(len(shown) / items)
    pairs = [[*combinations(world.listed(user), 2)] for user in users]
    each = [mean([float(world.group[a] != world.group[b]) for a, b in of]) for of in pairs if of]
    assert list_metrics.diversity(world.lists, world.group, world.k) == approximately(mean(each))


@settings(max_examples=50, deadline=None)
@given(worlds(), st.integers(1, 15))
def test_only_the_first_k_places_count(world: World, k: int) -> None:
    cut = world.lists[:, :k]
    for metric in (list_metrics.ndcg, list_metrics.recall):
        assert metric(world.lists, world.user, world.item, k) == approximately(metric(cut, world.user, world.item, k))
    assert list_metrics.coverage(world.lists, 12, k) == list_metrics.coverage(cut, 12, k)
    shown = list_metrics.diversity(world.lists, world.group, k)
    assert shown == approximately(list_metrics.diversity(cut, world.group, k))


def test_a_list_that_is_not_there_is_no_hit_of_another_user() -> None:
    """-1 is no item: not even the last one, nor that of the user before."""
    lists, liked = np.array([[-1, -1], [-1, -1]]), np.array([2, 2])
    assert list_metrics.recall(lists, np.array([0, 1]), liked, 2) == 0.0


def test_nothing_to_measure_is_nan() -> None:
    lists, nothing = np.full((2, 3), -1), np.zeros(0, np.int64)
    assert math.isnan(list_metrics.ndcg(lists, nothing, nothing, 3))
    assert math.isnan(list_metrics.recall(lists, nothing, nothing, 3))
    assert math.isnan(list_metrics.diversity(lists, np.zeros(4, np.int64), 3))
    assert list_metrics.coverage(lists, 4, 3) == 0.0
    assert math.isnan(list_metrics.coverage(lists, 0, 3))
