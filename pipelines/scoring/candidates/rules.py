"""Which items may be shown at all: those available on the day, and those that no rule forbids."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import date, timedelta

import duckdb

from pipelines import sql
from pipelines.config import ItemRule, Recommender
from pipelines.tables import Tables, snapshots
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def are_given(config: Recommender) -> bool:
    """Whether any item could be left out."""
    return bool(config.scoring.rules) or config.scoring.available is not None


def allowed(connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date) -> str:
    """A query: item_id and allowed, for each item known at the end of `ds`; none where nothing is asked of items.

    Raises:
        UserError: items have no such column, or it holds no dates where it should.
    """
    if not are_given(config):
        return "SELECT NULL::VARCHAR AS item_id, NULL::BOOLEAN AS allowed LIMIT 0"
    conditions = [*_dates(connection, config, tables, ds), *_rules(connection, config, tables, ds)]
    key = sql.name(config.columns.item)
    return f"SELECT {key} AS item_id, {' AND '.join(conditions)} AS allowed FROM item_rows"


def view_items(
    connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date, column: str, where: str
) -> str:
    """Leave the view `item_rows` of the items' raw columns. Returns an SQL expression: `column` as text.

    Raises:
        UserError: items have no such column; the message begins with `where`.
    """
    there = snapshots.columns(tables, "items") if tables.exists("items") else []
    if column not in there:
        has = ", ".join(there) or "none, as no source.items is ingested"
        raise UserError(f"{where}: {column!r} is no column of items; there is {has}")
    snapshots.view(connection, tables, "items", ds, "item_rows")
    return f"CAST({sql.name(column)} AS VARCHAR)"


def as_date(connection: duckdb.DuckDBPyConnection, text: str, where: str) -> str:
    """An SQL expression: a text of `item_rows` as a date, null where it is none, which the log then tells.

    Raises:
        UserError: none of the texts is a date.
    """
    found = f"TRY_CAST({text} AS DATE)"
    texts, dates, some = connection.execute(
        f"SELECT count({text}), count({found}), min({text}) FILTER ({found} IS NULL) FROM item_rows"
    ).fetchall()[0]
    if texts and not dates:
        raise UserError(f"{where}: holds no dates such as 2026-01-31, but {some!r}; name a column of dates")
    if texts > dates:
        log.warning("%s: %d values, such as %r, are no dates; they count as missing", where, texts - dates, some)
    return found


def _dates(connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date) -> Iterator[str]:
    available, day = config.scoring.available, f"DATE '{ds + timedelta(days=1)}'"
    if available is None:
        return
    for side, column, compared in (("since", available.since, "<="), ("until", available.until, ">=")):
        if column is not None:
            where = f"scoring.available.{side}"
            found = as_date(connection, view_items(connection, config, tables, ds, column, where), where)
            yield f"coalesce({found} {compared} {day}, true)"


def _rules(connection: duckdb.DuckDBPyConnection, config: Recommender, tables: Tables, ds: date) -> Iterator[str]:
    for number, rule in enumerate(config.scoring.rules):
        where = f"scoring.rules.{number}.column"
        text = view_items(connection, config, tables, ds, rule.column, where)
        yield from _conditions(
            rule, text, config.features.separator if rule.column in config.features.multivalued else None
        )


def _conditions(rule: ItemRule, text: str, separator: str | None) -> Iterator[str]:
    """SQL conditions, never null, on a column's text. Of several values in one text, any counts."""
    values = f"[{text}]"
    if separator is not None:
        values = f"[trim(part) FOR part IN string_split({text}, {sql.text(separator)})]"
    number = f"TRY_CAST({text} AS DOUBLE)"
    if rule.one_of is not None:
        yield f"coalesce(list_has_any({values}, [{', '.join(map(sql.text, rule.one_of))}]), false)"
    if rule.none_of is not None:
        yield f"NOT coalesce(list_has_any({values}, [{', '.join(map(sql.text, rule.none_of))}]), false)"
    # SQL takes NaN for the greatest number; here it is a missing one.
    bounds = [f"{number} >= {rule.at_least}"] if rule.at_least is not None else []
    bounds += [f"{number} <= {rule.at_most}"] if rule.at_most is not None else []
    if bounds:
        yield f"coalesce(NOT isnan({number}) AND {' AND '.join(bounds)}, false)"
