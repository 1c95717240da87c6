"""Every metric against another's formula: scikit-learn's, or plain Python over all pairs of rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from recsys_moe import metrics

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
EXTREME = (0.0, -0.0, 5e-324, 1e-300, 1e-17, 0.5, 1 - 1e-16, 1.0)


@st.composite
def scored(draw: st.DrawFn) -> Rows:
    """Labels, often of one class; probabilities, of which many tie or are extreme; users, some with a single row."""
    rows = draw(st.integers(0, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = (random.random(rows) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))).astype(float)
    levels = draw(st.sampled_from([EXTREME, (0.25, 0.5), tuple(random.random(8)), tuple(random.random(1000))]))
    return labels, random.choice(levels, rows), random.integers(0, draw(st.integers(1, 30)), rows)


def exactly(expected: float) -> object:
    return pytest.approx(expected, abs=1e-9, rel=1e-9, nan_ok=True)


def auc_by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    pairs = list(product(scores[labels == 1].tolist(), scores[labels == 0].tolist()))
    return statistics.mean((high > low) + (high == low) / 2 for high, low in pairs) if pairs else math.nan


@settings(deadline=None)
@given(scored())
def test_auc_is_the_share_of_pairs_won(rows: Rows) -> None:
    labels, scores, _ = rows
    assert metrics.auc(labels, scores) == exactly(auc_by_pairs(labels, scores))


@settings(deadline=None)
@given(scored(), st.sampled_from([np.float32, np.float64]))
def test_auc_is_that_of_scikit_learn(rows: Rows, kind: type[np.floating]) -> None:
    labels, scores, _ = rows
    if len(set(labels)) == 2:
        assert metrics.auc(labels, scores.astype(kind)) == exactly(reference.roc_auc_score(labels, scores.astype(kind)))


@settings(deadline=None)
@given(scored(), st.sampled_from([lambda n: n, lambda n: n.astype(np.int8), lambda n: n - 7, lambda n: n.astype(str)]))
def test_gauc_is_the_mean_over_users_weighted_by_rows(rows: Rows, named: Callable[[np.ndarray], np.ndarray]) -> None:
    labels, scores, users = rows
    total, weight = 0.0, 0
    for user in set(users.tolist()):
        own = users == user
        if len(set(labels[own])) == 2:
            total += own.sum() * auc_by_pairs(labels[own], scores[own])
            weight += own.sum()
    assert metrics.gauc(labels, scores, named(users)) == exactly(total / weight if weight else math.nan)


@settings(deadline=None)
@given(scored())
def test_log_loss_and_normalised_entropy_are_those_of_scikit_learn(rows: Rows) -> None:
    labels, scores, _ = rows
    if not len(labels):
        return
    expected = reference.log_loss(labels, scores, labels=[0, 1])
    assert metrics.log_loss(labels, scores) == exactly(expected)
    found = metrics.normalised_entropy(labels, scores)
    if len(set(labels)) == 2:
        assert found == exactly(expected / reference.log_loss(labels, np.full(len(labels), labels.mean())))
    else:
        assert math.isnan(found)


@settings(deadline=None)
@given(scored())
def test_calibration_and_rmse_are_plain_sums(rows: Rows) -> None:
    labels, scores, _ = rows
    positives = math.fsum(labels)
    assert metrics.calibration(labels, scores) == exactly(math.fsum(scores) / positives if positives else math.nan)
    expected = reference.root_mean_squared_error(labels, scores) if len(labels) else math.nan
    assert metrics.rmse(labels, scores) == exactly(expected)


@settings(deadline=None)
@given(scored(), st.integers(1, 70))
def test_ece_is_that_of_bins_filled_row_by_row(rows: Rows, bins: int) -> None:
    labels, scores, _ = rows
    # A row counts as much positive as its score's rows are on average, so that it does not matter which comes first.
    share = [statistics.mean(labels[scores == score].tolist()) for score in scores]
    ordered = sorted(zip(scores.tolist(), share, strict=True))
    parts = min(bins, len(ordered))
    edges = [len(ordered) * number // max(parts, 1) for number in range(parts + 1)]
    off = [abs(math.fsum(y - p for p, y in ordered[low:high])) for low, high in pairwise(edges)]
    assert metrics.ece(labels, scores, bins) == exactly(math.fsum(off) / len(ordered) if ordered else math.nan)


@settings(deadline=None)
@given(scored(), st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_rows(rows: Rows, random) -> None:
    order = np.array(random.sample(range(len(rows[0])), len(rows[0])), int)
    assert metrics.binary(*(part[order] for part in rows)) == exactly(metrics.binary(*rows))


@settings(deadline=None)
@given(scored())
def test_all_at_once_are_those_one_by_one(rows: Rows) -> None:
    labels, scores, users = rows
    expected = {"auc": metrics.auc(labels, scores), "gauc": metrics.gauc(labels, scores, users)}
    for name in ("log_loss", "normalised_entropy", "calibration", "ece"):
        expected[name] = getattr(metrics, name)(labels, scores)
    counts = {"rows": len(labels), "users": len(set(users.tolist())), "positives": labels.sum()}
    assert metrics.binary(labels, scores, users) == exactly(expected | counts)
    assert metrics.regression(labels, scores, users) == exactly(
        {"rmse": metrics.rmse(labels, scores), "rows": len(labels), "users": counts["users"]}
    )


def test_more_rows_than_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 100), random.random(100)
    whole = metrics.log_loss(labels, scores)
    monkeypatch.setattr(metrics, "_ROWS_AT_ONCE", 7)
    assert metrics.log_loss(labels, scores) == exactly(whole)


def test_ece_is_zero_when_every_bin_is_right_and_half_when_each_is_off_by_half() -> None:
    labels = np.sort(np.tile([0, 1], 500))
    assert metrics.ece(labels, np.full(1000, 0.5)) == pytest.approx(0.0)
    assert metrics.ece(np.ones(1000), np.linspace(0.4, 0.6, 1000)) == pytest.approx(0.5)


@settings(deadline=None)
@given(scored())
def test_ranks_within_a_group_are_those_of_its_rows_alone(rows: Rows) -> None:
    _, scores, group = rows
    if not len(scores):
        return
    for number in set(group.tolist()):
        own, inside = scores[group == number], metrics.ranks_within(group, scores)[group == number]
        expected = [(own < one).sum() + ((own == one).sum() + 1) / 2 for one in own]
        assert inside.tolist() == expected
