"""All steps in order, over a range of days: what the DAGs do, in one process and at once."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from pipelines.calendar import days_of
from pipelines.config import Recommender
from pipelines.evaluate import evaluate
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.progress import Progress
from pipelines.promote import promote
from pipelines.score import score
from pipelines.simulate import simulate
from pipelines.train import train
from recsys_moe.errors import UserError


def run(config: Recommender, start: date | None = None, as_of: date | None = None) -> dict[str, Any]:
    """Ingest and prepare every day from `start` to `as_of`, then train, evaluate, promote and score for `as_of`.

    Without bounds these are the first and the last day that the source has. Data that is to be simulated is made
    first.

    Returns: what each step returned; `ingest` and `prepare` as one list entry a day.

    Raises:
        UserError: as the steps do, or there is no day in the range.
    """
    done: dict[str, Any] = {"step": "run"}
    if config.simulation is not None:
        done["simulate"] = simulate(config)
    known = _days(config, start, as_of)
    last = as_of or known[-1]
    days = [day for day in known if (start or day) <= day <= last]
    if not days or days[-1] != last:
        raise UserError(f"--as-of: the source has no day {last}; it has {known[0]} to {known[-1]}")
    done["ingest"], done["prepare"] = [], []
    with Progress(f"{config.name}: ingest and prepare", len(days), "days") as progress:
        for day in days:
            done["ingest"].append(ingest(config, day))
            done["prepare"].append(prepare(config, day, alone=True))
            progress.advance(1, day.isoformat())
    for step in (train, evaluate, promote, score):
        done[step.__name__] = step(config, last)
    return done


def _days(config: Recommender, start: date | None, as_of: date | None) -> list[date]:
    """The days that there are. A query by day cannot say which: it is asked for each of the range."""
    source = config.source.interactions
    if source.sql and source.is_daily and start and as_of:
        return [start + timedelta(days=number) for number in range((as_of - start).days + 1)]
    return days_of(config)
