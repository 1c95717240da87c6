"""Intervals by drawing users: a draw is the metric of the rows that were drawn, each as often as its user was."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.intervals import UserDraws, over_draws
from recsys_moe import metrics


def test_every_draw_is_the_metric_of_the_rows_that_were_drawn() -> None:
    rng = np.random.default_rng(0)
    users = rng.choice(["b", "a", "d", "c", "e"], 60)
    labels, scores = (rng.random(60) < 0.4).astype(float), rng.integers(0, 9, 60) / 9  # with ties
    draws = UserDraws.of(users, draws=120)
    auc, gauc = draws.auc(labels, scores), draws.gauc(labels, scores)
    assert auc[0] == pytest.approx(metrics.auc(labels, scores))
    assert gauc[0] == pytest.approx(metrics.gauc(labels, scores, users))
    for draw in (1, 60, 120):
        times = draws.counts[draw, draws.user].astype(int)
        assert draws.counts[draw].sum() == 5
        drawn = np.repeat(np.arange(60), times)
        assert auc[draw] == pytest.approx(metrics.auc(labels[drawn], scores[drawn]))
        each = [metrics.gauc(labels[users == u], scores[users == u], users[users == u]) for u in "abcde"]
        assert gauc[draw] == pytest.approx(np.average(each, weights=draws.counts[draw] * np.bincount(draws.user)))


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


def test_the_interval_leaves_out_what_was_measured() -> None:
    found = over_draws(np.r_[9.0, np.linspace(0, 1, 1001)])
    assert found == pytest.approx({"mean": 9.0, "low": 0.025, "high": 0.975})
