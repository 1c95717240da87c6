from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from recsys_moe import metrics


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities on a coarse grid (so that many tie), users."""
    rows = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 8))
    return rng.integers(0, 2, rows), rng.integers(1, levels + 1, rows) / (levels + 1), rng.integers(0, 5, rows)


@settings(max_examples=200, deadline=None)
@given(scored())
def test_auc_is_that_of_scikit_learn_ties_included(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, scores, _ = rows
    if len(set(labels)) == 2:
        assert metrics.auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    else:
        assert math.isnan(metrics.auc(labels, scores))


@settings(max_examples=200, deadline=None)
@given(scored())
def test_gauc_is_the_mean_over_users_weighted_by_rows(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, scores, users = rows
    total, weight = 0.0, 0
    for user in set(users.tolist()):
        own = users == user
        if len(set(labels[own])) == 2:
            total += own.sum() * reference.roc_auc_score(labels[own], scores[own])
            weight += own.sum()
    found = metrics.gauc(labels, scores, np.array([f"user {n}" for n in users], dtype=object))
    assert found == pytest.approx(total / weight if weight else float("nan"), abs=1e-12, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(scored())
def test_log_loss_and_normalised_entropy(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, scores, _ = rows
    expected = reference.log_loss(labels, scores, labels=[0, 1])
    assert metrics.log_loss(labels, scores) == pytest.approx(expected)
    if len(set(labels)) == 2:
        mean = reference.log_loss(labels, np.full(len(labels), labels.mean()))
        assert metrics.normalised_entropy(labels, scores) == pytest.approx(expected / mean)


def test_calibration_is_predicted_over_observed() -> None:
    assert metrics.calibration(np.array([1, 0, 0, 1]), np.array([0.9, 0.4, 0.5, 0.6])) == pytest.approx(1.2)


def test_ece_is_zero_when_every_bin_is_right_and_half_when_each_is_off_by_half() -> None:
    labels = np.tile([0, 1], 500)
    assert metrics.ece(labels, np.full(1000, 0.5)) == pytest.approx(0.0)
    assert metrics.ece(np.ones(1000), np.linspace(0.4, 0.6, 1000)) == pytest.approx(0.5)


def test_ece_with_one_bin_per_row_is_the_mean_absolute_error() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([0.2, 0.9, 0.4])
    assert metrics.ece(labels, scores, bins=20) == pytest.approx(np.abs(labels - scores).mean())


@pytest.mark.parametrize(
    "metric", [metrics.auc, metrics.log_loss, metrics.calibration, metrics.normalised_entropy, metrics.ece]
)
def test_no_rows_give_nan(metric) -> None:
    assert math.isnan(metric(np.zeros(0), np.zeros(0)))
