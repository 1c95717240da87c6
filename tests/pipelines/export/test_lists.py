"""A day in parts: whole lists, in the same order every time, from any list on."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest

import pipelines.tables
from pipelines.export.lists import DayLists

DAY = date(2026, 1, 5)


@pytest.mark.parametrize("block", [3, 5, 96, 1000])
def test_no_part_cuts_a_list(scores, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rows = scores.publish()
    monkeypatch.setattr(pipelines.tables, "BLOCK_ROWS", block)
    day = DayLists.of(scores.config.storage, DAY)
    parts = list(day.parts("x"))
    assert pa.concat_tables(parts).equals(rows.select(day.schema.names))
    assert {len(part) % 5 for part in parts} == {0}
    assert {part.column("rank")[0].as_py() for part in parts} == {1}


@pytest.mark.parametrize("after", [0, 5, 95, 100, 395, 400])
@pytest.mark.usefixtures("small_blocks")
def test_it_goes_on_after_any_list(scores, after: int) -> None:
    """Also where blocks were of another size when the rows before were read."""
    rows = scores.publish()
    day = DayLists.of(scores.config.storage, DAY)
    rest = pa.concat_tables([day.schema.empty_table(), *day.parts("x", after)])
    assert rest.equals(rows.select(day.schema.names).slice(after))


def test_it_is_the_day_that_was_there_at_first(scores) -> None:
    rows = scores.publish()
    day = DayLists.of(scores.config.storage, DAY)
    scores.publish(seed=1)
    assert pa.concat_tables(day.parts("x")).equals(rows.select(day.schema.names))
    again = DayLists.of(scores.config.storage, DAY)
    assert again.generation() != day.generation() == day.generation() != day.generation("item_id")
    assert again.table_version > day.table_version
