"""Which items may be shown: edges of dates and values, and columns that are not what the YAML takes them for."""

from __future__ import annotations

from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from pipelines import sql
from pipelines.scoring.candidates import rules
from pipelines.tables import Tables, snapshots
from recsys_moe.errors import UserError
from tests.pipelines.conftest import CONFIG, Tiny

DS = date(2026, 1, 9)
ITEMS = {
    "item": ["a", "b", "c", "d", "e", "f"],
    "since": ["2026-01-09", "2026-01-10", "2026-01-11", None, "soon", "2026-01-10 23:59:59"],
    "until": ["2026-01-09", "2026-01-10", "2026-01-11", None, "2027-01-01", "2026-01-10 00:00:00"],
    "age": ["0", "12", "12.5", None, "nan", "old"],
    "kind": ["1", "2", "3", None, "", "1|2"],
    "tags": ["x|y", "y", "z | x", None, "", "xy"],
}


def allowed(tiny: Tiny, **scoring: Any) -> str:
    config = tiny(scoring=CONFIG["scoring"] | scoring)
    tables = Tables(config.storage)
    snapshots.publish(tables, "items", DS, pa.table(ITEMS), "item")
    with sql.connect() as connection:
        found = sql.fetch(connection, rules.allowed(connection, config, tables, DS))
    return "".join(sorted(found.filter(found.column("allowed")).column("item_id").to_pylist()))


@pytest.mark.parametrize(
    ("scoring", "wanted"),
    [
        ({"available": {"since": "since"}}, "abdef"),
        ({"available": {"until": "until"}}, "bcdef"),
        ({"available": {"since": "since", "until": "until"}}, "bdef"),
        ({"rules": [{"column": "age", "at_least": 12}]}, "bc"),
        ({"rules": [{"column": "age", "at_most": 12}]}, "ab"),
        ({"rules": [{"column": "age", "at_least": 0.5, "at_most": 12.4}]}, "b"),
        ({"rules": [{"column": "kind", "one_of": [1, "3"]}]}, "ac"),
        ({"rules": [{"column": "kind", "none_of": [1, "3"]}]}, "bdef"),
        ({"rules": [{"column": "tags", "one_of": ["x"]}]}, "ac"),
        ({"rules": [{"column": "tags", "none_of": ["x", "y"]}]}, "def"),
        ({"rules": [{"column": "kind", "one_of": ["1", "2"]}, {"column": "age", "at_least": 1}]}, "b"),
        ({"rules": [{"column": "kind", "none_of": ["it's \"; DROP"]}]}, "abcdef"),
    ],
)
def test_who_may_be_shown(tiny: Tiny, scoring: dict[str, Any], wanted: str) -> None:
    assert allowed(tiny, **scoring) == wanted


def test_a_date_that_is_none_counts_as_missing_and_is_told(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    allowed(tiny, available={"since": "since"})
    assert caplog.messages == ["scoring.available.since: 1 values, such as 'soon', are no dates; they count as missing"]


@pytest.mark.parametrize(
    ("scoring", "said"),
    [
        (
            {"available": {"until": "gone"}},
            r"^scoring\.available\.until: 'gone' is no column of items; there is item, since, until, age, kind, tags$",
        ),
        ({"rules": [{"column": "ag", "at_least": 1}]}, r"^scoring\.rules\.0\.column: 'ag' is no column of items; "),
        ({"available": {"since": "kind"}}, r"^scoring\.available\.since: holds no dates such as 2026-01-31, but '"),
    ],
)
def test_a_column_that_is_none(tiny: Tiny, scoring: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        allowed(tiny, **scoring)


def test_without_a_table_of_items(tiny: Tiny) -> None:
    config = tiny(scoring=CONFIG["scoring"] | {"available": {"since": "born"}})
    with sql.connect() as connection, pytest.raises(UserError, match=r"there is none, as no source\.items is ingested"):
        rules.allowed(connection, config, Tables(config.storage), DS)


@pytest.mark.parametrize(
    ("candidates", "changes", "said"),
    [
        ({"source": "co_visited", "task": "buy"}, {}, r"co_visited\.task: 'buy' is no binary task; there is"),
        ({"by": "segment"}, {"segments": None}, r"popular\.by: there are no segments"),
    ],
)
def test_what_the_yaml_alone_tells(tiny: Tiny, candidates: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(scoring=CONFIG["scoring"] | {"candidates": candidates}, **changes)
