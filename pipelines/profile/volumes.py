"""How much came in: rows by day, who and what they are of, when in the day, and why rows were set aside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from pipelines import sql
from pipelines.profile.relations import Relations
from pipelines.tables import TableName, Tables

_REASONS, _HEAVIEST = 10, 10
# What differs between rows of one reason: the value behind the colon, and days.
_VALUE, _DAY = r": .*$", r"\d{4}-\d\d-\d\d"


@dataclass(frozen=True)
class DayVolume:
    """A day's rows. What only `ingested` knows is None for days that were ingested before there was that table."""

    day: date
    accepted: int
    rejected: int
    duplicates: int | None
    late: int
    users: int
    items: int

    @property
    def read(self) -> int:
        """All rows: what was accepted, rejected and dropped as a duplicate."""
        return self.accepted + self.rejected + (self.duplicates or 0)


@dataclass(frozen=True)
class Reason:
    """Why rows were set aside, without the value; how often, and the first of them as it stood in its file."""

    source: str
    text: str
    rows: int
    before: float
    example: str
    row: str
    file: str
    number: int


@dataclass(frozen=True)
class Heavy:
    """A user or an item with many rows, and their share of all."""

    name: str
    rows: int
    share: float


def by_day(relations: Relations) -> list[DayVolume]:
    """The volume of every day, oldest first."""
    user, item = (sql.name(name) for name in (relations.config.columns.user, relations.config.columns.item))
    query = (
        f"SELECT ds, count(*), count(DISTINCT {user}), count(DISTINCT {item}), "
        "count(*) FILTER (event_day < ds) FROM log GROUP BY ds ORDER BY ds"
    )
    ingested = _ingested(relations.tables)
    rejected = _rejected_by_day(relations)
    days = []
    for day, accepted, users, items, late in relations.connection.execute(query).fetchall():
        known = ingested.get(day, {"rejected": rejected.get(day, 0), "duplicates": None})
        days.append(DayVolume(day, accepted, known["rejected"], known["duplicates"], late, users, items))
    return days


def _ingested(tables: Tables) -> dict[date, dict[str, Any]]:
    if not tables.exists("ingested"):
        return {}
    return {row["ds"]: row for row in tables.dataset("ingested").to_table().to_pylist()}


def _rejected_by_day(relations: Relations) -> dict[date, int]:
    if not _register(relations, "rejected"):
        return {}
    query = "SELECT ds, count(*) FROM rejected WHERE source = 'interactions' GROUP BY ds"
    return dict(relations.connection.execute(query).fetchall())


def _register(relations: Relations, name: TableName) -> bool:
    """Make a table a relation, where there is such a table."""
    if not relations.tables.exists(name):
        return False
    relations.connection.register(name, relations.tables.dataset(name))
    return True


def different(relations: Relations) -> tuple[int, int]:
    """How many different users and items the days have."""
    user, item = (sql.name(name) for name in (relations.config.columns.user, relations.config.columns.item))
    query = f"SELECT count(DISTINCT {user}), count(DISTINCT {item}) FROM log WHERE __now"
    ((users, items),) = relations.connection.execute(query).fetchall()
    return users, items


def heaviest(relations: Relations, column: str) -> list[Heavy]:
    """The users or items with most rows in the days."""
    name = sql.name(column)
    query = (
        f"SELECT {name}, count(*) AS __rows, count(*) / sum(count(*)) OVER () FROM log WHERE __now "
        f"GROUP BY {name} ORDER BY __rows DESC, {name} LIMIT {_HEAVIEST}"
    )
    return [Heavy(*row) for row in relations.connection.execute(query).fetchall()]


def by_hour(relations: Relations) -> tuple[list[float], list[float]]:
    """The share of rows in each local hour, [24] of the days and [24] of those before; zeros where there are none."""
    query = "SELECT __now, hour(event_time), count(*) FROM log GROUP BY ALL"
    rows: dict[bool, list[float]] = {True: [0.0] * 24, False: [0.0] * 24}
    for __now, hour, number in relations.connection.execute(query).fetchall():
        rows[__now][hour] = number
    now, before = ([number / (sum(rows[which]) or 1.0) for number in rows[which]] for which in (True, False))
    return now, before


def reasons(relations: Relations) -> list[Reason]:
    """The reasons for which most rows of the days were set aside, most frequent first; `before` is rows a day."""
    if not _register(relations, "rejected"):
        return []
    span = relations.span
    is_now = f"ds >= DATE '{span.days[0]}'"
    plain = f"regexp_replace(regexp_replace(reason, {sql.text(_VALUE)}, '', 's'), {sql.text(_DAY)}, '…', 'g')"
    order = "ORDER BY ds, source_file, source_row"
    examples = ", ".join(
        f"first({sql.name(column)} {order}) FILTER ({is_now})"
        for column in ("reason", "row", "source_file", "source_row")
    )
    query = (
        f"SELECT source, {plain} AS plain, count(*) FILTER ({is_now}) AS rows, "
        f"count(*) FILTER (NOT {is_now}) / {max(len(span.before), 1)}, {examples} FROM rejected "
        f"WHERE ds BETWEEN DATE '{span.every[0]}' AND DATE '{span.days[-1]}' "
        f"GROUP BY source, plain HAVING rows > 0 ORDER BY rows DESC, source, plain LIMIT {_REASONS}"
    )
    return [Reason(*row) for row in relations.connection.execute(query).fetchall()]
