"""The command: measure the days, write the page."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path
from typing import Any

from pipelines.config import Recommender
from pipelines.profile import drift, page, rates, volumes
from pipelines.profile.page import Findings
from pipelines.profile.relations import relations
from pipelines.profile.span import Span
from pipelines.tables import Tables
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)


def profile(config: Recommender, start: date | None, as_of: date | None, out: Path | None = None) -> dict[str, Any]:
    """Write a self-contained HTML page about the ingested days from `start` through `as_of`.

    Args:
        start: the first day; `as_of` alone where None.
        as_of: the last day; the newest that is ingested where None.
        out: where to; `profile/<days>.html` in the recommender's workspace where None.

    Returns:
        The page's path, how many rows it is about, and what stands out: columns that drifted, and features that rank
        a label by themselves.

    Raises:
        UserError: there is no such day, or the page cannot be written.
    """
    tables = Tables(config.storage)
    span = Span.of(tables, start, as_of)
    with relations(config, tables, span) as known:
        found = Findings(
            volumes=volumes.by_day(known),
            different=volumes.different(known),
            hours=volumes.by_hour(known),
            heavy_users=volumes.heaviest(known, config.columns.user),
            heavy_items=volumes.heaviest(known, config.columns.item),
            reasons=volumes.reasons(known),
            rates=rates.rates(known),
            spreads=drift.spreads(known),
            alone=rates.alone(known),
        )
    path = out or config.workspace / "profile" / f"{span.name}.html"
    _write(path, page.render(config, span, found))
    log.info("profile of %s: %s", span.title, path)
    return {
        "step": "profile",
        "from": span.days[0].isoformat(),
        "as_of": span.days[-1].isoformat(),
        "path": str(path),
        "accepted": sum(day.accepted for day in found.volumes if day.day in span.days),
        "drifted": [one.column.name for one in found.spreads if one.reading == "large"],
        "warnings": [str(one) for one in found.alone if one.auc > config.leaks.warn_auc],
    }


def _write(path: Path, content: str) -> None:
    """Write a file at once: a page that is open in a browser is never half of one."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with --out") from None
