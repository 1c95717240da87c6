"""Segments by behaviour: how the YAML says it, and from the log to the groups, in training and when scoring."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines import catalog, sql
from pipelines.config import Recommender, feature_columns, segment_columns
from pipelines.entities import Moment, entity_rows
from pipelines.ingest import ingest
from pipelines.prepare import prepare, sides_of
from pipelines.tables import Tables
from recsys_moe.config import BehaviouralSegments
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError


@pytest.mark.parametrize(
    ("written", "windows"), [({"k": 8}, (1, 3)), ({"k": 8, "days": [3]}, (3,)), ({"k": 8, "days": [3, 1]}, (3, 1))]
)
def test_they_are_made_of_the_history_of_the_user_alone(tiny: Any, written: Any, windows: tuple[int, ...]) -> None:
    segments = tiny(segments={"by": {"behavioural": written}, "min_rows": 5}).segments
    assert segments is not None
    assert segments.min_rows == 5
    assert segments.by == BehaviouralSegments(
        counts=tuple(f"user_{days}d_rows" for days in windows),
        rates=tuple(f"user_{days}d_{task}_rate" for days in windows for task in ("click", "like")),
        k=8,
    )
    assert segments.columns == (*segments.by.counts, *segments.by.rates)


def test_they_need_no_column_of_a_source(tiny: Any) -> None:
    config = tiny(segments={"by": {"behavioural": {"k": 2}}})
    assert segment_columns(config) == ("user",)
    assert feature_columns(config) == feature_columns(tiny())
    assert catalog.locate(config, tiny.day(0)) == catalog.locate(tiny(), tiny.day(0))
    shape = catalog.model_config(config, catalog.Sides.of(config, ["band"], ["price", "tags", "born"]))
    assert shape.segments is not None
    made_of = {feature.name: feature.from_keys for feature in shape.features}
    assert {made_of[column] for column in shape.segments.columns} == {("user",)}


WITHOUT_HISTORY = {"categorical": ["user", "tab"]}
WITHOUT_THE_USER = WITHOUT_HISTORY | {"history": {"keys": ["item", ["user", "tab"]]}}


@pytest.mark.parametrize(
    ("by", "changes", "message"),
    [
        (
            {"k": 8},
            {"features": WITHOUT_HISTORY},
            r"segments: by\.behavioural .*add 'user' to features\.history\.keys$",
        ),
        (
            {"k": 8},
            {"features": WITHOUT_THE_USER},
            r"segments: by\.behavioural .*add 'user' to features\.history\.keys$",
        ),
        (
            {"k": 8, "days": [3, 7]},
            {},
            r"segments: by\.behavioural\.days: \[7\] are not in features\.history\.days \[1, 3\]$",
        ),
        ({"k": 8, "days": [3, 3]}, {}, r"segments\.by\.behavioural\.days: two windows are the same in \[3, 3\]$"),
        ({"k": 8, "days": []}, {}, r"segments\.by\.behavioural\.days: .*at least 1 item"),
        ({"k": 1}, {}, r"segments\.by\.behavioural\.k: .*greater than or equal to 2, not 1$"),
        ({}, {}, r"segments\.by\.behavioural\.k: Field required$"),
        ({"k": 2, "day": 3}, {}, r"segments\.by\.behavioural\.day: unknown key"),
        # The history itself is wrong: that is told, and nothing of segments.
        (
            {"k": 2},
            {"features": WITHOUT_HISTORY | {"history": {"keys": [[]]}}},
            r"yaml: features\.history\.keys: \S+ is no",
        ),
    ],
)
def test_a_mistake_is_named_in_one_line(tiny: Any, by: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(segments={"by": {"behavioural": by}}, **changes)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value)


@pytest.fixture
def prepared(tiny: Any) -> Recommender:
    """Five prepared days, on which u0 is shown much and clicks all of it, and u1 and u2 little and click nothing."""
    for number in range(5):
        eager = [f"u0,i{n % 5},{tiny.at(number, n)},home,1,0" for n in range(20)]
        others = [f"u{1 + n},i{n},{tiny.at(number, 100 + n)},home,0,0" for n in range(2)]
        tiny.log(number, eager + others)
    config: Recommender = tiny(segments={"by": {"behavioural": {"k": 2, "days": [3]}}, "min_rows": 1})
    for number in range(5):
        ingest(config, tiny.day(number))
        prepare(config, tiny.day(number))
    return config


def test_groups_are_fitted_on_days_before_and_found_again_when_scoring(tiny: Any, prepared: Recommender) -> None:
    tables = Tables(prepared.storage)
    examples = pa.concat_tables([tables.read_day("examples", tiny.day(number)) for number in range(5)])
    encoder = Encoder.fit(catalog.model_config(prepared, sides_of(prepared, tables)), examples.to_batches())
    names = np.array(encoder.segment_of(examples)[0])
    users, days = np.array(examples["user"]), np.array(examples["event_day"])
    first = days == days.min()
    assert set(names[first]) == {"unknown"}, "nobody has a history on the first day"
    assert set(names[~first & (users == "u0")]) == {"behaviour 1"}
    assert set(names[~first & (users != "u0")]) == {"behaviour 2"}

    moment = Moment("home", tiny.day(4), tiny.day(5), {"tab": "home"})
    with sql.connect(prepared.columns.timezone) as connection:
        asked = entity_rows(connection, prepared, tables, moment, "user")
    found, sources = encoder.segment_of(asked)
    by_user = dict(
        zip(asked["user"].to_pylist(), zip(found.to_pylist(), sources.to_pylist(), strict=True), strict=True)
    )
    assert by_user["u0"] == ("behaviour 1", "direct")
    assert by_user["u1"] == by_user["u2"] == ("behaviour 2", "direct")
    assert by_user["u3"] == by_user["u4"] == ("unknown", "unknown")
