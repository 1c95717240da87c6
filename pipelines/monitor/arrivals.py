"""Whether everything has come, and as much of it as usual."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow.compute as pc

from pipelines import sql
from pipelines.config import Limits, Recommender
from pipelines.monitor.checks import Check, factor
from pipelines.registry import Version
from pipelines.tables import TableName, Tables

_STEPS: dict[str, TableName] = {"data": "interactions", "prepared": "examples", "scores": "scores"}
_WORDS = {"data": "ingested", "prepared": "prepared", "scores": "scored"}
_FEWEST_DAYS = 3
_MISSING = 1e9
"""How far off something is that is not there at all: beyond any limit that is set."""


def freshness(config: Recommender, tables: Tables, as_of: date, champion: Version | None) -> Iterator[Check]:
    """How far behind the tables and the champion are on day `as_of`."""
    limits = config.monitoring.freshness
    of_step = {"data": limits.data, "prepared": limits.prepared, "scores": limits.scores}
    for name, table in _STEPS.items():
        newest = max((day for day in tables.days(table) if day <= as_of), default=None)
        if name != "scores" or champion is not None:
            yield _behind(name, f"the newest {_WORDS[name]} day", as_of, newest, of_step[name])
    through = champion.through if champion else None
    words = f"version {champion.number}, the champion, learned through" if champion else "the champion"
    yield _behind("champion", words, as_of, through, limits.champion)


def _behind(name: str, what: str, as_of: date, newest: date | None, limits: Limits) -> Check:
    if newest is None:
        missing = "there is no champion yet" if name == "champion" else f"no day is {_WORDS[name]} yet"
        return Check("freshness", name, missing, None, limits, off=_MISSING)
    days = max((as_of - newest).days, 0)
    verb = "" if name == "champion" else " is"
    text = f"{what}{verb} {newest}, {days} day{'' if days == 1 else 's'} before {as_of}"
    return Check("freshness", name, text, days, limits)


def volume(config: Recommender, tables: Tables, as_of: date) -> Iterator[Check]:
    """The day's rows, users and items beside the median of the days before; nothing where these are too few."""
    first = as_of - timedelta(days=config.monitoring.days)
    before = [day for day in tables.days("interactions") if first <= day < as_of]
    if len(before) < _FEWEST_DAYS:
        return
    by_day = _counts(config, tables, [*before, as_of])
    for place, name in enumerate(("rows", "users", "items")):
        usual = statistics.median(by_day[day][place] for day in before)
        value = by_day.get(as_of, (0, 0, 0))[place]
        share = value / usual
        text = f"{value:,} {name} on {as_of}, {share:.2f} times the {usual:,.0f} that are usual"
        off = factor(share) or _MISSING
        yield Check("volume", name, text, share, config.monitoring.volume, off=off)


def _counts(config: Recommender, tables: Tables, days: list[date]) -> dict[date, tuple[int, int, int]]:
    """Rows, users and items of each day that has any."""
    user, item = sql.name(config.columns.user), sql.name(config.columns.item)
    with sql.connect(spill=config.workspace / "scratch") as connection:
        sql.view(connection, "log", tables.dataset("interactions"), pc.field("ds").isin(days))
        query = f"SELECT ds, count(*), count(DISTINCT {user}), count(DISTINCT {item}) FROM log GROUP BY ds"
        return {day: (rows, users, items) for day, rows, users, items in connection.execute(query).fetchall()}
