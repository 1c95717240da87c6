"""The items that came last: by a column of theirs, or by their first row in the log."""

from __future__ import annotations

import pyarrow.compute as pc

from pipelines import sql
from pipelines.config import Newest
from pipelines.scoring.candidates import rules, small
from pipelines.scoring.candidates.lists import Lists
from pipelines.scoring.candidates.making import Making
from pipelines.scoring.staging import Staging

NAME = "recent"


def make(making: Making, wanted: Newest) -> None:
    """Write the list. What has no date, or one after the day that is scored for, has not come yet.

    Raises:
        UserError: items have no such column, or it holds no dates.
    """
    came = _by_log(making) if wanted.column is None else _by_column(making, wanted.column)
    found = making.fetch(
        f"SELECT position AS item FROM ({came}) JOIN known_items USING (item_id) "
        f"WHERE allowed AND came <= DATE '{making.day}' ORDER BY came DESC, position LIMIT {wanted.limit}"
    )
    small.write(making.staging, NAME, found)


def read(staging: Staging) -> Lists:
    """The one list."""
    items = small.read(staging, NAME).column("item").to_numpy()
    return Lists.of((items * 0, items), 1)


def _by_column(making: Making, column: str) -> str:
    where = "scoring.candidates.recent.column"
    text = rules.view_items(making.connection, making.config, making.tables, making.ds, column, where)
    key = sql.name(making.config.columns.item)
    return f"SELECT {key} AS item_id, {rules.as_date(making.connection, text, where)} AS came FROM item_rows"


def _by_log(making: Making) -> str:
    sql.view(making.connection, "whole_log", making.tables.dataset("interactions"), pc.field("ds") <= making.ds)
    key = sql.name(making.config.columns.item)
    return f"SELECT {key} AS item_id, min(event_day) AS came FROM whole_log GROUP BY ALL"
