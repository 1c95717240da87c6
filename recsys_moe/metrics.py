"""Metrics over one task's rows: labels [N] of 0 and 1, scores [N]. NaN where a metric is not defined.

None depends on the order of the rows: rows of equal scores count alike, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SMALLEST = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 in logarithms, as scikit-learn keeps them."""
_ROWS_AT_ONCE = 1 << 18
_MOST = 1 << 31


def binary(labels: Floats, probabilities: Floats, users: NDArray[Any]) -> dict[str, float]:
    """All metrics of a task with labels of 0 and 1, from one sort of its scores, and how much there was of what.

    Args:
        labels: [N].
        probabilities: [N].
        users: [N] whose row it is.
    """
    user = _codes(users)
    rows = _ByScore.of(labels, probabilities, user)
    return {
        "auc": rows.auc(),
        "gauc": rows.gauc(),
        "log_loss": log_loss(labels, probabilities),
        "normalised_entropy": normalised_entropy(labels, probabilities),
        "calibration": calibration(labels, probabilities),
        "ece": rows.ece(),
        **_counts(user),
        "positives": float(np.sum(labels, dtype=np.float64)),
    }


def regression(values: Floats, predicted: Floats, users: NDArray[Any]) -> dict[str, float]:
    """The metrics of a task whose labels are numbers, and how much there was of what; arguments as in `binary`."""
    return {"rmse": rmse(values, predicted), **_counts(_codes(users))}


def auc(labels: Floats, scores: Floats) -> float:
    """Chance that a positive is ranked above a negative, ties counting half (Mann & Whitney 1947)."""
    return _ByScore.of(labels, scores, np.zeros(len(labels), np.int8)).auc()


def gauc(labels: Floats, scores: Floats, users: NDArray[Any]) -> float:
    """AUC within each user, averaged by the user's number of rows; users with one class only are skipped.

    After Zhu et al. 2017, "Optimized cost per click in Taobao display advertising".
    """
    return _ByScore.of(labels, scores, _codes(users)).gauc()


def log_loss(labels: Floats, probabilities: Floats) -> float:
    """Mean negative log-likelihood, in nats."""
    return _mean(_nats, labels, probabilities)


def normalised_entropy(labels: Floats, probabilities: Floats) -> float:
    """Log-loss over that of always predicting the mean (He et al. 2014): below 1 is better than the mean."""
    mean = float(np.mean(labels, dtype=np.float64)) if len(labels) else float("nan")
    if not 0.0 < mean < 1.0:
        return float("nan")
    return log_loss(labels, probabilities) / -float(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))


def calibration(labels: Floats, probabilities: Floats) -> float:
    """Predicted over observed positives: above 1 promises too much."""
    observed = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(probabilities, dtype=np.float64)) / observed if observed else float("nan")


def ece(labels: Floats, probabilities: Floats, bins: int = 20) -> float:
    """Expected calibration error: mean |observed - predicted| over bins of equal numbers of rows (Nguyen & O'Connor
    2015). An edge between rows of equal scores divides their positives in proportion."""
    return _ByScore.of(labels, probabilities, np.zeros(len(labels), np.int8)).ece(bins)


def rmse(values: Floats, predicted: Floats) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(_mean(lambda one, other: (one - other) ** 2, values, predicted)))


def ranks_within(group: NDArray[np.int64], scores: Floats) -> NDArray[np.float64]:
    """Rank of each row among its group's, from 1; tied rows share the mean of their ranks."""
    order = np.lexsort((scores, group))
    sorted_group, sorted_scores = group[order], scores[order]
    new_group = np.r_[True, sorted_group[1:] != sorted_group[:-1]]
    new_tie = new_group | np.r_[True, sorted_scores[1:] != sorted_scores[:-1]]
    position = np.arange(len(order))
    group_start = position[new_group][np.cumsum(new_group) - 1]
    tie = np.cumsum(new_tie) - 1
    first = position[new_tie]
    last = np.r_[first[1:], len(order)] - 1
    ranks = np.empty(len(order))
    ranks[order] = (first[tie] + last[tie]) / 2 - group_start + 1
    return ranks


@dataclass(frozen=True)
class _ByScore:
    """Rows by ascending score. Places are int32, which halves the memory: rows are below 2 ** 31.

    Attributes:
        positive: [N] whether the row at each place is positive.
        user: [N] whose it is, a code from 0.
        ties: [T + 1] the places at which another score begins, and N.
        values: [T] the distinct scores.
    """

    positive: NDArray[np.bool_]
    user: NDArray[Any]
    ties: NDArray[np.int32]
    values: Floats

    @classmethod
    def of(cls, labels: Floats, scores: Floats, users: NDArray[Any]) -> Self:
        assert len(scores) < _MOST
        order = np.argsort(scores)
        ordered = np.asarray(scores)[order]
        ties = _starts(ordered)
        return cls((np.asarray(labels) > 0.5)[order], users[order], ties, ordered[ties[:-1]])

    def auc(self) -> float:
        """As the module's."""
        if not len(self.positive):
            return float("nan")
        each, _ = _auc_of_groups(self.positive, self.ties, np.array([0, len(self.values)]))
        return float(each[0])

    def gauc(self) -> float:
        """As the module's."""
        ties = len(self.values)
        # User, score and label as one number: sorting numbers is several times as quick as sorting rows by them.
        key = self.user.astype(np.int64)
        key *= ties
        key += np.repeat(np.arange(ties, dtype=np.int32), np.diff(self.ties))
        key *= 2
        key += self.positive
        key.sort()
        positive = (key & 1).astype(np.bool_)
        key >>= 1
        starts = _starts(key)
        key = key[starts[:-1]]
        key //= max(ties, 1)  # whose each tie is
        groups = _starts(key)
        del key
        each, rows = _auc_of_groups(positive, starts, groups)
        usable = np.isfinite(each)
        return float(np.average(each[usable], weights=rows[usable])) if usable.any() else float("nan")

    def ece(self, bins: int = 20) -> float:
        """As the module's."""
        rows = len(self.positive)
        if not rows:
            return float("nan")
        gap = self.values.astype(np.float64)
        gap *= -np.diff(self.ties)
        gap += np.diff(_running(self.positive)[self.ties])
        until = np.zeros(len(self.ties))
        np.cumsum(gap, out=until[1:])
        edges = np.arange(min(bins, rows) + 1) * rows // min(bins, rows)
        sums = np.diff(np.interp(edges, self.ties, until))
        return float(np.abs(sums).sum() / rows)


def _auc_of_groups(
    positive: NDArray[np.bool_], ties: NDArray[np.int32], groups: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AUC and number of rows of each group; NaN where it has one class only.

    Args:
        positive: [N] of the rows by group, and within it by ascending score.
        ties: [T + 1] the places at which another score or group begins, and N.
        groups: [G + 1] the ties at which another group begins, and T.
    """
    until = _running(positive)[ties]  # positives before each tie
    below = ties - until  # negatives before it, of all groups
    twice_won = below[:-1].astype(np.int64)  # whole numbers: exact
    twice_won += below[1:]
    twice_won *= np.diff(until)
    rows, found = np.diff(ties[groups]).astype(np.int64), np.diff(until[groups]).astype(np.int64)
    first = groups[:-1]
    won = np.add.reduceat(twice_won, first) / 2 - found * below[first]
    pairs = found * (rows - found)
    return np.divide(won, pairs, out=np.full(len(rows), np.nan), where=pairs > 0), rows


def _running(positive: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[N + 1] how many are positive before each place."""
    running = np.zeros(len(positive) + 1, np.int32)
    np.cumsum(positive, out=running[1:])
    return running


def _starts(ordered: NDArray[Any]) -> NDArray[np.int32]:
    """The places at which another value begins, and the number of values."""
    if not len(ordered):
        return np.zeros(1, np.int32)
    new = np.ones(len(ordered) + 1, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:-1])
    return np.flatnonzero(new).astype(np.int32)


def _codes(users: NDArray[Any]) -> NDArray[Any]:
    """[N] whole numbers from 0, the same for the same user."""
    if users.dtype.kind in "iu" and (not len(users) or (users.min() >= 0 and users.max() < _MOST)):
        return users
    return np.unique(users, return_inverse=True)[1]


def _counts(user: NDArray[Any]) -> dict[str, float]:
    return {"rows": float(len(user)), "users": float(len(_starts(np.sort(user))) - 1)}


def _nats(labels: NDArray[np.float64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def _mean(
    of: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]], labels: Floats, said: Floats
) -> float:
    """Mean of a row's quantity, some rows at a time: what is in between stays in the processor's cache."""
    total, rows = 0.0, len(labels)
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        total += float(np.sum(of(np.asarray(labels[some], np.float64), np.asarray(said[some], np.float64))))
    return total / rows if rows else float("nan")
