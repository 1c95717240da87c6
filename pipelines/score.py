"""Top-N per user from a registered version, published for a day at once: planned, scored shard by shard, published.

`score` does all of it. The three parts are steps of their own as well, for engines that do shards elsewhere, such as
Airflow's mapped tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pipelines.config import Recommender
from pipelines.scoring import engine, plan
from pipelines.scoring.plan import Plan
from pipelines.scoring.publish import publish
from pipelines.scoring.shard import Scorer
from pipelines.scratch import scratch_of
from recsys_moe.errors import UserError

Engine = Literal["processes", "spark"]


def engine_named(name: str) -> Engine:
    """An engine, by its name.

    Raises:
        UserError: there is none of that name.
    """
    for known in get_args(Engine):
        if name == known:
            return cast(Engine, known)
    raise UserError(f"--engine: {name!r} is none of {', '.join(get_args(Engine))}")


def score(
    config: Recommender, ds: date, model_version: int | None = None, engine_name: Engine = "processes"
) -> dict[str, Any]:
    """Publish `scores` of day `ds`: features through that day, to serve the next one.

    A run that was killed is gone on with: shards that stand are not scored again.

    Args:
        config: the recommender.
        ds: the last day whose rows are looked at.
        model_version: a version's number; the champion where None.
        engine_name: who does the shards: processes of this machine, or Spark.

    Raises:
        NotDueError: there is no champion yet.
        UserError: the day was not ingested, the model reads what the day does not have, or what came out is not fit to
            be served.
        TryAgainError: a shard failed three times, or another process scores the same.
    """
    with _alone(config, ds) as spill:
        made = plan.make(config, ds, model_version, spill)
        if engine_name == "spark":
            from pipelines.scoring import spark

            spark.run(config, made)
        else:
            engine.run(config, made)
        return publish(config, made, spill)


def score_plan(config: Recommender, ds: date, model_version: int | None = None) -> dict[str, Any]:
    """Plan a scoring: which version, which users in which shards, and which items are candidates.

    Raises:
        As `score`.
    """
    with _alone(config, ds) as spill:
        made = plan.make(config, ds, model_version, spill)
    told = {"plan": made.id, "shards": made.shards, "users": made.users, "model_version": made.version}
    return {"step": "score-plan", "ds": ds.isoformat(), **told}


def score_shard(config: Recommender, plan_id: str, number: int) -> dict[str, Any]:
    """Score one shard of a plan; one that stands is left as it is.

    Raises:
        UserError: there is no such plan or shard.
        TryAgainError: it failed.
    """
    made = Plan.read(config, plan_id)
    made.check_shard(number)
    # Once: who calls this has a way of its own to try again.
    rows = engine.attempted(made, number, lambda shard: Scorer(config, made).score(shard), attempts=1)
    return {"step": "score-shard", "plan": plan_id, "shard": number, "rows": rows}


def score_publish(config: Recommender, plan_id: str) -> dict[str, Any]:
    """Publish a plan whose shards are all there; where it is published already, say so again.

    Raises:
        UserError: there is no such plan, a shard is not there, or what came out is not fit to be served.
    """
    if (told := plan.published(config, plan_id)) is not None:
        return told
    made = Plan.read(config, plan_id)
    with _alone(config, made.ds) as spill:
        return publish(config, made, spill)


@contextmanager
def _alone(config: Recommender, ds: date) -> Iterator[Path]:
    """A folder for what does not fit the memory; no other process of this machine scores the day meanwhile."""
    with scratch_of(config, "score", ds.isoformat(), resume=True) as folder:
        yield folder
