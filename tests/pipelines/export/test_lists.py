"""A day in parts: whole lists, in the same order every time, from any list on."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest

import pipelines.tables
from pipelines.export.lists import DayLists
from recsys_moe.errors import UserError

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


@pytest.mark.usefixtures("small_blocks")
def test_a_task_may_be_of_other_days_alone(scores) -> None:
    """One that was taken out of the YAML, or came later."""
    scores.publish(date(2026, 1, 4))
    rows = scores.publish(rows=scores.table().drop_columns(["score_click"]))
    day = DayLists.of(scores.config.storage, DAY)
    assert pa.concat_tables(day.parts("x")).equals(rows.select(day.schema.names))
    assert rows.column("score_click").null_count == len(rows)


@pytest.mark.parametrize(("column", "without"), [("score_click", 1), ("score", 1), ("score", 400)])
def test_a_score_that_lacks_is_told(scores, column: str, without: int) -> None:
    rows = scores.table()
    values = pa.array([None] * without + [0.5] * (len(rows) - without), pa.float32())
    scores.publish(rows=rows.set_column(rows.schema.get_field_index(column), column, values))
    with pytest.raises(UserError, match=f"column '{column}' has a value that is no number"):
        list(DayLists.of(scores.config.storage, DAY).parts("x"))


def test_it_is_the_day_that_was_there_at_first(scores) -> None:
    rows = scores.publish()
    day = DayLists.of(scores.config.storage, DAY)
    scores.publish(seed=1)
    assert pa.concat_tables(day.parts("x")).equals(rows.select(day.schema.names))
    again = DayLists.of(scores.config.storage, DAY)
    assert again.generation() != day.generation() == day.generation() != day.generation("item_id")
    assert again.table_version > day.table_version
