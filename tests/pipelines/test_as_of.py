"""What an event may know of users and items, and where the tables lie: nothing of either leaks into examples."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pandas as pd
import pytest

from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.tables import Tables, snapshots

RowsOf = Callable[..., pd.DataFrame]
DAILY = {
    "interactions": {"path": "../data/log/{ds}.csv"},
    "users": {"path": "../data/users/{ds}.csv"},
    "items": {"path": "../data/items.csv"},
}


def test_an_event_knows_its_user_as_of_the_end_of_the_day_before(tiny: Any, rows_of: RowsOf) -> None:
    """As scoring does. On the first day there is only its own."""
    for number in range(3):
        tiny.write(
            f"users/{tiny.day(number)}.csv", "user,band\n" + "".join(f"u{n},of day {number}\n" for n in range(5))
        )
    config = tiny(source=DAILY)
    for number in range(3):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    bands = [set(rows_of(config, "examples", tiny.day(number))["band"]) for number in range(3)]
    assert bands == [{"of day 0"}, {"of day 0"}, {"of day 1"}]
    assert set(snapshots.read(Tables(config.storage), "users", tiny.day(2)).column("band").to_pylist()) == {"of day 2"}


def test_a_folder_above_the_tables_may_look_like_a_partition(tiny: Any, rows_of: RowsOf) -> None:
    config = tiny(storage="../var/user=u9/env=prod/tiny")
    for number in range(2):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    examples = rows_of(config, "examples", tiny.day(1))
    assert len(examples) == 30
    assert set(examples["user"]) <= {f"u{n}" for n in range(5)}
    assert "env" not in examples


@pytest.mark.parametrize(
    ("zone", "day"), [("Atlantic/Azores", date(2026, 10, 25)), ("America/Havana", date(2026, 11, 1))]
)
def test_a_day_whose_midnight_comes_twice(tiny: Any, zone: str, day: date) -> None:
    """The hour after the first midnight belongs to the day, and not to the one before."""
    before = pd.Timestamp(day) - pd.Timedelta(days=1)
    times = {f"{before.date()} 23:30:00": before.date(), f"{day} 00:30:00": day, f"{day} 12:00:00": day}
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at", "unit": "iso"}, "timezone": zone}
    for ds in (before.date(), day):
        lines = [f"u{n},i0,{at},home,1,0" for n, at in enumerate(times)]
        tiny.write(f"log/{ds}.csv", "user,item,at,tab,clicked,liked\n" + "\n".join(lines) + "\n")
        config = tiny(columns=columns | {"late": "reject"})
        assert ingest(config, ds)["accepted"] == sum(of == ds for of in times.values())


def test_outcomes_of_a_day_on_which_nothing_was_shown(tiny: Any, rows_of: RowsOf) -> None:
    """They come with the next day of the log."""
    for number in (1, 3, 4, 5):
        (tiny.folder / "data" / "log" / f"{tiny.day(number)}.csv").unlink()
    bought = [f"u{n},i{n},{tiny.at(number)}" for n, number in enumerate((0, 1, 2))]
    tiny.write("bought.csv", "user,item,at\n" + "\n".join(bought) + "\n")
    source = DAILY | {"users": {"path": "../data/users.csv"}}
    source |= {"outcomes": [{"name": "bought", "path": "../data/bought.csv", "timestamp": {"name": "at"}}]}
    tasks = [{"name": "click", "label": "clicked"}, {"name": "buy", "outcome": "bought", "label_delay_days": 2}]
    config = tiny(source=source, tasks=tasks)
    results = {number: ingest(config, tiny.day(number)) for number in (0, 2)}
    assert [results[number]["sources"]["outcomes.bought"]["accepted"] for number in (0, 2)] == [1, 2]
    assert list(rows_of(config, "outcomes", tiny.day(2))["user"]) == ["u1", "u2"]
