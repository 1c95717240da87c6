"""Label rates by day and by segment, with how sure they are; and what one feature alone tells of a label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipelines import leaks, sql
from pipelines.config import DERIVED_COLUMNS, Recommender, TaskSource
from pipelines.leaks import Alone
from pipelines.profile.relations import Relations
from recsys_moe.config import BehaviouralSegments, BucketSegments, ColumnSegments, Feature

UNKNOWN = "unknown"
_Z = 1.959964
"""Standard deviations either side of the mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Rate:
    """The mean of a label over `rows` rows where it is known, whose sum it is `total` of."""

    rows: int = 0
    total: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.rows + other.rows, self.total + other.total)

    @property
    def mean(self) -> float | None:
        """None where no label is known."""
        return self.total / self.rows if self.rows else None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true rate of a binary label lies with 95 % confidence (Wilson 1927)."""
        if not self.rows:
            return 0.0, 1.0
        p, n = self.total / self.rows, self.rows
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Rates:
    """By (day, segment): the rows, and by task the rate. One segment where the YAML has none to tell apart."""

    rows: dict[tuple[date, str], int]
    of: dict[str, dict[tuple[date, str], Rate]]

    def by_day(self, task: str) -> dict[date, Rate]:
        """The rate of each day."""
        days: dict[date, Rate] = {}
        for (day, _), rate in self.of[task].items():
            days[day] = days.get(day, Rate()) + rate
        return days

    def over(self, task: str, days: tuple[date, ...], segment: str | None = None) -> Rate:
        """The rate over some days, of one segment or of all."""
        chosen = (rate for (day, name), rate in self.of[task].items() if day in days and segment in (None, name))
        return sum(chosen, Rate())

    def segments(self, days: tuple[date, ...]) -> dict[str, int]:
        """The rows of each segment over some days, most first."""
        rows: dict[str, int] = {}
        for (day, name), number in self.rows.items():
            if day in days:
                rows[name] = rows.get(name, 0) + number
        return dict(sorted(rows.items(), key=lambda pair: (-pair[1], pair[0])))


def rates(relations: Relations) -> Rates:
    """Count labels by day and segment, a day at a time."""
    tasks = relations.config.tasks
    rows: dict[tuple[date, str], int] = {}
    of: dict[str, dict[tuple[date, str], Rate]] = {task.name: {} for task in tasks}
    for day in relations.span.every:
        for segment, number, *sums in _of_day(relations, day, tasks):
            rows[day, segment] = number
            for task, known, total in zip(tasks, sums[::2], sums[1::2], strict=True):
                of[task.name][day, segment] = Rate(known, total)
    return Rates(rows, of)


def _of_day(relations: Relations, day: date, tasks: tuple[TaskSource, ...]) -> list[tuple[Any, ...]]:
    sums = ", ".join(
        f"count({label}), coalesce(sum({label}), 0.0)" for label in (sql.name(f"label_{t.name}") for t in tasks)
    )
    segments = relations.config.segments
    names = segments.columns if segments and has_segments(relations.config) else ()
    log = relations.labelled(day, names)
    query = f"SELECT {_segment(relations)} AS __segment, count(*), {sums} FROM {log} GROUP BY __segment"
    return relations.connection.execute(query).fetchall()


def has_segments(config: Recommender) -> bool:
    """Whether a row's segment can be read off the row; one by behaviour is known to a trained model alone."""
    return config.segments is not None and not isinstance(config.segments.by, BehaviouralSegments)


def _segment(relations: Relations) -> str:
    """An SQL expression: the name of a row's segment, as models call it."""
    segments = relations.config.segments
    if segments is None or not has_segments(relations.config):
        return sql.text("all")
    by = segments.by
    if isinstance(by, ColumnSegments):
        name = relations.value_of(by.column)
    elif isinstance(by, BucketSegments):
        name = _bucket(f"TRY_CAST({relations.value_of(by.column)} AS DOUBLE)", by.bins)
    else:
        name = f" || {sql.text(':')} || ".join(relations.value_of(column) for column in by.columns)
    return f"coalesce({name}, {sql.text(UNKNOWN)})"


def _bucket(value: str, bins: tuple[float, ...]) -> str:
    edges = [f"{edge:g}" for edge in bins]
    names = [f"under {edges[0]}", *(f"{low}..{high}" for low, high in pairwise(edges))]
    rules = " ".join(f"WHEN {value} < {edge!r} THEN {sql.text(name)}" for edge, name in zip(bins, names, strict=True))
    return f"CASE {rules} WHEN {value} >= {bins[-1]!r} THEN {sql.text(f'from {edges[-1]}')} END"


def alone(relations: Relations) -> list[Alone]:
    """The AUC of each label by each feature that is read off a row alone, over a sample of the days."""
    config, span = relations.config, relations.span
    features = list(_features(relations))
    labels = {task.name: f"label_{task.name}" for task in config.tasks if task.kind == "binary"}
    total = sql.value(relations.connection, "SELECT count(*) FROM log WHERE __now")
    drawn = leaks.sampled([config.columns.user, config.columns.item, "event_time"], total)
    user = f"CAST({sql.name(config.columns.user)} AS VARCHAR) AS __user"
    picked = ", ".join([user, *(_typed(relations, feature) for feature in features), *map(sql.name, labels.values())])
    days = []
    for day in span.days:
        log = relations.labelled(day, [feature.name for feature in features])
        days.append(sql.fetch(relations.connection, f"SELECT {picked} FROM {log} WHERE {drawn}"))
    return leaks.rank_alone(pa.concat_tables(days), features, labels, "__user")


def _features(relations: Relations) -> Iterator[Feature]:
    named = {f.name for f in relations.config.features.categorical}
    derived = [name for name in DERIVED_COLUMNS if name in named - {column.name for column in relations.columns}]
    for column in relations.columns:
        if column.name in named or column.kind != "categorical":
            yield Feature(name=column.name, kind=column.kind, side="context", from_keys=(column.name,))
    for name in derived:
        yield Feature(name=name, kind="categorical", side="context", from_keys=(name,))


def _typed(relations: Relations, feature: Feature) -> str:
    """An SQL expression: a feature's value, of the kind that it has."""
    value = relations.value_of(feature.name)
    if feature.kind == "numeric":
        value = f"TRY_CAST({value} AS DOUBLE)"
    elif feature.kind == "multivalued":
        value = f"string_split({value}, {sql.text(relations.config.features.separator)})"
    return f"{value} AS {sql.name(feature.name)}"
