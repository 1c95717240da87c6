"""History features: equal to counting by hand, and blind to everything from the event's day on."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import history, recent, sql
from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.key_groups import group_by
from pipelines.prepare import prepare
from pipelines.tables import Tables

START = date(2026, 1, 1)
KEYS = (("user",), ("item",), ("user", "tab"))
DAYS = (1, 3)
SMOOTHING = 2.0
DELAYS = {"click": 0, "like": 2}
RECENT = {
    "user_last_2_item": ("user", "item", 2, 3, None),
    "item_last_3_click_user": ("item", "user", 3, 2, "click"),
    "user_last_4_like_item": ("user", "item", 4, 2, "like"),
}
COLUMNS = ["ds", "event_day", "user", "item", "tab", "label_click", "label_like", "event_time"]


def described(tiny: Any) -> Recommender:
    """The recommender with all the history there is; what was liked is known two days later."""
    recents = [
        {"key": key, "of": of, "last": last, "days": days, "task": task}
        for key, of, last, days, task in RECENT.values()
    ]
    written = {"keys": ["user", "item", ["user", "tab"]], "days": [*DAYS], "smoothing": SMOOTHING}
    written |= {"days_since_last": True, "recent": recents}
    tasks = [{"name": "click", "label": "clicked"}]
    tasks += [{"name": "like", "label": "liked", "given": "click", "label_delay_days": DELAYS["like"]}]
    config: Recommender = tiny(features={"categorical": ["user", "item", "tab"], "history": written}, tasks=tasks)
    return config


def by_hand(log: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Every history feature of `rows`, one row and one window after the other."""
    return pd.DataFrame([_of_row(log, row) for _, row in rows.iterrows()], index=rows.index)


def _known(log: pd.DataFrame, row: pd.Series[Any], days: int, delay: int = 0) -> pd.DataFrame:
    """The rows of a window that ends `delay` days before the day before the event."""
    end = row["event_day"] - timedelta(days=delay)
    return log[(log["event_day"] < end) & (log["ds"] < end) & (log["event_day"] >= end - timedelta(days=days))]


def _of_key(known: pd.DataFrame, row: pd.Series[Any], key: tuple[str, ...]) -> pd.DataFrame:
    return known[np.logical_and.reduce([(known[c] == row[c]).to_numpy(bool) for c in key])]


def _of_row(log: pd.DataFrame, row: pd.Series[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    windows = {(days, delay): _known(log, row, days, delay) for days in DAYS for delay in {0, *DELAYS.values()}}
    for key in KEYS:
        for days in DAYS:
            name = f"{'_x_'.join(key)}_{days}d"
            found[f"{name}_rows"] = float(len(_of_key(windows[days, 0], row, key)))
            for task, delay in DELAYS.items():
                known = windows[days, delay]
                everyone = known[f"label_{task}"].dropna()
                hits = _of_key(known, row, key)[f"label_{task}"].dropna()
                rate = everyone.mean() if len(everyone) else np.nan
                found[f"{name}_{task}_rate"] = (hits.sum() + SMOOTHING * rate) / (len(hits) + SMOOTHING)
        last = _of_key(windows[max(DAYS), 0], row, key)["event_day"].max()
        found[f"{'_x_'.join(key)}_days_since_last"] = np.nan if pd.isna(last) else float((row["event_day"] - last).days)
    return found | {name: _list(log, row, *one) for name, one in RECENT.items()}


def _list(
    log: pd.DataFrame, row: pd.Series[Any], key: str, of: str, last: int, days: int, task: str | None
) -> str | None:
    mine = _of_key(_known(log, row, days, DELAYS[task] if task else 0), row, (key,))
    mine = mine[mine[f"label_{task}"] > 0] if task else mine
    newest = mine.sort_values(["event_time", of], ascending=[False, True])[of].head(last)
    return ",".join(newest) if len(newest) else None


def computed(config: Recommender, log: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The same by the project's SQL, from what every day of the log leaves."""
    assert config.features.history is not None
    with sql.connect(asked_rows=arrow(rows.reset_index())) as connection:
        left: dict[str, list[pa.Table]] = {"daily_counts": [], "daily_recent": []}
        for ds in sorted(set(log["ds"])):
            connection.register("events", arrow(log[log["ds"] == ds]))
            groups = group_by(connection, "events", [history.ALL, *KEYS])
            counts = history.daily_counts(connection, config, "events", groups).read_all()
            for tables, day in zip(
                left.values(), (counts, sql.fetch(connection, recent.daily_recent(config, "events"))), strict=True
            ):
                tables.append(day.append_column("ds", pa.array([ds] * len(day), pa.date32())))
        connection.register("daily_recent", pa.concat_tables(left["daily_recent"]))
        days = zip(sorted(set(log["ds"])), left["daily_counts"], strict=True)
        batches = [(ds, batch) for ds, table in days for batch in table.to_batches()]
        groups = group_by(connection, "asked_rows", [history.ALL, *KEYS, ("user",)])
        found = history.look_up(config, KEYS, groups, batches)
        lists = recent.look_up(connection, config, config.features.history.recent, groups)
        features = {
            name: column.take(pa.array(groups[key].of_row)).to_pandas()
            for looked_up in (found, lists)
            for key, columns in looked_up.items()
            for name, column in columns.items()
        }
    return pd.DataFrame(features).set_axis(rows.index).sort_index()


def arrow(frame: pd.DataFrame) -> pa.Table:
    kinds = {"ds": pa.date32(), "event_day": pa.date32(), "label_click": pa.float64(), "label_like": pa.float64()}
    kinds |= {"index": pa.int64(), "event_time": pa.timestamp("us", "UTC")}
    return pa.table({c: pa.array(frame[c].tolist(), kinds.get(c, pa.string()), from_pandas=True) for c in frame})


def agree(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Rates are single precision."""
    one, other = (_plain(frame, list(one)) for frame in (one, other))
    pd.testing.assert_frame_equal(one, other, check_index_type=False, check_names=False, check_dtype=False, rtol=1e-6)


def _plain(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    frame = frame[columns].copy()
    for name in RECENT:
        lists = [",".join(v) if isinstance(v, np.ndarray) else v for v in frame[name]]
        frame[name] = ["none" if pd.isna(v) else v for v in lists]
    return frame


EVENTS = st.tuples(
    st.integers(0, 5),
    st.sampled_from([0, 0, 0, 1, 3]),
    st.sampled_from(["u0", "u1", "u2"]),
    st.sampled_from(["i0", "i1"]),
    st.sampled_from(["home", "search", None]),
    st.sampled_from([0.0, 1.0, None]),
    st.sampled_from([0.0, 1.0, None]),
    st.integers(0, 2),
)


def frame_of(events: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Events of day ds that happened `lag` days before, at some second; a lag makes them late."""
    rows = []
    for ds, lag, *rest, second in events:
        day = START + timedelta(ds - lag)
        at = datetime(day.year, day.month, day.day, second=second, tzinfo=UTC)
        rows.append((START + timedelta(ds), day, *rest, at))
    return pd.DataFrame(rows, columns=COLUMNS)


SMALL = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SMALL
@given(st.lists(EVENTS, min_size=1, max_size=25))
def test_features_equal_counting_by_hand(tiny: Any, events: list[tuple[Any, ...]]) -> None:
    log = frame_of(events)
    agree(by_hand(log, log), computed(described(tiny), log, log))


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
        config = described(tiny)
        agree(computed(config, log, asked), computed(config, changed, asked))


@pytest.mark.slow
@pytest.mark.timeout(300)
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
    config = described(tiny)
    for number in range(tiny.DAYS):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    examples = Tables(config.storage).dataset("examples").to_table().to_pandas()
    assert (examples["event_day"] < examples["ds"]).sum() > 20
    agree(by_hand(examples, examples), examples)
