"""One day of examples: labels, values as the model reads them, and the same rows however often it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.tables import Tables
from recsys_moe.errors import UserError

RowsOf = Callable[..., pd.DataFrame]
HEADER = "user,item,at,tab,clicked,liked"
NO_HISTORY = {"categorical": ["user", "item", "tab"]}


def examples(tiny: Any, rows_of: RowsOf, number: int = 0, **changes: Any) -> pd.DataFrame:
    """The examples of a day, sorted by time."""
    config = tiny(**changes)
    ingest(config, tiny.day(number))
    prepare(config, tiny.day(number))
    return rows_of(config, "examples", tiny.day(number))


def test_an_example_has_what_the_model_reads(tiny: Any, rows_of: RowsOf) -> None:
    tiny.log(0, [f"u1,i2,{tiny.at(0, 3600 * 20)},home,1,0", f"u9,i9,{tiny.at(0, 3600 * 21)},,0,1"])
    known, unknown = (row for _, row in examples(tiny, rows_of).iterrows())
    assert (known["user"], known["item"], known["tab"], known["band"]) == ("u1", "i2", "home", "old")
    assert (known["price"], known["age"], list(known["tags"])) == (2.5, 29.0, ["sport", "t2"])
    assert (known["hour"], known["weekday"]) == ("20", "4")
    assert (known["label_click"], known["label_like"]) == (1.0, 0.0)
    assert (unknown["user"], unknown["item"], unknown["label_click"]) == ("u9", "i9", 0.0)
    nothing = ["tab", "band", "price", "age", "tags", "label_like"]
    assert unknown[nothing].isna().all()
    assert {"clicked", "liked", "source_row", "source_file"}.isdisjoint(known.index)


def test_there_is_one_example_for_each_accepted_row(tiny: Any, rows_of: RowsOf) -> None:
    frame = examples(tiny, rows_of)
    assert len(frame) == len(tiny.rows(0))
    assert frame["event_time"].is_monotonic_increasing


def test_a_day_twice_is_the_same_day(tiny: Any) -> None:
    """Also after later days came in: an old day can be made again."""
    config = tiny()
    for number in range(3):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    tables = Tables(config.storage)
    before = tables.read_day("examples", tiny.day(1)), tables.fingerprint("examples", [tiny.day(1)])
    prepare(config, tiny.day(1))
    assert tables.read_day("examples", tiny.day(1)).equals(before[0])
    assert tables.fingerprint("examples", [tiny.day(1)]) == before[1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [({"at_least": 4}, [0, 0, 1, 1]), ({"at_most": 2}, [1, 0, 0, 0]), ({"at_least": 2.5, "at_most": 4}, [0, 1, 1, 0])],
)
def test_a_label_may_be_a_rule(tiny: Any, rows_of: RowsOf, rule: dict[str, float], expected: list[float]) -> None:
    stars = [2, 3, 4, 5, ""]
    tiny.log(0, [f"u0,i0,{tiny.at(0, n)},home,{star},0" for n, star in enumerate(stars)])
    tasks = [{"name": "good", "label": "clicked", **rule}, {"name": "stars", "label": "clicked", "kind": "regression"}]
    frame = examples(tiny, rows_of, tasks=tasks, features=NO_HISTORY)
    np.testing.assert_array_equal(frame["label_good"], [*expected, np.nan])
    np.testing.assert_array_equal(frame["label_stars"], [2, 3, 4, 5, np.nan])


def test_a_given_label_is_defined_where_its_condition_holds(tiny: Any, rows_of: RowsOf) -> None:
    """A chain: like given click, share given like."""
    lines = ["1,1,1", "1,0,1", "0,1,1", ",1,1", "1,,1"]
    tiny.log(0, [f"u0,i0,{tiny.at(0, n)},home,{line}" for n, line in enumerate(lines)], header=f"{HEADER},shared")
    tasks = [
        {"name": "click", "label": "clicked"},
        {"name": "like", "label": "liked", "given": "click"},
        {"name": "share", "label": "shared", "given": "like"},
    ]
    frame = examples(tiny, rows_of, tasks=tasks, features=NO_HISTORY)
    nan = np.nan
    np.testing.assert_array_equal(frame["label_click"], [1, 1, 0, nan, 1])
    np.testing.assert_array_equal(frame["label_like"], [1, 0, nan, nan, nan])
    np.testing.assert_array_equal(frame["label_share"], [1, nan, nan, nan, nan])


def test_a_row_weighs_what_its_column_says_and_else_1(tiny: Any, rows_of: RowsOf) -> None:
    lines = [f"u0,i0,{tiny.at(0, n)},home,1,0,{weight}" for n, weight in enumerate(["2.5", "", "0"])]
    tiny.log(0, lines, header=f"{HEADER},importance")
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at"}, "weight": "importance"}
    frame = examples(tiny, rows_of, columns=columns, features=NO_HISTORY)
    assert list(frame["row_weight"]) == [2.5, 1.0, 0.0]


def test_a_day_is_made_again_once_its_labels_are_known(tiny: Any, rows_of: RowsOf) -> None:
    """And history sees them from the day after that."""
    tasks = [{"name": "click", "label": "clicked"}, {"name": "like", "label": "liked", "label_delay_days": 2}]
    for number in range(3):
        tiny.log(number, [f"u0,i0,{tiny.at(number)},home,1,1"])
    config = tiny(tasks=tasks)
    for number in range(2):
        ingest(config, tiny.day(number))
        assert prepare(config, tiny.day(number))["prepared_again"] == []
    assert rows_of(config, "examples", tiny.day(0))["label_like"].isna().all()
    ingest(config, tiny.day(2))
    assert prepare(config, tiny.day(2))["prepared_again"] == ["2026-01-01"]
    assert list(rows_of(config, "examples", tiny.day(0))["label_like"]) == [1.0]
    assert rows_of(config, "examples", tiny.day(2))["user_3d_like_rate"].isna().all()


def test_made_negatives_are_examples_but_not_history(tiny: Any, rows_of: RowsOf) -> None:
    sampling = {"make_negatives": {"per_positive": 2}}
    tiny.log(0, [f"u{n},i{n},{tiny.at(0, n)},home,1,0" for n in range(4)])
    config = tiny(sampling=sampling)
    ingest(config, tiny.day(0))
    prepare(config, tiny.day(0))
    frame = rows_of(config, "examples", tiny.day(0))
    made = frame[frame["label_click"] == 0]
    assert len(frame) - len(made) == 4
    assert 0 < len(made) <= 8
    assert made["price"].notna().all()
    counts = rows_of(config, "daily_counts", tiny.day(0))
    assert counts.loc[counts["key"] == "", "rows"].tolist() == [4]


def test_hours_are_those_of_the_time_zone_unless_the_log_has_its_own(tiny: Any, rows_of: RowsOf) -> None:
    columns = {"user": "user", "item": "item", "timestamp": {"name": "at"}, "timezone": "Asia/Tokyo"}
    tiny.log(0, [f"u0,i0,{tiny.at(0)},home,1,0"])
    features = {"categorical": ["user", "tab", "hour"]}
    assert list(examples(tiny, rows_of, columns=columns, features=features)["hour"]) == ["9"]
    tiny.log(0, [f"u0,i0,{tiny.at(0)},home,1,0,noon"], header=f"{HEADER},hour")
    assert list(examples(tiny, rows_of, columns=columns, features=features)["hour"]) == ["noon"]


def test_an_hour_in_capitals_is_the_logs_own(tiny: Any, rows_of: RowsOf) -> None:
    """SQL and Delta take `Hour` and `hour` for one name."""
    tiny.log(0, [f"u0,i0,{tiny.at(0)},home,1,0,noon"], header=f"{HEADER},Hour")
    frame = examples(tiny, rows_of, features={"categorical": ["user", "tab", "Hour"]})
    assert list(frame["Hour"]) == ["noon"]
    assert "hour" not in frame


def test_a_feature_that_changes_its_kind_is_told_to_start_anew(tiny: Any, rows_of: RowsOf) -> None:
    examples(tiny, rows_of)
    features = {"categorical": ["user", "tab", "price"]}
    with pytest.raises(UserError, match=r"examples: column 'price' holds numbers and would now get text"):
        examples(tiny, rows_of, features=features)


def test_values_of_a_list_are_trimmed_and_dates_have_several_forms(tiny: Any, rows_of: RowsOf) -> None:
    tiny.write("items.csv", "item,price,tags,born\ni0,1,a | b c,2025-12-31 23:59:59\ni1,1,,not a date\n")
    tiny.log(0, [f"u0,i0,{tiny.at(0)},home,1,0", f"u0,i1,{tiny.at(0, 1)},home,1,0"])
    frame = examples(tiny, rows_of)
    assert list(frame["tags"][0]) == ["a", "b c"]
    assert frame["tags"][1] is None
    np.testing.assert_array_equal(frame["age"], [1, np.nan])


def test_a_column_may_be_a_number_and_a_key_of_history(tiny: Any, rows_of: RowsOf) -> None:
    features = {"numeric": ["price"], "multivalued": ["tags"], "history": {"keys": ["price", "tags"], "days": [1]}}
    config = tiny(features=features, segments=None, scoring=None)
    for number in range(2):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    frame = rows_of(config, "examples", tiny.day(1))
    assert frame["price"].dtype == float
    np.testing.assert_array_equal(frame["price_1d_rows"], frame["tags_1d_rows"])
    assert frame["price_1d_rows"].sum() > 0


def test_the_first_day_has_no_history(tiny: Any, rows_of: RowsOf) -> None:
    frame = examples(tiny, rows_of)
    assert (frame["user_1d_rows"] == 0).all()
    assert frame["user_1d_click_rate"].isna().all()


def test_a_day_whose_users_are_not_there_has_no_users_columns(tiny: Any, rows_of: RowsOf) -> None:
    """A day of a table that other days have filled."""
    examples(tiny, rows_of)
    source = {"interactions": {"path": "../data/log/{ds}.csv"}}
    frame = examples(tiny, rows_of, 1, source=source, features=NO_HISTORY)
    assert "band" not in frame or frame["band"].isna().all()


def test_a_key_of_user_and_item_is_refused_before_there_is_a_training(tiny: Any) -> None:
    config = tiny(features={"categorical": ["user", "tab"], "history": {"keys": [["band", "price"]], "days": [1]}})
    ingest(config, tiny.day(0))
    with pytest.raises(UserError, match=r"features\.history"):
        prepare(config, tiny.day(0))


@pytest.mark.parametrize("lines", [None, ["u0,i0,never,home,1,0"]], ids=["not ingested", "all rejected"])
def test_a_day_without_rows_is_named(tiny: Any, lines: list[str] | None) -> None:
    config = tiny()
    if lines:
        tiny.log(0, lines)
        ingest(config, tiny.day(0))
    with pytest.raises(UserError, match=r"2026-01-01: has no rows; run `recsys-moe ingest --as-of 2026-01-01` first"):
        prepare(config, tiny.day(0))


OURS = [
    "reason",
    "copy",
    "raw",
    "key",
    "value",
    "rows",
    "moment",
    "key0",
    "asked",
    "past",
    "typed",
    "events",
    "measure",
]
WEIRD = ["select", 'quo"te', "it's", "two words", "a.b", "1st", "{x}", "%s", "a", "k0", "r", "c", "log", "part"]


def test_columns_of_any_name_pass_through_history(tiny: Any, rows_of: RowsOf) -> None:
    names = [*OURS, *WEIRD]
    value = 'it\'s "so"; DROP TABLE log; --'
    for number in range(2):
        frame = pd.DataFrame({"user": ["u0"], "item": ["i0"], "at": [tiny.at(number)], "clicked": [1], "n": [2.5]})
        frame = pd.concat([frame, pd.DataFrame({name: [value] for name in names})], axis=1)
        tiny.write(f"log/{tiny.day(number)}.csv", frame.to_csv(index=False))
    keys = [*names, *([one, other] for one, other in itertools.pairwise(names))]
    config = tiny(
        source={"interactions": {"path": "../data/log/{ds}.csv"}},
        features={"categorical": names, "history": {"keys": keys, "days": [1]}, "numeric": ["n"]},
        tasks=[{"name": "click", "label": "clicked"}],
        segments=None,
        scoring=None,
    )
    for number in range(2):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    row = rows_of(config, "examples", tiny.day(1)).iloc[0]
    assert {name: row[name] for name in names} == dict.fromkeys(names, value)
    counts = [f"{name}_1d_rows" for name in [*names, *map("_x_".join, itertools.pairwise(names))]]
    assert {name: row[name] for name in counts} == dict.fromkeys(counts, 1.0)
