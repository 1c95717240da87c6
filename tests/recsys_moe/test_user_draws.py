"""Intervals by drawing users: a draw is the metric of the rows that were drawn, each as often as its user was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recsys_moe import metrics
from recsys_moe.user_draws import UserDraws, over_draws

Floats = NDArray[np.float64]


def _rows(rng: np.random.Generator, ties: bool = True, rate: float = 0.4) -> tuple[NDArray[Any], Floats, Floats]:
    users = rng.choice(["b", "a", "d", "c", "e"], 300)
    scores = rng.integers(0, 9, 300) / 9 if ties else rng.random(300)
    return users, (rng.random(300) < rate).astype(float), scores


def _rmse(labels: Floats, scores: Floats) -> float:
    return float(np.sqrt(np.mean((labels - scores) ** 2)))


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("rate", [0.1, 0.8])
@pytest.mark.parametrize("segment", [True, False])
def test_every_draw_is_the_metric_of_the_rows_that_were_drawn(ties: bool, rate: float, segment: bool) -> None:
    rng = np.random.default_rng(0)
    users, labels, scores = _rows(rng, ties, rate)
    where = rng.random(300) < 0.5 if segment else None
    draws = UserDraws.of(users, draws=140)
    assert draws.counts.shape == (5, 141)
    inside = np.flatnonzero(where) if where is not None else np.arange(300)
    by_hand: dict[str, Callable[[Floats, Floats], float]] = {
        "auc": metrics.auc,
        "log_loss": metrics.log_loss,
        "calibration": metrics.calibration,
        "rmse": _rmse,
    }
    for name, formula in by_hand.items():
        found = getattr(draws, name)(labels, scores, where)
        for draw in (0, 1, 63, 64, 140):
            rows = np.repeat(inside, draws.counts[draws.user[inside], draw])
            assert found[draw] == pytest.approx(formula(labels[rows], scores[rows]), rel=1e-9, nan_ok=True)


def test_gauc_is_the_mean_over_the_users_that_were_drawn() -> None:
    rng = np.random.default_rng(0)
    users, labels, scores = _rows(rng)
    labels[users == "c"] = 1.0  # one class: skipped
    where = rng.random(300) < 0.7
    draws = UserDraws.of(users, draws=20)
    gauc = draws.gauc(labels, scores, where)
    assert gauc[0] == pytest.approx(metrics.gauc(labels[where], scores[where], users[where]))
    own = {user: where & (users == user) for user in "abde"}
    each = [metrics.auc(labels[rows], scores[rows]) for rows in own.values()]
    for draw in (1, 20):
        weights = [draws.counts["abcde".index(user), draw] * rows.sum() for user, rows in own.items()]
        assert gauc[draw] == pytest.approx(np.average(each, weights=weights))


def test_the_order_of_scores_can_be_given() -> None:
    users, labels, scores = _rows(np.random.default_rng(2))
    draws, where = UserDraws.of(users, draws=10), scores > 0.3
    given = draws.auc(labels, scores, where, order=np.argsort(scores))
    np.testing.assert_array_equal(given, draws.auc(labels, scores, where))


def test_users_are_drawn_as_poisson_says() -> None:
    counts = UserDraws.of(np.arange(5000), draws=200).counts[:, 1:]
    expected = [math.exp(-1) / math.factorial(times) for times in range(5)]
    share = np.bincount(counts.ravel(), minlength=5)[:5] / counts.size
    assert share == pytest.approx(expected, abs=0.002)  # 5 standard deviations of 1M draws, and 1 / 65536
    assert np.abs(np.corrcoef(counts[:, :20].T) - np.eye(20)).max() < 0.08


def test_draws_are_the_same_again_with_the_same_seed_alone() -> None:
    users = np.arange(50)
    first, again, other = (UserDraws.of(users, 20, seed).counts for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_draws_of_users_are_wider_than_draws_of_rows() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(100), 20)
    taste = rng.normal(size=100)[users]
    labels = (rng.random(2000) < 1 / (1 + np.exp(-2 * taste))).astype(float)
    scores = taste + rng.normal(size=2000)
    by_user = over_draws(UserDraws.of(users).auc(labels, scores))
    by_row = over_draws(UserDraws.of(np.arange(2000)).auc(labels, scores))
    assert by_user["mean"] == by_row["mean"]
    assert by_user["high"] - by_user["low"] > 1.5 * (by_row["high"] - by_row["low"])


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_rows_of_one_class_have_no_auc(label: float) -> None:
    draws = UserDraws.of(np.arange(6), draws=10)
    labels, scores = np.full(6, label), np.arange(6) / 6
    assert np.isnan(draws.auc(labels, scores)).all()
    assert np.isnan(draws.gauc(labels, scores)).all()
    assert np.isnan(list(over_draws(draws.auc(labels, scores)).values())).all()


def test_no_rows_have_no_metric() -> None:
    draws, none = UserDraws.of(np.arange(6), draws=10), np.zeros(6, bool)
    labels, scores = np.array([0.0, 1.0] * 3), np.arange(6) / 6
    for metric in (draws.auc, draws.gauc, draws.log_loss, draws.rmse, draws.calibration):
        assert np.isnan(metric(labels, scores, none)).all()


def test_draws_without_a_positive_are_left_out_of_the_interval() -> None:
    draws = UserDraws.of(np.arange(40), draws=200)
    labels, scores = np.eye(40)[20], np.arange(40) / 40
    drawn = draws.auc(labels, scores)
    assert 40 < np.isnan(drawn[1:]).sum() < 110  # the only positive's user is not drawn in 1 / e of the draws
    found = over_draws(drawn)
    assert found["low"] < found["mean"] < found["high"]


def test_the_interval_leaves_out_what_was_measured() -> None:
    found = over_draws(np.r_[9.0, np.linspace(0, 1, 1001)])
    assert found == pytest.approx({"mean": 9.0, "low": 0.025, "high": 0.975})
