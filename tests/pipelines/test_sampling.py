"""Negatives that are made: who gets them, how items are drawn, and what they must not depend on."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import chisquare

from pipelines import sql
from pipelines.config import Recommender
from pipelines.sampling import made_negatives
from pipelines.tables import Tables
from tests.pipelines.conftest import Tiny

COUNTS = {"a": 400, "b": 200, "c": 100, "d": 50, "e": 10}
"""How often each item stands in the log of `popular`."""


def sampling(**changes: Any) -> dict[str, Any]:
    return {"make_negatives": {"per_positive": 3, "days": 2, "seed": 1} | changes}


def rows_of(day: date, users: list[str], items: list[str]) -> pa.Table:
    """A log with a context column, a row a second."""
    seconds = np.datetime64(day, "us") + np.arange(len(users)).astype("timedelta64[s]")
    return pa.table(
        {
            "user": users,
            "item": items,
            "tab": [f"tab{n % 2}" for n in range(len(users))],
            "event_time": pa.array(seconds, pa.timestamp("us", "UTC")),
            "event_day": pa.array([day] * len(users), pa.date32()),
            "source_row": pa.array(np.arange(len(users))),
            "label_click": np.ones(len(users)),
            "label_like": np.ones(len(users)),
        }
    )


def made(config: Recommender, ds: date, log: pa.Table, threads: int = 1) -> pd.DataFrame:
    """The negatives of a log, by user, time and item."""
    tables = Tables(config.storage)
    with sql.connect("UTC", log=log) as connection:
        connection.execute(f"SET threads = {threads}")
        found = sql.fetch(connection, made_negatives(connection, config, tables, ds, "log")).to_pandas()
    return found[found["source_row"].isna()].sort_values(["user", "event_time", "item"], ignore_index=True)


@pytest.fixture
def popular(tiny: Tiny) -> pa.Table:
    """Each user has one row only, so that hardly a draw is refused; published as day 1."""
    items = np.repeat(list(COUNTS), list(COUNTS.values()))
    log = rows_of(Tiny.day(1), [f"u{n}" for n in range(len(items))], items.tolist())
    publish(tiny(), 1, log)
    return log


def publish(config: Recommender, number: int, log: pa.Table) -> None:
    Tables(config.storage).replace_day(
        "interactions", Tiny.day(number), log.drop_columns(["label_click", "label_like"])
    )


def test_a_row_gets_negatives_of_the_same_moment_with_labels_of_zero(tiny: Tiny, popular: pa.Table) -> None:
    config = tiny(sampling=sampling())
    with sql.connect("UTC", log=popular) as connection:
        query = made_negatives(connection, config, Tables(config.storage), Tiny.day(1), "log")
        everything = sql.fetch(connection, query)
    assert everything.column_names == popular.column_names
    given = everything.filter(everything["source_row"].is_valid()).sort_by("source_row")
    assert given.equals(popular.cast(given.schema))
    negatives = made(config, Tiny.day(1), popular)
    assert len(popular) * 2.9 < len(negatives) <= len(popular) * 3
    assert (negatives["label_click"] == 0).all()
    assert negatives["label_like"].isna().all()  # it is given the click, which is not there
    its_row = negatives.merge(popular.to_pandas(), on=["user", "event_time"], suffixes=("", "_positive"))
    assert len(its_row) == len(negatives)
    assert (its_row["tab"] == its_row["tab_positive"]).all()


@pytest.mark.parametrize("popularity", [0.0, 0.5, 1.0])
def test_items_are_drawn_by_their_popularity(popularity: float, tiny: Tiny, popular: pa.Table) -> None:
    log = popular.filter(pa.compute.equal(popular["item"], "e"))  # their users may get all but e
    config = tiny(sampling=sampling(popularity=popularity, per_positive=300))
    found = made(config, Tiny.day(1), log)["item"].value_counts()
    weights = {item: count**popularity for item, count in COUNTS.items() if item != "e"}
    expected = np.array(list(weights.values())) / sum(weights.values()) * found.sum()
    assert found.sum() > 2_900
    assert chisquare([found[item] for item in weights], expected).pvalue > 0.01


def test_nobody_gets_an_item_of_their_own(tiny: Tiny) -> None:
    draw = np.random.default_rng(0)
    logs = [
        rows_of(Tiny.day(n), [f"u{k}" for k in draw.integers(0, 8, 60)], [f"i{k}" for k in draw.integers(0, 12, 60)])
        for n in range(2)
    ]
    for number, log in enumerate(logs):
        publish(tiny(), number, log)
    config = tiny(sampling=sampling())
    negatives = made(config, Tiny.day(1), logs[1])
    seen = {pair for log in logs for pair in zip(log["user"].to_pylist(), log["item"].to_pylist(), strict=True)}
    assert not seen & set(zip(negatives["user"], negatives["item"], strict=True))
    assert 0 < len(negatives) <= 3 * 60


def test_who_has_seen_everything_gets_none(tiny: Tiny) -> None:
    log = rows_of(Tiny.day(0), ["u0", "u0", "u1"], ["i0", "i1", "i0"])
    publish(tiny(), 0, log)
    negatives = made(tiny(sampling=sampling(per_positive=8)), Tiny.day(0), log)
    assert set(negatives["user"]) == {"u1"}
    assert set(negatives["item"]) == {"i1"}


def test_draws_depend_on_neither_order_nor_threads_but_on_the_seed(tiny: Tiny, popular: pa.Table) -> None:
    config = tiny(sampling=sampling())
    once = made(config, Tiny.day(1), popular)
    shuffled = popular.take(np.random.default_rng(0).permutation(len(popular)))
    pd.testing.assert_frame_equal(once, made(config, Tiny.day(1), shuffled, threads=4))
    other = made(tiny(sampling=sampling(seed=2)), Tiny.day(1), popular)
    assert not once["item"].equals(other["item"])


def test_a_row_draws_the_same_among_other_rows(tiny: Tiny, popular: pa.Table) -> None:
    config = tiny(sampling=sampling())
    among_all = made(config, Tiny.day(1), popular)
    alone = made(config, Tiny.day(1), popular.slice(7, 1))
    expected = among_all[among_all["user"] == "u7"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected)


def test_only_the_days_up_to_this_one_count(tiny: Tiny, popular: pa.Table) -> None:
    config = tiny(sampling=sampling())
    before = made(config, Tiny.day(1), popular)
    publish(config, 2, rows_of(Tiny.day(2), ["u1"] * 3, ["new", "a", "b"]))
    pd.testing.assert_frame_equal(before, made(config, Tiny.day(1), popular))
    later = made(config, Tiny.day(3), popular)  # days 2 and 3: what day 1 had is forgotten
    assert set(later["item"]) == {"new", "a", "b"}
