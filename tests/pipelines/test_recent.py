"""Lists of what a key was last seen with: their order, their length, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from pipelines.ingest import ingest
from pipelines.prepare import prepare

RowsOf = Callable[..., pd.DataFrame]


def lists(tiny: Any, rows_of: RowsOf, log: list[list[str]], **recent: Any) -> list[list[str] | None]:
    """The feature of the last day's rows, where each row is `user,item,second,clicked`."""
    for number, rows in enumerate(log):
        cells = [row.split(",") for row in rows]
        tiny.log(number, [f"{u},{i},{tiny.at(number, int(second))},home,{click},0" for u, i, second, click in cells])
    history = {"keys": ["user"], "days": [1], "recent": [{"key": "user", "of": "item", **recent}]}
    config = tiny(features={"categorical": ["user", "item", "tab"], "history": history})
    for number in range(len(log)):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    (name,) = [one.feature for one in config.features.history.recent]
    found = rows_of(config, "examples", tiny.day(len(log) - 1))[name]
    return [None if one is None else list(one) for one in found]


def test_the_newest_come_first_and_repeat_and_ties_go_by_value(tiny: Any, rows_of: RowsOf) -> None:
    log = [["u0,i1,0,1", "u0,i4,5,1", "u0,i3,5,0", "u1,i0,6,1"], ["u0,i1,0,1"], ["u0,i2,0,1", "u9,i2,1,1"]]
    assert lists(tiny, rows_of, log, last=3) == [["i1", "i3", "i4"], None]


def test_a_task_and_a_window_leave_rows_out(tiny: Any, rows_of: RowsOf) -> None:
    log = [["u0,i0,0,1"], ["u0,i1,0,0", "u0,i2,1,1", "u0,i3,2,"], ["u0,i4,0,1"]]
    assert lists(tiny, rows_of, log, last=5, days=1, task="click") == [["i2"]]


def test_times_in_a_zone_of_the_recommenders_own_are_kept(tiny: Any, rows_of: RowsOf) -> None:
    tiny.log(0, [f"u0,i{number},{tiny.at(0, second)},home,1,0" for number, second in ((1, 3), (2, 9), (3, 6))])
    tiny.log(1, [f"u0,i0,{tiny.at(1, 0)},home,1,0"])
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at", "unit": "s"}, "timezone": "Asia/Shanghai"}
    recent = {"key": "user", "of": "item", "last": 2}
    features = {"categorical": ["user", "hour"], "history": {"keys": ["user"], "days": [1], "recent": [recent]}}
    config = tiny(columns=columns, features=features)
    for number in range(2):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    (row,) = rows_of(config, "examples", tiny.day(1)).to_dict("records")
    assert list(row["user_last_2_item"]) == ["i2", "i3"]
    assert row["hour"] == "8"
