"""Top-N per user from a registered version, published for a day at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import sql
from pipelines.candidates import CandidateLists
from pipelines.config import Recommender
from pipelines.entities import Moment, entity_rows, moments
from pipelines.errors import NotDueError
from pipelines.progress import Progress
from pipelines.registry import Registry, Version
from pipelines.tables import Tables
from recsys_moe import checkpoint
from recsys_moe.checkpoint import Ranker
from recsys_moe.errors import UserError
from recsys_moe.scoring import TopN, score_top_n

log = logging.getLogger(__name__)


def score(config: Recommender, ds: date, model_version: int | None = None) -> dict[str, Any]:
    """Publish `scores` of day `ds`: features through that day, to serve the next one.

    Args:
        config: the recommender.
        ds: the last day whose rows are looked at.
        model_version: a version's number; the champion where None.

    Raises:
        NotDueError: there is no champion yet.
        UserError: the day was not ingested, or the model reads what the day does not have.
    """
    registry = Registry(config)
    version = registry.champion() if model_version is None else registry.version(model_version)
    if version is None:
        raise NotDueError(f"{ds}: there is no champion yet; train and promote a version first")
    tables = Tables(config.storage)
    if ds not in tables.days("interactions"):
        raise UserError(f"{ds}: was not ingested; run `recsys-moe ingest --as-of {ds}` first")
    if config.features.history and ds not in tables.days("daily_counts"):
        raise UserError(f"{ds}: was not prepared; run `recsys-moe prepare --as-of {ds}` first")
    ranker = checkpoint.load(registry.checkpoint(version))
    parts = [part for moment in moments(config, ds).values() for part in _score_moment(config, tables, ranker, moment)]
    rows = _with_origin(pa.concat_tables(parts), version)
    _check(rows, ranker)
    number = tables.replace_day("scores", ds, rows)
    users = len(rows.column("user_id").unique())
    log.info("scored %s: %d users, %d rows, version %d", ds, users, len(rows), version.number)
    return {
        "step": "score",
        "ds": ds.isoformat(),
        "users": users,
        "rows": len(rows),
        "contexts": list(config.scoring.named_contexts),
        "model_version": version.number,
        "table": tables.path("scores"),
        "versions": {"scores": number},
    }


def _score_moment(config: Recommender, tables: Tables, ranker: Ranker, moment: Moment) -> Iterator[pa.Table]:
    """The rows of one context, block of users by block."""
    with sql.connect(config.columns.timezone) as connection:
        users = entity_rows(connection, config, tables, moment, "user")
        items = entity_rows(connection, config, tables, moment, "item")
        user_ids, item_ids = users.column(config.columns.user), items.column(config.columns.item)
        candidates = CandidateLists.of(connection, config, tables, moment.ds, user_ids, item_ids)
    names, sources = ranker.encoder.segment_of(users)
    weights = [config.score_weights.get(task.name, 0.0) for task in ranker.config.tasks]
    with Progress(f"score {moment.name}", users.num_rows, "users") as progress:
        blocks = score_top_n(ranker, users, items, candidates.for_all(), weights, config.scoring.top_n)
        for best in blocks:
            progress.advance(len(np.unique(best.user)))
            yield _rows(config, ranker, moment.name, best, user_ids, item_ids, names, sources)


def _rows(
    config: Recommender,
    ranker: Ranker,
    context: str,
    best: TopN,
    user_ids: pa.ChunkedArray,
    item_ids: pa.ChunkedArray,
    segments: pa.Array,
    segment_sources: pa.Array,
) -> pa.Table:
    user = pa.array(best.user)
    columns = {
        "context": pa.repeat(pa.scalar(context), len(user)),
        "user_id": user_ids.take(user),
        "item_id": item_ids.take(pa.array(best.item)),
        "rank": pa.array(best.rank.astype(np.int32)),
        "score": pa.array(best.score),
        **{f"score_{t.name}": pa.array(best.task_scores[:, n].copy()) for n, t in enumerate(ranker.config.tasks)},
        "segment": segments.take(user),
        "segment_source": segment_sources.take(user),
        "candidate_source": pa.repeat(pa.scalar(config.scoring.candidates.source), len(user)),
    }
    return pa.table(columns)


def _with_origin(rows: pa.Table, version: Version) -> pa.Table:
    origin = {
        "model_version": pa.scalar(version.number, pa.int64()),
        "run_id": pa.scalar(version.run_id),
        "scored_at": pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")),
    }
    for name, value in origin.items():
        rows = rows.append_column(name, pa.repeat(value, len(rows)))
    return rows


def _check(rows: pa.Table, ranker: Ranker) -> None:
    """Nothing is published that a serving store should not have."""
    if not len(rows):
        raise UserError("score: no user got a single item; are all candidates seen (scoring.exclude_seen)?")
    for name in ("score", *(f"score_{task.name}" for task in ranker.config.tasks)):
        assert np.isfinite(rows.column(name).to_numpy()).all(), f"{name} has a value that is no number"
