"""Maximal marginal relevance, against a loop over users and places in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_moe.scoring import Diversity

GROUPS = np.array([0, 1, 0, -1, 1, 2, -1, 0, 0, 2])
halves = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # so that there are ties, before and after weights are taken off


@st.composite
def pools(draw: st.DrawFn) -> list[tuple[int, float]]:
    """A user's best items and their scores: the best first, of equals the first item first."""
    items = draw(st.lists(st.integers(0, len(GROUPS) - 1), unique=True))
    scores = st.one_of(halves, st.floats(-1e3, 1e3, width=32))
    return sorted(((item, draw(scores)) for item in items), key=lambda pair: (-pair[1], pair[0]))


def by_hand(pool: list[tuple[int, float]], weight: float, top_n: int) -> list[int]:
    scores = [score for _, score in pool]
    left, made = dict(pool), []
    while left and len(made) < top_n:
        kinds = {GROUPS[item] for item in made} - {-1}

        def value(item: int, kinds: set[Any] = kinds) -> float:
            low, high = min(scores), max(scores)
            relevance = (left[item] - low) / (high - low) if high > low else 1.0
            return relevance - weight if GROUPS[item] in kinds else relevance

        made.append(max(left, key=lambda item: (value(item), -item)))
        del left[made[-1]]
    return made


@settings(deadline=None)
@given(users=st.lists(pools(), min_size=1, max_size=5), weight=halves, top_n=st.integers(1, 12))
def test_lists_are_those_of_a_loop(users: list[list[tuple[int, float]]], weight: float, top_n: int) -> None:
    width = max(len(pool) for pool in users)
    item = torch.full((len(users), width), -1)
    score = torch.full((len(users), width), -torch.inf)
    for row, pool in enumerate(users):
        for column, (one, said) in enumerate(pool):
            item[row, column], score[row, column] = one, said
    order = Diversity(GROUPS, weight, pool=width).order(item, score, top_n)
    made = [[one for one in row if one >= 0] for row in item.gather(1, order).tolist()]
    assert made == [by_hand(pool, weight, top_n) for pool in users]


@pytest.mark.parametrize(("weight", "expected"), [(0.0, [0, 2, 1]), (0.3, [0, 1, 2]), (0.8, [0, 1, 5])])
def test_what_is_there_already_comes_later(weight: float, expected: list[int]) -> None:
    item, score = torch.tensor([[0, 2, 1, 5]]), torch.tensor([[4.0, 3.0, 2.5, 0.0]])
    order = Diversity(GROUPS, weight, pool=4).order(item, score, 3)
    assert item.gather(1, order).tolist() == [expected]
