"""Metrics of recommendation lists: how good the first k places are, and how much of the catalogue they show.

Lists are [U, N] positions of items in the catalogue, best first, each item at most once in a list; -1 fills the end of
a list with fewer than N. What users liked are P pairs of a user (a row of the lists) and an item; a pair may stand
twice. A metric is NaN where no list takes part in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def best(scores: NDArray[np.floating[Any]], k: int) -> Positions:
    """Lists [U, k] of the highest of scores [U, I]; ties go to the item that stands first, -inf and NaN to nobody."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-known, axis=1, kind="stable")[:, :k].astype(np.int64)
    order[np.isneginf(np.take_along_axis(known, order, axis=1))] = -1
    return np.pad(order, ((0, 0), (0, k - order.shape[1])), constant_values=-1)


def ndcg(lists: Positions, user: Positions, item: Positions, k: int) -> float:
    """Mean NDCG@k over the users who liked something (Järvelin & Kekäläinen 2002), a gain of 1 for what was liked.

    The ideal list has as many of the liked items as fit into k places on top.
    """
    found, liked = _found(lists, user, item, k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(liked, k)]
    return _mean(found @ discounts[: found.shape[1]], ideal)


def recall(lists: Positions, user: Positions, item: Positions, k: int) -> float:
    """Share of a user's liked items that are in the first k places, mean over the users who liked something."""
    found, liked = _found(lists, user, item, k)
    return _mean(found.sum(axis=1), liked)


def coverage(lists: Positions, num_items: int, k: int) -> float:
    """Share of the catalogue's items that are in the first k places of at least one list."""
    shown = lists[:, :k]
    return len(np.unique(shown[shown >= 0])) / num_items if num_items else float("nan")


def diversity(lists: Positions, group: NDArray[np.int64], k: int) -> float:
    """Chance that two of the first k places hold items of different groups, mean over lists with two or more.

    One minus the intra-list similarity of Ziegler et al. (2005), where items of one group are alike.

    Args:
        group: [I] of each item, from 0.
    """
    row, column = np.nonzero(lists[:, :k] >= 0)
    length = np.bincount(row, minlength=len(lists))
    key, count = np.unique(row * (group.max(initial=0) + 1) + group[lists[row, column]], return_counts=True)
    alike = np.bincount(key // (group.max(initial=0) + 1), count * (count - 1), minlength=len(lists))
    pairs = length * (length - 1)
    return _mean(pairs - alike, pairs)


def _found(lists: Positions, user: Positions, item: Positions, k: int) -> tuple[NDArray[np.bool_], Positions]:
    """Which of the first k places hold what was liked [U, k or fewer], and how many items each user liked [U]."""
    shown = lists[:, :k]
    width = 1 + max(shown.max(initial=0), item.max(initial=0))
    liked = np.unique(user * width + item)
    asked = np.arange(len(lists))[:, None] * width + shown
    return (shown >= 0) & np.isin(asked, liked), np.bincount(liked // width, minlength=len(lists))


def _mean(values: NDArray[Any], of: NDArray[Any]) -> float:
    """The mean of values / of where there is something to divide by."""
    usable = of > 0
    return float(np.mean(values[usable] / of[usable])) if usable.any() else float("nan")
