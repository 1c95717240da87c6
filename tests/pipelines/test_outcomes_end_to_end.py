"""Impressions and purchases in tables of their own, day by day through `prepare`: labels get ripe, history waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.tables import TableName, Tables

Rows = Callable[[Recommender, TableName, date], pd.DataFrame]
DELAY = 2
SMOOTHING = 2.0
OUTCOMES = pa.schema(
    [
        *((name, pa.string()) for name in ("outcome", "user", "item", "request")),
        ("event_time", pa.timestamp("us", "UTC")),
        ("event_day", pa.date32()),
        ("source_row", pa.int64()),
        ("source_file", pa.string()),
    ]
)


def configured(tiny: Any, delay: int) -> Recommender:
    source = {
        "interactions": {"path": "../data/log/{ds}.csv"},
        "outcomes": [{"name": "purchase", "path": "../data/purchases/{ds}.csv", "timestamp": {"name": "at"}}],
    }
    tasks = [
        {"name": "click", "label": "clicked"},
        {"name": "buy", "outcome": "purchase", "label_delay_days": delay, "within_hours": 20 * delay},
    ]
    history = {"keys": ["user"], "days": [2], "smoothing": SMOOTHING}
    features = {"categorical": ["user", "item"], "history": history}
    config: Recommender = tiny(source=source, tasks=tasks, features=features, segments=None, scoring=None)
    return config


def deliver(config: Recommender, tiny: Any, number: int) -> None:
    """Ingest a day whose rows are of up to two days before, and the purchases that came in on it."""
    draw, day = random.Random(number), tiny.day(number)
    lines = []
    for second in range(12):
        happened = max(0, number - draw.choice([0, 0, 0, 1, 2]))
        lines.append(f"u{draw.randrange(2)},i{draw.randrange(2)},{tiny.at(happened, second * 7000)},home,1,0")
    tiny.log(number, lines)
    tiny.write(f"purchases/{day}.csv", "user,item,at\n")
    ingest(config, day)
    bought = []
    for row in range(6):
        at = datetime.fromtimestamp(tiny.at(number, row * 14_000), UTC)
        who = {"user": f"u{draw.randrange(2)}", "item": f"i{draw.randrange(2)}", "request": None}
        bought.append({"outcome": "purchase", "event_time": at, "event_day": at.date(), "source_row": row} | who)
    rows = pa.Table.from_pylist([row | {"source_file": "purchases.csv"} for row in bought], schema=OUTCOMES)
    Tables(config.storage).replace_day("outcomes", day, rows)


def in_a_fixed_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values([*rows.columns.drop(list(rows.filter(like="label_")))]).reset_index(drop=True)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_labels_get_ripe_and_history_waits_for_them(tiny: Any, rows_of: Rows) -> None:
    config = configured(tiny, DELAY)
    for number in range(tiny.DAYS):
        deliver(config, tiny, number)
        done = prepare(config, tiny.day(number))
        assert done["prepared_again"] == [tiny.day(number - DELAY).isoformat()] * (number >= DELAY)
        for before in range(number + 1):
            missing = rows_of(config, "examples", tiny.day(before))["label_buy"].isna()
            assert missing.all() if before + DELAY > number else not missing.any()
    examples = pd.concat([rows_of(config, "examples", tiny.day(number)) for number in range(tiny.DAYS)])
    assert 0.1 < examples["label_buy"].mean() < 0.9
    assert (examples["event_day"] < examples["ds"]).sum() > 10
    for _, row in examples.iterrows():
        first, last = (row["event_day"] - timedelta(days=DELAY + before) for before in (2, 1))
        is_ripe = examples["ds"] + timedelta(days=DELAY) < row["event_day"]
        ripe = examples[is_ripe & examples["event_day"].between(first, last)]
        mine = ripe[ripe["user"] == row["user"]]["label_buy"]
        rate = (mine.sum() + SMOOTHING * ripe["label_buy"].mean()) / (len(mine) + SMOOTHING)
        assert row["user_2d_buy_rate"] == pytest.approx(rate, nan_ok=True)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_days_ingested_in_another_order_have_the_same_examples(tiny: Any, rows_of: Rows) -> None:
    """Some labels are ripe from the start then, and have to become so otherwise."""
    config, days = configured(tiny, 1), range(4)
    for number in days:
        deliver(config, tiny, number)
        prepare(config, tiny.day(number))
    other = config.model_copy(update={"storage": str(tiny.folder / "other")})
    for number in (2, 0, 3, 1):
        deliver(other, tiny, number)
    for number in days:
        prepare(other, tiny.day(number))
    for day in map(tiny.day, days):
        found, expected = (in_a_fixed_order(rows_of(one, "examples", day)) for one in (other, config))
        pd.testing.assert_frame_equal(found, expected)
