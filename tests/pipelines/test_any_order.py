"""Days that come in any order, late, twice or several at once leave the tables that they leave in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines import config as recommenders
from pipelines import history
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.ingest import ingest
from pipelines.made_of import out_of_date
from pipelines.prepare import catch_up, prepare
from pipelines.tables import TableName, Tables

Rows = Callable[[Recommender, TableName, date], pd.DataFrame]
Act = tuple[Callable[[Recommender, date], Any], int]

SOURCE = {
    "interactions": {"path": "../data/log/{ds}.csv"},
    "users": {"path": "../data/users.csv"},
    "items": {"path": "../data/items/{ds}.csv"},
    "outcomes": [{"name": "purchase", "path": "../data/purchases/{ds}.csv", "timestamp": {"name": "at", "unit": "s"}}],
}
TASKS = [
    {"name": "click", "label": "clicked"},
    {"name": "like", "label": "liked", "given": "click", "label_delay_days": 1},
    {"name": "buy", "outcome": "purchase", "label_delay_days": 2, "within_hours": 40},
]
FEATURES = {
    "categorical": ["user", "item", "tab", "band"],
    "numeric": ["price"],
    "history": {
        "keys": ["user", "item", ["user", "band"]],
        "days": [1, 3],
        "recent": [{"key": "user", "of": "item", "last": 3, "days": 2}],
    },
}
NEGATIVES = {"make_negatives": {"per_positive": 1, "days": 2}}
COMPARED: tuple[TableName, ...] = (
    "interactions",
    "outcomes",
    "rejected",
    "users",
    "items",
    "daily_counts",
    "daily_recent",
    "examples",
)


def world(tiny: Any, days: int, sampling: dict[str, Any] | None = None, **more: Any) -> Recommender:
    """Late rows, purchases of the days before, and items whose prices change every day."""
    for number in range(days):
        draw, day = random.Random(number), tiny.day(number)
        tiny.write(f"items/{day}.csv", "item,price\n" + "".join(f"i{n},{draw.randrange(9)}\n" for n in range(4)))
        moments = [tiny.at(max(0, number - draw.choice([0, 0, 0, 1, 2])), draw.randrange(60_000)) for _ in range(12)]
        tiny.log(number, [f"u{draw.randrange(3)},i{draw.randrange(4)},{at},home,1,{at % 2}" for at in moments])
        bought = [f"u{draw.randrange(3)},i{draw.randrange(4)},{tiny.at(number, draw.randrange(80_000))}" for _ in "abc"]
        tiny.write(f"purchases/{day}.csv", "\n".join(["user,item,at", *bought]) + "\n")
    changes = {"source": SOURCE, "tasks": TASKS, "features": FEATURES, "segments": None, "scoring": None}
    config: Recommender = tiny(**changes, **({"sampling": sampling} if sampling else {}), **more)
    return config


def elsewhere(config: Recommender, tmp_path: Path) -> Recommender:
    return config.model_copy(update={"storage": str(tmp_path / "other")})


def in_order(numbers: Sequence[int]) -> list[Act]:
    return [(step, number) for number in numbers for step in (ingest, prepare)]


def play(config: Recommender, tiny: Any, acts: Sequence[Act]) -> None:
    for step, number in acts:
        step(config, tiny.day(number))


def _alone(config: Recommender, day: date) -> None:
    prepare(config, day, alone=True)


def check_equal(found: Recommender, expected: Recommender, rows_of: Rows, days: Sequence[date]) -> None:
    tables = Tables(expected.storage)
    for name in (name for name in COMPARED if tables.exists(name)):
        assert Tables(found.storage).days(name) == tables.days(name)
        for day in days:
            one, other = (_sorted(rows_of(config, name, day)) for config in (found, expected))
            pd.testing.assert_frame_equal(one, other, obj=f"{name} of {day}")


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.map(lambda value: tuple(value) if hasattr(value, "tolist") else value)
    return rows.sort_values(list(rows.columns)).reset_index(drop=True)


def shuffled(seed: int, days: int) -> list[Act]:
    """Each day is ingested and then prepared, with others in between."""
    draw, left = random.Random(seed), {number: [ingest, prepare] for number in range(days)}
    acts: list[Act] = []
    while left:
        number = draw.choice(sorted(left))
        acts.append((left[number].pop(0), number))
        left = {day: steps for day, steps in left.items() if steps}
    return acts


def test_days_in_another_order_leave_the_same(tiny: Any, rows_of: Rows, tmp_path: Path) -> None:
    config = world(tiny, 3)
    other = elsewhere(config, tmp_path)
    play(config, tiny, in_order(range(3)))
    play(other, tiny, in_order([2, 0, 1]))
    check_equal(other, config, rows_of, [tiny.day(number) for number in range(3)])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(12))
def test_steps_in_any_order_leave_the_same(tiny: Any, rows_of: Rows, tmp_path: Path, seed: int) -> None:
    config = world(tiny, 6, NEGATIVES if seed % 2 else None)
    other = elsewhere(config, tmp_path)
    play(config, tiny, in_order(range(6)))
    if seed % 4 < 2:
        play(other, tiny, shuffled(seed, 6))
    else:
        play(other, tiny, [(_alone if step is prepare else step, number) for step, number in shuffled(seed, 6)])
        catch_up(other)
    check_equal(other, config, rows_of, [tiny.day(number) for number in range(6)])


def test_only_what_looks_back_at_a_late_day_is_prepared_again(tiny: Any) -> None:
    features = {"categorical": ["user", "item"], "history": {"keys": ["user"], "days": [1]}}
    config = tiny(source={"interactions": SOURCE["interactions"]}, features=features, segments=None, scoring=None)
    for number in (0, 2, 4):
        play(config, tiny, in_order([number]))
    late, after = tiny.day(1), [str(tiny.day(2))]
    ingest(config, late)
    assert prepare(config, late)["prepared_again"] == after
    ingest(config, late)  # the same file
    assert prepare(config, late)["prepared_again"] == []
    tiny.log(1, tiny.rows(1)[1:])  # and another
    ingest(config, late)
    assert prepare(config, late)["prepared_again"] == after


def test_made_negatives_look_back_at_their_days_only(tiny: Any) -> None:
    features = {"categorical": ["user", "item"]}
    config = tiny(features=features, sampling=NEGATIVES, segments=None, scoring=None)
    play(config, tiny, in_order([0, 2]))
    ingest(config, tiny.day(1))
    assert prepare(config, tiny.day(1))["prepared_again"] == [str(tiny.day(2))]
    tiny.log(0, tiny.rows(0)[1:])
    ingest(config, tiny.day(0))
    assert prepare(config, tiny.day(0))["prepared_again"] == [str(tiny.day(1))]


def test_a_day_alone_leaves_later_ones_to_the_next_training(tiny: Any) -> None:
    config = tiny()
    days = [tiny.day(number) for number in range(4)]
    play(config, tiny, [*in_order([0, 1, 3]), (ingest, 2)])
    assert prepare(config, days[2], alone=True)["prepared_again"] == []
    assert catch_up(config) == [days[3]]
    assert catch_up(config) == []


def test_days_in_a_row_that_are_restated_are_prepared_once(tiny: Any) -> None:
    config = tiny()
    play(config, tiny, in_order(range(4)))
    for number in range(4):
        tiny.log(number, tiny.rows(number)[1:])
        ingest(config, tiny.day(number))
        assert prepare(config, tiny.day(number), alone=True)["prepared_again"] == []
    assert catch_up(config) == []


def test_users_and_items_that_come_late_are_in_the_examples_of_the_next_day(tiny: Any, rows_of: Rows) -> None:
    config = world(tiny, 2).model_copy(update={"features": tiny(features={"numeric": ["price"]}).features})
    for number, again in ((1, []), (0, [str(tiny.day(1))])):
        ingest(config, tiny.day(number))
        assert prepare(config, tiny.day(number))["prepared_again"] == again
    known = rows_of(config, "items", tiny.day(0)).set_index("item")["price"].astype(float)
    examples = rows_of(config, "examples", tiny.day(1))
    assert list(examples["price"]) == list(known[examples["item"]])


@pytest.mark.parametrize("ripe_on", [2, 4])
def test_labels_that_get_ripe_while_a_day_is_prepared_are_not_lost(
    tiny: Any, rows_of: Rows, monkeypatch: pytest.MonkeyPatch, ripe_on: int
) -> None:
    """Another process prepares the day that makes them known, after this one has read that they are not."""
    config = world(tiny, 5)
    play(config, tiny, in_order([0, 1]))
    counted = history.daily_counts

    def another_process_comes_first(*arguments: Any) -> Any:
        monkeypatch.setattr(history, "daily_counts", counted)
        play(config, tiny, in_order([ripe_on]))
        return counted(*arguments)

    monkeypatch.setattr(history, "daily_counts", another_process_comes_first)
    assert rows_of(config, "examples", tiny.day(0))["label_buy"].isna().all()
    prepare(config, tiny.day(0))
    assert rows_of(config, "examples", tiny.day(0))["label_buy"].notna().all()
    assert rows_of(config, "daily_counts", tiny.day(0))["buy_sum"].sum() > 0


def test_a_step_that_was_killed_before_later_days_were_prepared_again_does_it_when_run_again(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    for number in (0, 2):
        play(config, tiny, in_order([number]))
    ingest(config, tiny.day(1))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.made_of.out_of_date", lambda *_: [])
        prepare(config, tiny.day(1))
    assert out_of_date(config, Tables(config.storage), tiny.day(0)) == [tiny.day(2)]
    assert prepare(config, tiny.day(1))["prepared_again"] == [str(tiny.day(2))]


@pytest.mark.parametrize("name", ["daily_counts", "examples"])
def test_a_day_that_another_process_overwrote_with_older_rows_is_noticed(tiny: Any, name: TableName) -> None:
    """That process was killed before it could see it."""
    config = tiny()
    play(config, tiny, in_order(range(2)))
    tables = Tables(config.storage)
    assert out_of_date(config, tables, tiny.day(0)) == []
    tables.replace_day(name, tiny.day(1), tables.read_day(name, tiny.day(1)).drop_columns(["ds"])[1:])
    assert out_of_date(config, tables, tiny.day(0)) == [tiny.day(1)]


def day_in(path: Path, day: date) -> None:
    """Ingest and prepare a day in a process of its own; what passes by itself is tried again, as Airflow does."""
    config = recommenders.load(path)
    for step in (ingest, prepare):
        for _ in range(5):
            try:
                step(config, day)
            except TryAgainError:
                continue
            break


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_days_four_at_a_time_in_random_order_leave_the_same(tiny: Any, rows_of: Rows) -> None:
    config = world(tiny, 30, NEGATIVES)
    days = [tiny.day(number) for number in range(30)]
    play(config, tiny, in_order(range(30)))
    expected = elsewhere(config, tiny.folder)
    Path(config.storage).rename(expected.storage)
    mixed = random.Random(0).sample(days, len(days))

    with get_context("spawn").Pool(4, maxtasksperchild=1) as pool:
        pool.starmap(day_in, [(tiny.folder / "configs" / "tiny.yaml", day) for day in mixed], chunksize=1)

    check_equal(config, expected, rows_of, days)
    assert out_of_date(config, Tables(config.storage), days[0]) == []
