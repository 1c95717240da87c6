"""Metrics over one task's rows: labels [N] of 0 and 1, scores [N]. NaN where a metric is not defined."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SMALLEST = 1e-15


def auc(labels: Floats, scores: Floats) -> float:
    """Chance that a positive is ranked above a negative, ties counting half (Mann & Whitney 1947)."""
    everyone = np.zeros(len(labels), np.int64)
    return gauc(labels, scores, everyone)


def gauc(labels: Floats, scores: Floats, users: NDArray[Any]) -> float:
    """AUC within each user, averaged by the user's number of rows; users with one class only are skipped."""
    if not len(labels):
        return float("nan")
    _, user = np.unique(users, return_inverse=True)
    positive = np.asarray(labels) > 0.5
    rank = ranks_within(user, np.asarray(scores))
    rows = np.bincount(user)
    positives = np.bincount(user, positive)
    rank_sum = np.bincount(user, rank * positive)
    usable = (positives > 0) & (positives < rows)
    if not usable.any():
        return float("nan")
    rows, positives, rank_sum = rows[usable], positives[usable], rank_sum[usable]
    each = (rank_sum - positives * (positives + 1) / 2) / (positives * (rows - positives))
    return float(np.average(each, weights=rows))


def log_loss(labels: Floats, probabilities: Floats) -> float:
    """Mean negative log-likelihood, in nats."""
    if not len(labels):
        return float("nan")
    labels = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(probabilities, np.float64), SMALLEST, 1 - SMALLEST)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))


def normalised_entropy(labels: Floats, probabilities: Floats) -> float:
    """Log-loss over that of always predicting the mean (He et al. 2014): below 1 is better than the mean."""
    mean = float(np.mean(labels, dtype=np.float64)) if len(labels) else float("nan")
    if not 0.0 < mean < 1.0:
        return float("nan")
    return log_loss(labels, probabilities) / log_loss(labels, np.full(len(labels), mean))


def calibration(labels: Floats, probabilities: Floats) -> float:
    """Predicted over observed positives: above 1 promises too much."""
    observed = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(probabilities, dtype=np.float64)) / observed if observed else float("nan")


def ece(labels: Floats, probabilities: Floats, bins: int = 20) -> float:
    """Expected calibration error: mean |observed - predicted| over bins of equal numbers of rows."""
    if not len(labels):
        return float("nan")
    order = np.argsort(probabilities, kind="stable")
    gaps = np.asarray(labels, np.float64)[order] - np.asarray(probabilities, np.float64)[order]
    edges = np.linspace(0, len(gaps), min(bins, len(gaps)) + 1).astype(np.int64)
    return float(np.abs(np.add.reduceat(gaps, edges[:-1])).sum() / len(gaps))


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
