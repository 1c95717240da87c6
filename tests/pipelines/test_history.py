"""History features: equal to counting by hand, and blind to everything from the event's day on."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import history, sql
from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.tables import Tables

START = date(2026, 1, 1)
KEYS = (("user",), ("item",), ("user", "tab"))
DAYS = (1, 3)
SMOOTHING = 2.0
TASKS = ("click", "like")
COLUMNS = ["ds", "event_day", "user", "item", "tab", "label_click", "label_like"]


def by_hand(log: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Every history feature of `rows`, one row and one window after the other."""
    return pd.DataFrame([_of_row(log, row) for _, row in rows.iterrows()], index=rows.index)


def _of_row(log: pd.DataFrame, row: pd.Series[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for days in DAYS:
        first = row["event_day"] - timedelta(days=days)
        before = (log["event_day"] < row["event_day"]) & (log["ds"] < row["event_day"])
        known = log[before & (log["event_day"] >= first)]
        for key in KEYS:
            mine = known[np.logical_and.reduce([(known[c] == row[c]).to_numpy(bool) for c in key])]
            name = f"{'_x_'.join(key)}_{days}d"
            found[f"{name}_rows"] = float(len(mine))
            for task in TASKS:
                everyone, hits = known[f"label_{task}"].dropna(), mine[f"label_{task}"].dropna()
                rate = everyone.mean() if len(everyone) else np.nan
                found[f"{name}_{task}_rate"] = (hits.sum() + SMOOTHING * rate) / (len(hits) + SMOOTHING)
    return found


def computed(config: Recommender, log: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The same by the project's SQL, from the daily counts of every day of the log."""
    with sql.connect(asked_rows=arrow(rows.reset_index())) as connection:
        counts = []
        for ds in sorted(set(log["ds"])):
            connection.register("events", arrow(log[log["ds"] == ds]))
            day = sql.fetch(connection, history.daily_counts(config, "events"))
            counts.append(day.append_column("ds", pa.array([ds] * len(day), pa.date32())))
        connection.register("daily_counts", pa.concat_tables(counts))
        query = history.join_history(connection, config, "asked_rows", KEYS)
        frame = sql.fetch(connection, query).to_pandas().set_index("index").sort_index()
    return frame[[column for column in frame if column not in COLUMNS]]


def arrow(frame: pd.DataFrame) -> pa.Table:
    kinds = {"ds": pa.date32(), "event_day": pa.date32(), "label_click": pa.float64(), "label_like": pa.float64()}
    kinds |= {"index": pa.int64()}
    return pa.table({c: pa.array(frame[c].tolist(), kinds.get(c, pa.string()), from_pandas=True) for c in frame})


def agree(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other[list(one)], check_index_type=False, check_names=False, rtol=1e-12)


EVENTS = st.tuples(
    st.integers(0, 5),
    st.sampled_from([0, 0, 0, 1, 3]),
    st.sampled_from(["u0", "u1", "u2"]),
    st.sampled_from(["i0", "i1"]),
    st.sampled_from(["home", "search", None]),
    st.sampled_from([0.0, 1.0, None]),
    st.sampled_from([0.0, 1.0, None]),
)


def frame_of(events: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Events of day ds that happened `lag` days before; a lag makes them late."""
    rows = [(START + timedelta(ds), START + timedelta(ds - lag), *rest) for ds, lag, *rest in events]
    return pd.DataFrame(rows, columns=COLUMNS)


SMALL = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SMALL
@given(st.lists(EVENTS, min_size=1, max_size=25))
def test_features_equal_counting_by_hand(tiny: Any, events: list[tuple[Any, ...]]) -> None:
    log = frame_of(events)
    agree(by_hand(log, log), computed(tiny(), log, log))


@SMALL
@given(st.lists(EVENTS, min_size=1, max_size=20), st.lists(EVENTS, max_size=20), st.integers(0, 5))
def test_features_of_a_day_do_not_see_that_day_or_later(
    tiny: Any, events: list[tuple[Any, ...]], others: list[tuple[Any, ...]], number: int
) -> None:
    """Whatever happens on the day or after it, or comes in on the day or after it, its features stay the same."""
    log, other, day = frame_of(events), frame_of(others), START + timedelta(number)
    asked = log.assign(event_day=day)
    past = log[(log["event_day"] < day) & (log["ds"] < day)]
    future = other[(other["event_day"] >= day) | (other["ds"] >= day)]
    changed = pd.concat([past, future]) if len(past) + len(future) else log.head(0)
    if len(changed):
        agree(computed(tiny(), log, asked), computed(tiny(), changed, asked))


@pytest.mark.timeout(100)
def test_tables_of_six_days_equal_counting_by_hand(tiny: Any) -> None:
    """Through files and tables, with events that come in up to four days late and tabs that say nothing."""
    draw = np.random.default_rng(0)
    for number in range(tiny.DAYS):
        lines = []
        for second in range(20):
            happened = max(0, number - int(draw.choice([0, 0, 0, 1, 4])))
            click, tab = int(draw.random() < 0.5), draw.choice(["home", "search", ""])
            user, item = f"u{draw.integers(4)}", f"i{draw.integers(4)}"
            lines.append(f"{user},{item},{tiny.at(happened, second)},{tab},{click},{int(draw.random() < 0.4)}")
        tiny.log(number, lines)
    config = tiny()
    for number in range(tiny.DAYS):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    examples = Tables(config.storage).dataset("examples").to_table().to_pandas()
    assert (examples["event_day"] < examples["ds"]).sum() > 20
    agree(by_hand(examples, examples), examples)
