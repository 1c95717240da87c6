"""Which days a recommender's log has."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from pipelines import contract, sources, sql
from pipelines.config import Recommender
from recsys_moe.errors import UserError


def days_of(config: Recommender) -> list[date]:
    """The days that the source of interactions has: its daily files, or the event days of its one file.

    Raises:
        UserError: there is no day at all.
    """
    source = config.source.interactions
    days = _days_of_files(source.title) if source.is_daily else _days_inside(config)
    if not days:
        raise UserError(f"{source.title}: holds no day; check source.interactions.path and columns.timestamp")
    return days


def _days_of_files(path: str) -> list[date]:
    """Days for which a file of the pattern exists."""
    folder = Path(re.split(r"\{ds(?:_nodash)?\}", path)[0] + "x").parent
    pattern = re.escape(path).replace(r"\{ds\}", r"(\d{4}-\d\d-\d\d)").replace(r"\{ds_nodash\}", r"(\d{8})")
    found = set()
    for file in folder.rglob("*") if folder.is_dir() else ():
        match = re.fullmatch(pattern, str(file))
        if match and len(set(map(_as_date, match.groups()))) == 1:
            found.add(_as_date(match[1]))
    return sorted(day for day in found if day is not None)


def _as_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _days_inside(config: Recommender) -> list[date]:
    """The event days of an export of the whole history."""
    stamp = config.columns.timestamp.name
    raw = sources.read(config.source.interactions, date.min, [stamp]).table
    with sql.connect(config.columns.timezone, raw=raw) as connection:
        kind = raw.schema.field(stamp).type
        cleaned = f"{contract.clean(stamp, kind, config.columns.missing)} AS {sql.name(stamp)}"
        query = (
            f"SELECT DISTINCT CAST({contract.event_time(config, kind)} AS DATE) AS day FROM (SELECT {cleaned} FROM raw)"
        )
        days = sql.fetch(connection, query).column("day").to_pylist()
    return sorted(day for day in days if day is not None)
