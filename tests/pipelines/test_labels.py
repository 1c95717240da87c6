"""Labels: outcomes credited as by hand, each once at most; ripe or not there; blind to what comes in later."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipelines import labels, sql
from pipelines.config import Recommender, TaskSource
from pipelines.tables import Tables
from recsys_moe.errors import UserError

START = date(2026, 1, 1)
DAYS = 7
SMALL = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Rows = list[dict[str, Any]]
Labels = dict[int, dict[str, float | None]]

TEXT, NUMBER = pa.string(), pa.float64()
KEYS = {"ds": pa.date32(), "event_time": pa.timestamp("us", "UTC"), "user": TEXT, "item": TEXT, "request": TEXT}
BY_DAY = pa.dataset.partitioning(pa.schema([("ds", KEYS["ds"])]), flavor="hive")
COLUMNS = {
    "interactions": KEYS | {"source_file": TEXT, "source_row": pa.int64(), "clicked": NUMBER, "stars": NUMBER},
    "outcomes": KEYS | {"outcome": TEXT, "price": NUMBER},
}

SOURCES = [
    {"name": "purchase", "path": "../data/purchases/{ds}.csv", "timestamp": {"name": "at"}},
    {"name": "play", "path": "../data/plays/{ds}.csv", "timestamp": {"name": "at"}, "request": "request"},
]
BUY = {"name": "buy", "outcome": "purchase", "label_delay_days": 1}
SPEND = BUY | {"name": "spend", "value": "price", "kind": "regression"}
MUCH = {"name": "much", "outcome": "purchase", "value": "price", "at_least": 3, "within_hours": 36}
PLAYS = {"name": "plays", "outcome": "play", "kind": "regression", "within_hours": 2.5, "label_delay_days": 1}
TASKS: list[dict[str, Any]] = [
    {"name": "click", "label": "clicked"},
    {"name": "good", "label": "stars", "at_least": 2, "at_most": 3, "label_delay_days": 3},
    BUY,
    SPEND,
    MUCH | {"label_delay_days": 2, "given": "click"},
    PLAYS,
]


class Held:
    """What labels need of `Tables`, without the time that it takes to commit: many random logs are looked at."""

    def __init__(self, shown: Rows, came: Rows) -> None:
        self.rows = {"interactions": shown, "outcomes": came}
        self.folder = Path()

    def write(self, folder: Path) -> None:
        self.folder = folder
        for name, rows in self.rows.items():
            self.path(name).mkdir(parents=True)
            pa.dataset.write_dataset(arrow(name, rows), self.path(name), format="parquet", partitioning=BY_DAY)

    def days(self, name: str) -> list[date]:
        return sorted({row["ds"] for row in self.rows[name]})

    def dataset(self, name: str) -> pa.dataset.Dataset:
        return pa.dataset.dataset(self.path(name), pa.schema(COLUMNS[name]), format="parquet", partitioning=BY_DAY)

    def path(self, name: str) -> Path:
        return self.folder / name


def arrow(name: str, rows: Rows) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema(COLUMNS[name]))


def moment(day: int, hour: float) -> datetime:
    return datetime(START.year, START.month, START.day, tzinfo=UTC) + timedelta(days=day, hours=hour)


def shown(
    ds: int,
    day: int,
    hour: float,
    user: str = "u0",
    item: str = "i0",
    request: str = "r",
    clicked: float | None = 1.0,
    stars: float | None = 2.0,
) -> dict[str, Any]:
    """An impression that came in on `ds` and was on `day`, both counted from the start."""
    parties = {"user": user, "item": item, "request": request}
    return {"ds": START + timedelta(ds), "event_time": moment(day, hour), "clicked": clicked, "stars": stars} | parties


def numbered(rows: Rows, start: int = 0) -> Rows:
    """The rows of a log, in two files by turns."""
    return [row | {"source_file": f"{n % 2}.csv", "source_row": start + n} for n, row in enumerate(rows)]


def came(
    ds: int,
    day: int,
    hour: float,
    name: str = "purchase",
    user: str | None = "u0",
    item: str | None = "i0",
    request: str | None = None,
    price: float | None = 1.0,
) -> dict[str, Any]:
    """An outcome, in the same way."""
    parties = {"user": user, "item": item, "request": request}
    return {"ds": START + timedelta(ds), "event_time": moment(day, hour), "outcome": name, "price": price} | parties


def configured(tiny: Any, tasks: list[dict[str, Any]] | None = None) -> Recommender:
    source = {"interactions": {"path": "../data/log/{ds}.csv"}, "outcomes": SOURCES}
    features = {"categorical": ["user", "item"]}
    config: Recommender = tiny(source=source, tasks=tasks or TASKS, features=features, segments=None, scoring=None)
    return config


def computed(config: Recommender, held: Held, *days: date) -> Labels:
    """The labels of the rows of some days, or of all, by the project's SQL."""
    held.write(Path(config.storage) / uuid.uuid4().hex)
    found = {}
    with sql.connect() as connection:
        for day in days or held.days("interactions"):
            log = arrow("interactions", [row for row in held.rows["interactions"] if row["ds"] == day])
            connection.register("log", log.drop_columns(["ds"]))
            query = labels.with_labels(connection, config, held, day, "log")  # type: ignore[arg-type]
            rows = sql.fetch(connection, query).to_pylist()
            found |= {
                row["source_row"]: {task.name: row[f"label_{task.name}"] for task in config.tasks} for row in rows
            }
    return found


def may_be_of(outcome: dict[str, Any], one: dict[str, Any], task: TaskSource) -> bool:
    """Whether an outcome may be of an impression."""
    same = all(outcome[c] == one[c] for c in ("user", "item"))
    if task.outcome == "play":
        same = one["request"] == outcome["request"] and all(outcome[c] in (one[c], None) for c in ("user", "item"))
    ago = outcome["event_time"] - one["event_time"]
    apart = abs(outcome["ds"] - one["ds"]).days
    return same and timedelta() <= ago <= timedelta(hours=task.within_hours) and apart <= task.label_delay_days


def by_hand(held: Held, task: TaskSource) -> dict[int, list[float | None]]:
    """The prices of the outcomes that each impression is credited with, one outcome after the other."""
    found: dict[int, list[float | None]] = {}
    for outcome in held.rows["outcomes"]:
        rivals = [one for one in held.rows["interactions"] if may_be_of(outcome, one, task)]
        if outcome["outcome"] != task.outcome or not rivals:
            continue
        first = min(one["ds"] for one in rivals)
        there = [one for one in rivals if one["ds"] <= max(outcome["ds"], first)]
        # At one moment: the later delivery, of that the first file, of that the later row.
        there.sort(key=lambda one: (one["event_time"], one["ds"], one["source_file"] == "0.csv", one["source_row"]))
        found.setdefault(there[-1]["source_row"], []).append(outcome["price"])
    return found


def expected(config: Recommender, held: Held) -> Labels:
    """The labels of all rows, for the tasks above."""
    newest = max(held.days("interactions"))
    credited = {task.name: by_hand(held, task) for task in config.tasks if task.outcome}
    found: Labels = {}
    for row in held.rows["interactions"]:
        mine = {name: outcomes.get(row["source_row"], []) for name, outcomes in credited.items()}
        stars, clicked = row["stars"], row["clicked"]
        answers = {
            "click": clicked,
            "good": None if stars is None else float(2 <= stars <= 3),
            "buy": float(len(mine["buy"]) > 0),
            "spend": sum(price or 0.0 for price in mine["spend"]),
            "much": float(sum(price or 0.0 for price in mine["much"]) >= 3) if clicked == 1 else None,
            "plays": float(len(mine["plays"])),
        }
        ripe = {task.name: (newest - row["ds"]).days >= task.label_delay_days for task in config.tasks}
        found[row["source_row"]] = {task: value if ripe[task] else None for task, value in answers.items()}
    return found


WHO, WHAT, REQUEST = st.sampled_from(["u0", "u1"]), st.sampled_from(["i0", "i1"]), st.sampled_from(["r0", "r1", "r2"])
NUMBERS = st.sampled_from([None, 0.0, 1.0, 2.0, 4.0])


@st.composite
def moments(draw: st.DrawFn) -> tuple[int, int, float]:
    """A delivery day, the day of the event up to three days before it, and an hour."""
    ds = draw(st.integers(0, DAYS - 1))
    return ds, ds - draw(st.sampled_from([0, 0, 1, 3])), draw(st.sampled_from([0.0, 1.0, 12.0, 23.0, 23.5]))


SHOWN = st.lists(
    st.builds(
        lambda when, *rest: shown(*when, *rest),
        moments(),
        WHO,
        WHAT,
        REQUEST,
        st.sampled_from([None, 0.0, 1.0]),
        NUMBERS,
    ),
    min_size=1,
    max_size=20,
)
CAME = st.lists(
    st.builds(
        lambda when, *rest: came(*when, *rest),
        moments(),
        st.sampled_from(["purchase", "play"]),
        WHO,
        st.none() | WHAT,
        st.none() | REQUEST,
        NUMBERS,
    ),
    max_size=15,
)


@SMALL
@given(SHOWN, CAME)
def test_labels_equal_crediting_by_hand(tiny: Any, rows: Rows, news: Rows) -> None:
    config, held = configured(tiny), Held(numbered(rows), news)
    assert computed(config, held) == expected(config, held)


@SMALL
@given(SHOWN, CAME, SHOWN, CAME, st.integers(0, DAYS - 1), st.sampled_from([1, 2]))
def test_labels_of_a_day_do_not_see_what_comes_in_after_the_delay(
    tiny: Any, rows: Rows, news: Rows, other_rows: Rows, other_news: Rows, number: int, delay: int
) -> None:
    """Impressions and outcomes of every ds > d + D are other ones; the labels of d stay the same."""
    config = configured(tiny, [task | {"label_delay_days": delay} for task in (BUY, SPEND, PLAYS)])
    day, settled = START + timedelta(number), START + timedelta(number + delay)
    # Some day is past the delay in both, or the labels of one would not be ripe.
    last = numbered([shown(number + delay + 1, number, 1.0, "nobody")], start=-1)
    before = numbered([shown(number, number, 12.0), *rows])
    instead = [row for row in numbered(other_rows, start=len(before)) if row["ds"] > settled]
    changed = [row for row in before if row["ds"] <= settled] + instead
    otherwise = [one for one in news if one["ds"] <= settled] + [one for one in other_news if one["ds"] > settled]
    found = computed(config, Held(before + last, news), day)
    assert found == computed(config, Held(changed + last, otherwise), day)
    assert all(label is not None for row in found.values() for label in row.values())


@SMALL
@given(SHOWN, CAME)
def test_no_outcome_counts_twice(tiny: Any, rows: Rows, news: Rows) -> None:
    config = configured(tiny, [BUY | {"kind": "regression"}])
    found = computed(config, Held(numbered(rows), [one | {"outcome": "purchase"} for one in news]))
    assert sum(row["buy"] or 0 for row in found.values()) <= len(news)


@settings(SMALL, max_examples=4 * SMALL.max_examples)
@given(SHOWN, CAME, SHOWN, CAME, st.permutations(range(DAYS)), st.integers(0, DAYS - 1))
def test_days_may_come_in_any_order_and_again(
    tiny: Any, rows: Rows, news: Rows, old_rows: Rows, old_news: Rows, order: list[int], number: int
) -> None:
    """Each day prepares what `days_to_prepare` says. One of them was ingested before, with other rows."""
    config, restated, rows = configured(tiny), START + timedelta(number), numbered(rows)
    # A day that is ingested has rows: one that loses all of them would be as if it had never come.
    assume(any(row["ds"] == restated for row in rows))
    held = Held(*([row for row in old if row["ds"] == restated] for old in (numbered(old_rows), old_news)))
    kept = expected(config, held) if held.rows["interactions"] else {}
    for ds in (START + timedelta(n) for n in order):
        for name, table in (("interactions", rows), ("outcomes", news)):
            held.rows[name] = [r for r in held.rows[name] if r["ds"] != ds] + [r for r in table if r["ds"] == ds]
        if held.rows["interactions"]:
            days, now = labels.days_to_prepare(config, held, ds), expected(config, held)  # type: ignore[arg-type]
            kept |= {
                row["source_row"]: now[row["source_row"]] for row in held.rows["interactions"] if row["ds"] in days
            }
    final = expected(config, Held(rows, news))
    assert {number: kept[number] for number in final} == final


def bought(tiny: Any, rows: Rows, news: Rows, **task: Any) -> list[float | None]:
    """How many purchases each impression is credited with; a later day makes all of them ripe."""
    config, last = configured(tiny, [BUY | {"kind": "regression"} | task]), [shown(DAYS + 2, 6, 0.0, "nobody")]
    held = Held(rows + numbered(last, start=len(rows)), news)
    found = computed(config, held)
    return [found[number]["buy"] for number in range(len(rows))]


@pytest.mark.parametrize(
    ("rows", "news", "credits"),
    [
        pytest.param([(0, 0, 1), (0, 0, 2)], (0, 0, 3), [0, 1], id="the last one before it"),
        pytest.param([(0, 0, 1), (0, 0, 4)], (0, 0, 3), [1, 0], id="not one after it"),
        pytest.param([(0, 0, 3)], (0, 0, 3), [1], id="at the same moment"),
        pytest.param([(0, 0, 3)], (1, 1, 3), [1], id="at the window's end"),
        pytest.param([(0, 0, 2.9)], (1, 1, 3), [0], id="after the window"),
        pytest.param([(0, 0, 23), (1, 1, 1)], (1, 1, 2), [0, 1], id="the next day's takes it"),
        pytest.param([(0, 0, 23), (1, 1, 1, "u0", "i1")], (1, 1, 2), [1, 0], id="of the item"),
        pytest.param([(0, 0, 23), (1, 1, 1, "u1", "i0")], (1, 1, 2), [1, 0], id="of the user"),
        pytest.param([(0, 0, 23)], (2, 1, 1), [0], id="it came in after the delay"),
        pytest.param([(1, 0, 23)], (0, 0, 23.5), [1], id="the impression came in late"),
        pytest.param([(0, 0, 22), (1, 0, 23)], (0, 0, 23.5), [1, 0], id="and finds it taken"),
        pytest.param([(0, 0, 22), (1, 0, 23)], (1, 0, 23.5), [0, 1], id="or does not, by then"),
        pytest.param([(0, 0, 22), (2, 0, 23)], (1, 0, 23.5), [1, 0], id="taken by one from before the outcome came in"),
        pytest.param([(1, 0, 22), (2, 0, 23)], (1, 0, 23.5), [1, 0], id="too late to take it"),
        pytest.param([(0, 0, 1), (0, 0, 1), (0, 0, 1)], (0, 0, 3), [0, 0, 1], id="the last row of a tie"),
    ],
)
def test_who_gets_the_credit(tiny: Any, rows: list[Any], news: tuple[Any, ...], credits: list[float]) -> None:
    log = [row | {"source_file": "log.csv"} for row in numbered([shown(*row) for row in rows])]
    assert bought(tiny, log, [came(*news)]) == credits


@pytest.mark.parametrize(
    ("request_id", "user", "item", "credits"),
    [
        ("r", "u0", "i1", [0, 1, 0]),
        ("r", None, "i0", [1, 0, 0]),
        ("r", None, None, [0, 1, 0]),
        ("s", "u0", "i0", [0, 0, 1]),
        ("s", "u1", "i0", [0, 0, 0]),
        (None, "u0", "i0", [0, 0, 0]),
    ],
)
def test_a_request_decides_and_user_and_item_tell_its_rows_apart(
    tiny: Any, request_id: str | None, user: str | None, item: str | None, credits: list[float]
) -> None:
    rows = numbered([shown(0, 0, 1), shown(0, 0, 2, "u0", "i1"), shown(0, 0, 2.5, "u0", "i0", "s")])
    assert bought(tiny, rows, [came(0, 0, 3, "play", user, item, request_id)], outcome="play") == credits


def test_what_is_not_ripe_is_null_for_all(tiny: Any) -> None:
    """Also for a task that is given one which waits; a column of the log waits like an outcome."""
    click = {"name": "click", "label": "clicked", "label_delay_days": 2}
    config = configured(tiny, [click, {"name": "good", "label": "stars", "at_least": 1, "given": "click"}])
    found = computed(config, Held(numbered([shown(day, day, 1) for day in range(3)]), []))
    assert found == {0: {"click": 1.0, "good": 1.0}} | {row: {"click": None, "good": None} for row in (1, 2)}
    assert [labels.delay_days(config, task) for task in config.tasks] == [2, 2]
    assert [labels.all_ripe(config, START, START + timedelta(n)) for n in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("days", "ds", "prepared"),
    [
        pytest.param([0, 1, 2, 3], 3, [1, 2, 3], id="each delay has a day that gets ripe"),
        pytest.param([0], 0, [0], id="the first day"),
        pytest.param([0, 5], 5, [0, 5], id="after a gap"),
        pytest.param([0, 1, 2, 3, 4, 5], 2, [0, 1, 2, 3, 4], id="a day of before"),
    ],
)
def test_the_days_that_a_day_prepares(tiny: Any, days: list[int], ds: int, prepared: list[int]) -> None:
    tasks = [{"name": "click", "label": "clicked"}, BUY, {"name": "good", "label": "stars", "label_delay_days": 2}]
    held = Held([shown(day, day, 1) for day in days], [])
    found = labels.days_to_prepare(configured(tiny, tasks), held, START + timedelta(ds))  # type: ignore[arg-type]
    assert [(day - START).days for day in found] == prepared


def test_sums_do_not_depend_on_the_order_of_outcomes(tiny: Any) -> None:
    news = [came(0, 0, 2, price=price) for price in [0.1, 1e16, 0.3, -1e16, 0.7, 1e-9] * 50]
    config, rows = configured(tiny, [SPEND]), numbered([shown(0, 0, 1), shown(1, 1, 1)])
    found = [computed(config, Held(rows, random.Random(n).sample(news, len(news))), START) for n in range(5)]
    assert found == found[:1] * 5


def test_real_tables(tiny: Any) -> None:
    """The same through Delta tables; what they lack is told."""
    config, tables = configured(tiny), Tables(tiny().storage)
    held = Held(numbered([shown(0, 0, 1), shown(3, 3, 1)]), [came(0, 0, 2), came(1, 1, 0.5, price=4.0)])
    for name, rows in held.rows.items():
        for ds in held.days(name):
            day = arrow(name, [row for row in rows if row["ds"] == ds]).drop_columns(["ds"])
            tables.replace_day(name, ds, day)  # type: ignore[arg-type]
    log = tables.read_day("interactions", START).drop_columns(["ds"])
    with sql.connect(log=log) as connection:
        found = sql.fetch(connection, labels.with_labels(connection, config, tables, START, "log"))
        assert found.select(["label_buy", "label_spend", "label_much"]).to_pylist() == [
            {"label_buy": 1.0, "label_spend": 5.0, "label_much": 1.0}
        ]
        other = configured(tiny, [SPEND | {"value": "margin"}])
        with pytest.raises(UserError, match=r"outcomes: has no column margin, which the YAML names; ingest again"):
            labels.with_labels(connection, other, tables, START, "log")
