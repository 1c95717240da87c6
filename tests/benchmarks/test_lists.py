"""Lists on real days: gains of each list are those whose means `list_metrics` has. Needs none of the data."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import lists
from recsys_moe import list_metrics
from recsys_moe.errors import UserError

RNG = np.random.default_rng(0)
MADE = np.stack([RNG.permutation(60)[: lists.K] for _ in range(40)])
MADE[3, 5:] = -1
USER, ITEM = RNG.integers(40, size=90), RNG.integers(60, size=90)


def evening(user: np.ndarray, item: np.ndarray) -> lists.Evening:
    """One with 40 users, of which nothing is read but their ids and what they liked."""
    config = SimpleNamespace(columns=SimpleNamespace(user="user_id"))
    users = pa.table({"user_id": [f"u{n}" for n in range(40)]})
    nothing: Any = None
    rest = nothing, nothing, date(2022, 5, 6), users, nothing, nothing
    return lists.Evening(cast(Any, config), *rest, (user, item))


def test_the_mean_gains_are_the_metrics_of_lists() -> None:
    gains = lists.gains_of(MADE, USER, ITEM)[np.unique(USER)]
    assert gains[:, 0].mean() == pytest.approx(list_metrics.recall(MADE, USER, ITEM, lists.K))
    assert gains[:, 1].mean() == pytest.approx(list_metrics.ndcg(MADE, USER, ITEM, lists.K))


def test_users_of_several_days_are_compared_together() -> None:
    perfect = np.full((40, lists.K), -1)
    perfect[:, 0] = np.arange(40)
    half = np.where(np.arange(40)[:, None] % 2, -1, perfect)
    made = {"ours": perfect, "half": half}
    days = [evening(np.arange(count), np.arange(count)) for count in (40, 20)]
    found = lists.compared(days, [made, made], "ours")
    assert found["users"] == 60
    assert found["lists"]["ours"]["recall@20"] == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    assert found["lists"]["half"]["ndcg@20"]["mean"] == pytest.approx(0.5)
    times = found["times"]["half"]["recall@20"]
    assert times["mean"] == pytest.approx(2.0)
    assert times["low"] < 2.0 < times["high"]
    lines = lists.table({"everyone": found, "some": found}).splitlines()
    assert lines[2] == "| ours | 60 | 1.0000 | 1.0000 |  |  |"
    assert lines[3].startswith("| half | 60 | 0.5000 | 0.5000 | 2.00 (")


def test_somebody_must_get_a_list_of_every_item() -> None:
    with pytest.raises(UserError, match="--every-item"):
        lists.run(every_item=0)
