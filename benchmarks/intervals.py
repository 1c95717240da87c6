"""Intervals over repeats, and over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from recsys_moe.metrics import ranks_within


def interval(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Mean of independent repeats, and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


Floats = NDArray[np.floating[Any]]

_DRAWS_AT_ONCE = 50


@dataclass(frozen=True)
class UserDraws:
    """Users drawn again and again, with replacement and all their rows: the same draws for every model.

    Rows of one user are alike, so an interval that drew rows would be too narrow (Cameron & Miller 2015).

    Attributes:
        user: [rows] the position of a row's user.
        counts: [draws, users] how often each was drawn; in draw 0 everyone once.
    """

    user: NDArray[np.int64]
    counts: NDArray[np.float32]

    @classmethod
    def of(cls, users: NDArray[Any], draws: int = 1000, seed: int = 0) -> Self:
        """Draw from the users of some rows."""
        distinct, user = np.unique(users, return_inverse=True)
        number = len(distinct)
        drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=draws)
        return cls(user, np.concatenate([np.ones((1, number)), drawn]).astype(np.float32))

    def auc(self, labels: Floats, scores: Floats) -> NDArray[np.float64]:
        """[draws] the AUC of each draw; ties count half."""
        order = np.argsort(scores, kind="stable")
        first = np.flatnonzero(np.r_[True, np.diff(np.asarray(scores)[order]) != 0])  # of rows with equal scores
        user, positive = self.user[order], np.asarray(labels, np.float32)[order]
        found = []
        for start in range(0, len(self.counts), _DRAWS_AT_ONCE):
            weight = self.counts[start : start + _DRAWS_AT_ONCE, user]
            positives = np.add.reduceat(weight * positive, first, axis=1, dtype=np.float64)
            negatives = np.add.reduceat(weight * (1 - positive), first, axis=1, dtype=np.float64)
            below = np.cumsum(negatives, axis=1)
            won = ((below - negatives / 2) * positives).sum(1)
            found.append(won / (below[:, -1] * positives.sum(1)))
        return np.concatenate(found)

    def gauc(self, labels: Floats, scores: Floats) -> NDArray[np.float64]:
        """[draws] the AUC within each drawn user, averaged by rows; users with one class only are skipped."""
        positive, users = np.asarray(labels) > 0.5, self.counts.shape[1]
        rank = ranks_within(self.user, np.asarray(scores))
        rows, positives = np.bincount(self.user, minlength=users), np.bincount(self.user, positive, users)
        rank_sum = np.bincount(self.user, rank * positive, users)
        usable = (positives > 0) & (positives < rows)
        rows, positives, rank_sum = rows[usable], positives[usable], rank_sum[usable]
        each = (rank_sum - positives * (positives + 1) / 2) / (positives * (rows - positives))
        weight = self.counts[:, usable].astype(np.float64) * rows
        within: NDArray[np.float64] = weight @ each / weight.sum(1)
        return within


def over_draws(drawn: NDArray[np.float64]) -> dict[str, float]:
    """What was measured (draw 0) and its 95 % interval by the percentiles of the other draws."""
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    return {"mean": float(drawn[0]), "low": float(low), "high": float(high)}
