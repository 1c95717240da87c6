"""Intervals by drawing users, with all their rows: a Poisson bootstrap, the same draws for every model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, factorial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag, pad

from recsys_moe.metrics import SMALLEST, ranks_within

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

FEWEST_USERS = 10
"""With fewer there is no interval: the draws of one user's rows are all the same, and would look certain."""
_DRAWS_AT_ONCE = 64
_USERS_AT_ONCE = 4096
_STEPS_AT_ONCE = 32
_POISSON = np.searchsorted(np.cumsum([exp(-1) / factorial(k) for k in range(9)]), (np.arange(65536) + 0.5) / 65536)
"""How often is drawn, by a number below 65536 that is drawn evenly: each chance of Poisson's is within 1 / 65536."""


@dataclass(frozen=True)
class UserDraws:
    """Users drawn again and again, with all their rows: paired, since every model meets the same draws.

    Rows of one user are alike, so an interval that drew rows would be too narrow (Cameron & Miller 2015). How often a
    user is drawn is Poisson with mean 1, independent of the others (Hanley & MacGibbon 2006; Chamandy et al. 2012).

    All results are [draws + 1]: first the value over everyone once, then that of each draw; NaN where a draw has none.
    `where` [rows] keeps some rows alone, as those of a segment.

    Attributes:
        user: [rows] the position of a row's user.
        counts: [users, draws + 1] how often each was drawn; in draw 0 everyone once.
    """

    user: NDArray[np.int64]
    counts: NDArray[np.uint8]

    @classmethod
    def of(cls, users: NDArray[Any], draws: int = 1000, seed: int = 0) -> Self:
        """Draw from the users of some rows; `users` [rows] says whose each is."""
        distinct, user = np.unique(users, return_inverse=True)
        random, drawn = np.random.default_rng(seed), _POISSON.astype(np.uint8)
        counts = np.ones((len(distinct), draws + 1), np.uint8)
        for start in range(0, len(distinct), _USERS_AT_ONCE):
            some = counts[start : start + _USERS_AT_ONCE, 1:]
            some[:] = drawn[random.integers(65536, size=some.shape, dtype=np.uint16)]
        return cls(user.astype(np.int64), counts)

    def auc(
        self, labels: Floats, scores: Floats, where: Mask | None = None, order: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """The AUC; ties count half.

        `order` is `np.argsort(scores)` where that is known already: many segments need one sort.
        """
        if order is None:
            order = np.argsort(scores, kind="stable")
        if where is not None:
            order = order[where[order]]
        positive, score = np.asarray(labels)[order] > 0.5, np.asarray(scores)[order]
        if positive.all() or not positive.any():
            return np.full(self.counts.shape[1], np.nan)
        if positive.mean() > 0.5:  # the work is done at each score that a positive has: better where they are fewer
            order, positive, score = order[::-1], ~positive[::-1], -score[::-1]
        among, user = np.unique(self.user[order], return_inverse=True)
        steps = _Steps.of(user, positive, score)
        return np.concatenate([steps.auc(weight) for weight in self._weights(among)])

    def gauc(self, labels: Floats, scores: Floats, where: Mask | None = None) -> NDArray[np.float64]:
        """The AUC within each drawn user, averaged by rows; users with one class only are skipped."""
        user, positive, said = self.user, np.asarray(labels) > 0.5, np.asarray(scores)
        if where is not None:
            user, positive, said = user[where], positive[where], said[where]
        users = len(self.counts)
        rows, positives = np.bincount(user, minlength=users), np.bincount(user, positive, users)
        rank_sum = np.bincount(user, ranks_within(user, said) * positive, users) if len(user) else np.zeros(users)
        usable = (positives > 0) & (positives < rows)
        pairs = np.where(usable, positives * (rows - positives), 1.0)
        each = (rank_sum - positives * (positives + 1) / 2) / pairs
        return self._quotient(np.where(usable, each * rows, 0.0), np.where(usable, rows, 0.0))

    def log_loss(self, labels: Floats, probabilities: Floats, where: Mask | None = None) -> NDArray[np.float64]:
        """Mean negative log-likelihood, in nats."""
        p = np.clip(np.asarray(probabilities, np.float64), SMALLEST, 1 - SMALLEST)
        return self.ratio(-np.where(np.asarray(labels) > 0.5, np.log(p), np.log1p(-p)), np.ones(len(p)), where)

    def rmse(self, values: Floats, predicted: Floats, where: Mask | None = None) -> NDArray[np.float64]:
        """Root of the mean squared error of a regression."""
        error = np.asarray(values, np.float64) - np.asarray(predicted, np.float64)
        return np.sqrt(self.ratio(error**2, np.ones(len(error)), where))

    def calibration(self, labels: Floats, probabilities: Floats, where: Mask | None = None) -> NDArray[np.float64]:
        """Predicted over observed positives."""
        return self.ratio(probabilities, labels, where)

    def ratio(self, above: Floats, below: Floats, where: Mask | None = None) -> NDArray[np.float64]:
        """Sum of `above` [rows] over sum of `below` [rows]."""
        user, users = self.user, len(self.counts)
        if where is not None:
            user, above, below = user[where], above[where], below[where]
        return self._quotient(np.bincount(user, above, users), np.bincount(user, below, users))

    def _quotient(self, above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
        """The same of sums by user."""
        among = np.flatnonzero((above != 0) | (below != 0))
        sums = np.stack([above[among], below[among]])
        both = np.concatenate([sums @ weight.numpy().astype(np.float64) for weight in self._weights(among)], axis=1)
        return _divided(both[0], both[1])

    def _weights(self, among: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """Float32 [users among, draws] of some users, some draws at a time."""
        counts = self.counts if len(among) == len(self.counts) else self.counts[among]
        for start in range(0, counts.shape[1], _DRAWS_AT_ONCE):
            yield torch.from_numpy(counts[:, start : start + _DRAWS_AT_ONCE].astype(np.float32))


@dataclass(frozen=True)
class _Bags:
    """Sets of rows whose weights are summed: `users` of all rows, bag after bag, and where each bag begins."""

    users: torch.Tensor
    begin: torch.Tensor

    @classmethod
    def of(cls, users: NDArray[np.int64], bag: NDArray[np.int64], bags: int) -> Self:
        """The rows of `users`, whose numbers of `bag` are ascending."""
        begin = np.searchsorted(bag, np.arange(bags))
        return cls(torch.from_numpy(np.ascontiguousarray(users)), torch.from_numpy(begin))

    def sums(self, weight: torch.Tensor) -> torch.Tensor:
        """[bags, draws]. Each row's weights are read once, in one piece; nothing of [rows, draws] is written."""
        return embedding_bag(self.users, weight, self.begin, mode="sum")


@dataclass(frozen=True)
class _Steps:
    """Rows by ascending score, cut at each score that a positive has: what Mann and Whitney's count needs to know.

    Attributes:
        positive: the positives of each step's score.
        below: the negatives between the score of the step before and this one.
        tied: the negatives of the very score; None where there is not one.
        above: the negatives above all steps.
    """

    positive: _Bags
    below: _Bags
    tied: _Bags | None
    above: _Bags

    @classmethod
    def of(cls, user: NDArray[np.int64], positive: Mask, score: Floats) -> Self:
        """Of rows that are sorted by their score."""
        steps = np.unique(score[positive])
        at = np.searchsorted(steps, score)  # the first step that is not below
        tied = (steps[np.minimum(at, len(steps) - 1)] == score) & ~positive
        free = ~positive & ~tied
        last = free & (at == len(steps))
        return cls(
            _Bags.of(user[positive], at[positive], len(steps)),
            _Bags.of(user[free & ~last], at[free & ~last], len(steps)),
            _Bags.of(user[tied], at[tied], len(steps)) if tied.any() else None,
            _Bags.of(user[last], np.zeros(last.sum(), np.int64), 1),
        )

    def auc(self, weight: torch.Tensor) -> NDArray[np.float64]:
        """[draws], of weights [users, draws]."""
        positives, negatives = self.positive.sums(weight), self.below.sums(weight)
        half = torch.zeros(())
        if self.tied is not None:
            tied = self.tied.sums(weight)
            negatives += tied
            half = (tied.double() * positives).sum(0) / 2
        won = _sum_of_products(negatives, positives) - half
        all_negatives = negatives.sum(0, dtype=torch.float64) + self.above.sums(weight)[0]
        return _divided(won.numpy(), (positives.sum(0, dtype=torch.float64) * all_negatives).numpy())


def _sum_of_products(below: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """[draws] the sum over steps of `here` times all `below` so far; both [steps, draws].

    The running sum is a product with a triangle of ones within some steps, and a sum in double precision over these
    blocks: several times as fast as a running sum over all steps.
    """
    padding = (0, 0, 0, -len(below) % _STEPS_AT_ONCE)
    below, here = (pad(one, padding).view(-1, _STEPS_AT_ONCE, one.shape[1]) for one in (below, here))
    within = torch.ones(_STEPS_AT_ONCE, _STEPS_AT_ONCE).tril() @ below
    total = within[:, -1].double()
    before = total.cumsum(0) - total
    return (within * here).sum(1).double().sum(0) + (before * here.sum(1)).sum(0)


def _divided(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def over_draws(drawn: NDArray[np.float64]) -> dict[str, float]:
    """What was measured (draw 0) and its 95 % interval by the percentiles of the other draws; NaN where there is none.

    A draw in which the metric is not defined, such as one without a positive, is left out.
    """
    defined = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return {"mean": float(drawn[0]), "low": float(low), "high": float(high)}
