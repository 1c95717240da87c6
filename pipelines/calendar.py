"""Which days a recommender's log has."""

from __future__ import annotations

import re
from datetime import date

from pipelines.config import Recommender
from pipelines.sources import export, files
from recsys_moe.errors import UserError

_DAY = re.compile(r"\{ds(?:_nodash)?\}")
_DAY_AS_REGEX = {"{ds}": r"(\d{4}-\d\d-\d\d)", "{ds_nodash}": r"(\d{8})"}


def days_of(config: Recommender) -> list[date]:
    """The days that the source of interactions has: its daily files, or the event days of an export.

    Raises:
        UserError: there is no day at all, or the source is a query by day, which cannot say.
    """
    source = config.source.interactions
    if not source.is_daily:
        days = export.of_log(config).days()
    elif source.path:
        days = _days_of_files(source.path)
    else:
        raise UserError(f"{source.title}: a query by day does not say which days there are; name them")
    if not days:
        raise UserError(f"{source.title}: holds no day; check source.interactions.path and columns.timestamp")
    return days


def _days_of_files(path: str) -> list[date]:
    """Days for which a file of the pattern exists."""
    folder, _ = files.fixed_part(_DAY.sub("*", path))
    rest = path[len(folder.rstrip("/")) + 1 :] if folder != "." else path
    between = [files.as_regex(piece) for piece in _DAY.split(rest)]
    days = [_DAY_AS_REGEX[placeholder] for placeholder in _DAY.findall(rest)]
    pattern = re.compile("".join(part for pair in zip(between, [*days, ""], strict=True) for part in pair), re.DOTALL)
    found = set()
    for file in files.below(folder, deep="/" in rest or "**" in rest):
        match = pattern.fullmatch(file.name)
        if match and len(set(map(_as_date, match.groups()))) == 1:
            found.add(_as_date(match[1]))
    return sorted(day for day in found if day is not None)


def _as_date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
