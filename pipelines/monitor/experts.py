"""Whether the day's rows still use all routed experts."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config import Recommender
from pipelines.monitor.checks import Check
from pipelines.monitor.said import Said
from recsys_moe.checkpoint import Ranker
from recsys_moe.encoding import Loader
from recsys_moe.routing import routing_report

_BATCH_ROWS = 8192


def expert_health(config: Recommender, ranker: Ranker, said: Said) -> Iterator[Check]:
    """How many experts are dead, and what share of the load the busiest has; nothing where none is routed."""
    if ranker.model.experts.layout.routed < 2:
        return
    encoder = ranker.encoder
    report = routing_report(ranker.model, Loader(encoder, encoder.encode(said.rows), _BATCH_ROWS).batches())
    assert report.busiest is not None
    name, share = report.busiest
    fair = share * len(report.routed_names)
    limits, rows = config.monitoring.experts, said.rows.num_rows
    named = f": {', '.join(report.dead)}" if report.dead else ""
    text = f"{len(report.dead)} of {len(report.routed_names)} routed experts get under a tenth of a fair share{named}"
    yield Check("experts", "dead", text, len(report.dead), limits.dead, rows=rows)
    text = f"{name} gets {share:.0%} of the load, {fair:.1f} times a fair share"
    yield Check("experts", "busiest", text, fair, limits.busiest, rows=rows)
