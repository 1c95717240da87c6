"""Whether what was predicted happened as often: of the day's rows, and of the published scores that were shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from math import inf, sqrt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import labels, sql
from pipelines.config import Limits, Recommender, TaskSource
from pipelines.monitor.checks import Check, Group, factor
from pipelines.monitor.said import Said
from pipelines.tables import Tables

_Z = 1.959964
"""Standard deviations either side of the mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Rate:
    """What was predicted of `rows` rows and what happened, each summed; `spread` is the sum of squared differences."""

    rows: int
    predicted: float
    observed: float
    spread: float

    @classmethod
    def of(cls, said: NDArray[np.floating], happened: NDArray[np.float64]) -> Rate:
        """Over the rows whose label is known."""
        known = np.isfinite(happened)
        p, y = said[known].astype(np.float64), happened[known]
        return cls(int(known.sum()), float(p.sum()), float(y.sum()), float(((y - p) ** 2).sum()))

    @property
    def ratio(self) -> float | None:
        """Predicted over observed; None where nothing happened."""
        return self.predicted / self.observed if self.observed else None

    @property
    def off(self) -> float:
        """How many times too much or too little is predicted at least, with 95 % confidence; 1 where it may be right.

        The sum of labels lies within `_Z * sqrt(spread)` of what is expected of it.
        """
        reach = _Z * sqrt(self.spread)
        low, high = self.observed - reach, self.observed + reach
        too_much = self.predicted / high if high > 0 else 1.0
        too_little = low / self.predicted if self.predicted > 0 else inf if low > 0 else 1.0
        return max(too_much, too_little, 1.0)


def of_today(config: Recommender, said: Said) -> Iterator[Check]:
    """What the model says of the day's rows beside what happened, for all of them and by segment."""
    happened = said.labels(config)
    names = said.segments.to_numpy(zero_copy_only=False)
    for task in config.tasks:
        if task.name in said.scores:
            both = said.scores[task.name], happened[task.name]
            by_segment = {name: Rate.of(*(of[names == name] for of in both)) for name in np.unique(names).tolist()}
            rates: dict[str | None, Rate] = {None: Rate.of(*both)} | by_segment
            yield from _checks(config, "calibration", task, rates, config.monitoring.calibration)


def of_served(config: Recommender, tables: Tables, as_of: date) -> Iterator[Check]:
    """The same of the scores that served a day: each shown pair of user and item that had one.

    A task's day is the newest whose labels are known on `as_of`: that day itself, unless labels take days. Left out are
    tasks that no published score is of.
    """
    published = tables.dataset("scores").schema.names if tables.exists("scores") else []
    for task in config.tasks:
        if f"score_{task.name}" not in published:
            continue
        day = as_of - timedelta(days=labels.delay_days(config, task))
        if day in tables.days("examples") and day - timedelta(days=1) in tables.days("scores"):
            rows = shown(config, tables, day, task)
            said, happened = (rows.column(name).to_numpy() for name in ("said", "happened"))
            names = rows.column("segment").to_numpy(zero_copy_only=False)
            by_segment = {n: Rate.of(said[names == n], happened[names == n]) for n in np.unique(names).tolist()}
            rates: dict[str | None, Rate] = {None: Rate.of(said, happened)} | by_segment
            yield from _checks(config, "served", task, rates, config.monitoring.served)


def _checks(
    config: Recommender, group: Group, task: TaskSource, rates: Mapping[str | None, Rate], limits: Limits
) -> Iterator[Check]:
    what = "published scores" if group == "served" else "predictions"
    for segment, rate in rates.items():
        where = f" in {segment}" if segment is not None else ""
        times = f"{rate.ratio:.2f} times what happened" if rate.ratio is not None else "though none happened"
        text = f"{what} of {task.name}{where} sum up to {rate.predicted:,.0f}, {times}, on {rate.rows:,} rows"
        is_sure = rate.rows >= config.monitoring.min_rows
        if rate.rows:
            apparent = factor(rate.ratio)
            yield Check(group, task.name, text, rate.ratio, limits, rate.off, apparent, segment, rate.rows, is_sure)


def shown(config: Recommender, tables: Tables, day: date, task: TaskSource) -> pa.Table:
    """The rows of a day that had a score from the day before: `said`, `happened` (null where not known), `segment`.

    With several contexts, a row is of that one whose columns it has, of those in which they differ.
    """
    user, item = sql.name(config.columns.user), sql.name(config.columns.item)
    said = f"s.{sql.name(f'score_{task.name}')}"
    with sql.connect(spill=config.workspace / "scratch") as connection:
        sql.view(connection, "examples", tables.dataset("examples"), pc.field("ds") == day)
        sql.view(connection, "scores", tables.dataset("scores"), pc.field("ds") == day - timedelta(days=1))
        return sql.fetch(
            connection,
            f"SELECT CAST({said} AS DOUBLE) AS said, s.segment, "
            f"{_happened(config, task)} AS happened FROM examples AS e JOIN scores AS s "
            f"ON CAST(e.{user} AS VARCHAR) = CAST(s.user_id AS VARCHAR) "
            f"AND CAST(e.{item} AS VARCHAR) = CAST(s.item_id AS VARCHAR) "
            f"WHERE {said} IS NOT NULL AND e.event_day = e.ds AND ({_in_context(config)})",
        )


def _happened(config: Recommender, task: TaskSource) -> str:
    """An SQL expression: a task's label; 0 where one that it is given did not happen."""
    label = f"CAST(e.{sql.name(f'label_{task.name}')} AS DOUBLE)"
    parent = next((other for other in config.tasks if other.name == task.given), None)
    return label if parent is None else f"CASE WHEN {_happened(config, parent)} = 0 THEN 0.0 ELSE {label} END"


def _in_context(config: Recommender) -> str:
    """An SQL condition: the row is of the score's context."""
    contexts = config.scoring.named_contexts
    columns = sorted({column for values in contexts.values() for column in values})
    differing = [c for c in columns if len({values.get(c) for values in contexts.values()}) > 1]
    conditions = []
    for name, values in contexts.items():
        same = [f"CAST(e.{sql.name(c)} AS VARCHAR) = {sql.text(_spelled(values[c]))}" for c in differing if c in values]
        conditions.append(" AND ".join([f"s.context = {sql.text(name)}", *same]))
    return " OR ".join(f"({condition})" for condition in conditions)


def _spelled(value: str | int | float) -> str:
    """As tables have it: 1.0 is 1."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)
