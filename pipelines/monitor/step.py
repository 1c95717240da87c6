"""The step: look, judge, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pyarrow.compute as pc

from pipelines.config import Recommender
from pipelines.monitor import report
from pipelines.monitor.arrivals import freshness, volume
from pipelines.monitor.calibrations import of_served, of_today
from pipelines.monitor.checks import Check, Judged, counted
from pipelines.monitor.drifts import Drifts, drifts
from pipelines.monitor.experts import expert_health
from pipelines.monitor.report import Seen
from pipelines.monitor.said import Said
from pipelines.profile.span import Span
from pipelines.registry import Registry, Version
from pipelines.tables import Tables
from recsys_moe import checkpoint

log = logging.getLogger(__name__)

_TOLD = 20
"""Findings in the step's result; monitor.json has all."""


def monitor(config: Recommender, as_of: date) -> dict[str, Any]:
    """Look at day `as_of`, say whether a training is due and why, and leave a report in MLflow.

    It changes no table, and gives the same again for the same tables and champion.

    Returns: `verdict` (ok, warn or retrain), `retrain`, its `reasons`, what it is `held_back` by, and `findings`, the
        checks that are not ok.

    Raises:
        UserError: the champion reads a column that the examples do not have, or MLflow cannot be reached.
    """
    registry, tables = Registry(config), Tables(config.storage)
    version = _serving(registry, tables, as_of)
    checks = [*freshness(config, tables, as_of, version), *volume(config, tables, as_of)]
    found: Drifts | None = None
    if version is not None:
        known, found = _model(config, registry, tables, version, as_of)
        checks += [*known, *of_served(config, tables, as_of)]
    judged = Judged(tuple(checks))
    run_id = report.write(config, registry, Seen(as_of, version, judged, found))
    log.info("monitored %s: %s", as_of, "; ".join([judged.verdict, *(check.text for check in judged.found[:5])]))
    return {
        "step": "monitor",
        "as_of": as_of.isoformat(),
        "verdict": judged.verdict,
        "retrain": judged.retrain,
        "reasons": judged.reasons,
        "held_back": judged.held_back,
        "findings": [check.text for check in judged.found[:_TOLD]],
        "checks": counted(checks),
        "model_version": version.number if version else None,
        "run_id": run_id,
    }


def _serving(registry: Registry, tables: Tables, as_of: date) -> Version | None:
    """The version whose scores served the day; the champion where there are none."""
    before = as_of - timedelta(days=1)
    if before in tables.days("scores"):
        numbers = tables.dataset("scores").head(1, filter=pc.field("ds") == before, columns=["model_version"])
        return registry.version(numbers.column("model_version")[0].as_py())
    return registry.champion()


def _model(
    config: Recommender, registry: Registry, tables: Tables, version: Version, as_of: date
) -> tuple[list[Check], Drifts | None]:
    """What a version says of the day's rows, beside what it says of those that it learned from."""
    ranker = checkpoint.load(registry.checkpoint(version))
    now = Said.of(config, tables, ranker, [as_of] if as_of in tables.days("examples") else [], as_of)
    if now is None:
        return [], None
    checks = [*of_today(config, now), *expert_health(config, ranker, now)]
    learned = tuple(_learned(registry, tables, version, as_of))
    before = Said.of(config, tables, ranker, learned, as_of)
    if before is None:
        return checks, None
    found = drifts(config, tables, Span((as_of,), learned), ranker.config, now, before)
    return [*checks, *found.checks(config)], found


def _learned(registry: Registry, tables: Tables, version: Version, as_of: date) -> Iterator[date]:
    """The days that a version learned from and that are still there, without the day itself."""
    first = registry.open_run(version.run_id).facts().tags.get("trained_from", version.through.isoformat())
    for day in tables.days("examples"):
        if date.fromisoformat(first) <= day <= version.through and day != as_of:
            yield day
