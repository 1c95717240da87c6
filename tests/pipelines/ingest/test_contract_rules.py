"""The contract's rules for columns, and the limits past which a day is not published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.tables import Tables
from recsys_moe.errors import UserError

RowsOf = Callable[..., pd.DataFrame]
HEADER = "user,item,at,tab,clicked,liked,extra"


def with_rule(tiny: Any, values: list[str], **rule: Any) -> Recommender:
    """A recommender whose log has a column `extra` with these values, and a rule for it."""
    lines = [f"u{n},i0,{tiny.at(0, n)},home,1,0,{value}" for n, value in enumerate(values)]
    tiny.log(0, lines, header=HEADER)
    config: Recommender = tiny(contract={"columns": {"extra": rule}, "max_rejected": 1.0})
    return config


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"nullable": False}, ["x"], {"": "extra is null", "NULL": "extra is null"}),
        ({"type": "number"}, ["1.5", "-2e3", ""], {"x": "extra is no number: x", "nan1": "extra is no number: nan1"}),
        (
            {"type": "integer"},
            ["7", "-7", "7.0", ""],
            {"7.5": "extra is no whole number: 7.5", "x": "extra is no number: x"},
        ),
        ({"type": "boolean"}, ["0", "1", "true", "False", ""], {"2": "extra is no boolean: 2"}),
        (
            {"type": "number", "min": 0, "max": 10},
            ["0", "10", ""],
            {"-1": "extra is below 0: -1", "11": "extra is above 10: 11"},
        ),
        ({"allowed": ["DE", "FR"]}, ["DE", ""], {"de": "extra is none of the allowed values: de"}),
        ({}, ["anything", ""], {}),
    ],
)
def test_each_rule(tiny: Any, rows_of: RowsOf, rule: dict[str, Any], good: list[str], bad: dict[str, str]) -> None:
    config = with_rule(tiny, [*good, *bad], **rule)
    result = ingest(config, tiny.day(0))
    assert (result["accepted"], result["rejected"]) == (len(good), len(bad))
    assert list(rows_of(config, "rejected", tiny.day(0))["reason"]) == list(bad.values())


def test_a_rule_for_a_column_of_items(tiny: Any, rows_of: RowsOf) -> None:
    config = tiny(contract={"columns": {"price": {"type": "number", "max": 3}}, "max_rejected": 0.5})
    ingest(config, tiny.day(0))
    rejected = rows_of(config, "rejected", tiny.day(0))
    assert set(rejected["source"]) == {"items"}
    assert list(rejected["reason"]) == ["price is above 3: 3.5", "price is above 3: 4.5"]


def test_too_many_rejected_rows_publish_nothing(tiny: Any) -> None:
    config = with_rule(tiny, ["1", "x", "y", "2"], type="number")
    config = config.model_copy(update={"contract": config.contract.model_copy(update={"max_rejected": 0.4})})
    with pytest.raises(
        UserError, match=r"2026-01-01\.csv: 2 of 4 rows .*'extra is no number' \(2 rows, the first in"
    ) as caught:
        ingest(config, tiny.day(0))
    assert "\n" not in str(caught.value)
    assert Tables(config.storage).days("interactions") == []
    assert Tables(config.storage).days("rejected") == []


def test_too_many_rejected_users_publish_nothing(tiny: Any) -> None:
    tiny.write("users.csv", "user,band\n,old\n,old\nu1,old\n")
    config = tiny(contract={"max_rejected": 0.5})
    with pytest.raises(UserError, match=r"users\.csv: 2 of 3 rows .*'user is null'"):
        ingest(config, tiny.day(0))
    assert Tables(config.storage).days("interactions") == []


def test_a_volume_far_off_the_days_before(tiny: Any) -> None:
    config = tiny()
    for number in range(3):
        ingest(config, tiny.day(number))
    tiny.log(3, tiny.rows(3)[:5])
    tiny.log(4, tiny.rows(4, 200))
    for number, rows in ((3, 5), (4, 200)):
        with pytest.raises(UserError, match=rf"{tiny.day(number)} has {rows} rows, the 3 days before it had 30"):
            ingest(config, tiny.day(number))
    assert ingest(config, tiny.day(3), despite_limits=True)["accepted"] == 5
    assert Tables(config.storage).days("interactions") == [tiny.day(n) for n in range(4)]


def test_two_days_before_are_too_few_to_judge_by(tiny: Any) -> None:
    config = tiny()
    ingest(config, tiny.day(0))
    ingest(config, tiny.day(1))
    tiny.log(2, tiny.rows(2)[:1])
    assert ingest(config, tiny.day(2))["accepted"] == 1


@pytest.mark.parametrize(("minutes", "accepted"), [(0, [0, 86_399]), (10, [-600, -1, 0, 86_399, 86_400, 86_999])])
def test_a_tolerance_at_both_ends_of_the_day(tiny: Any, minutes: int, accepted: list[int]) -> None:
    seconds = [-601, -600, -1, 0, 86_399, 86_400, 86_999, 87_000]
    tiny.log(1, [f"u{n},i0,{tiny.at(1) + second},home,1,0" for n, second in enumerate(seconds)])
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at"}, "late": "reject"}
    config = tiny(columns=columns | {"tolerance_minutes": minutes}, contract={"max_rejected": 1})
    ingest(config, tiny.day(1))
    times = Tables(config.storage).read_day("interactions", tiny.day(1)).column("event_time").to_pylist()
    assert [int(time.timestamp()) - tiny.at(1) for time in times] == accepted


def test_a_weight_is_a_number_of_0_or_more(tiny: Any, rows_of: RowsOf) -> None:
    weights = ["1", "0", "", "-1", "x"]
    lines = [f"u{n},i0,{tiny.at(0, n)},home,1,0,{weight}" for n, weight in enumerate(weights)]
    tiny.log(0, lines, header=HEADER)
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at"}, "weight": "extra"}
    config = tiny(columns=columns, contract={"max_rejected": 1})
    assert ingest(config, tiny.day(0))["accepted"] == 3
    reasons = list(rows_of(config, "rejected", tiny.day(0))["reason"])
    assert reasons == ["extra is no weight of 0 or more: -1", "extra is no weight of 0 or more: x"]


def test_the_counts_of_a_day_are_kept(tiny: Any, rows_of: RowsOf) -> None:
    config = tiny()
    result = ingest(config, tiny.day(0))
    kept = rows_of(config, "ingested", tiny.day(0)).iloc[0]
    names = ("read", "accepted", "rejected", "duplicates", "late")
    assert {name: kept[name] for name in names} == {name: result[name] for name in names}
    assert kept["bytes"] == (tiny.folder / "data" / "log" / "2026-01-01.csv").stat().st_size
    assert kept["files"] == 1
