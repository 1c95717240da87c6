"""What knows too much: dates that lie after the event, and features that rank a label by themselves.

Labels, and the columns that `columns.outcomes` lists, are refused among the features as the YAML is read. What is left
can be seen in the data alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import sql
from pipelines.catalog import model_features
from pipelines.config import NumericFeature, Recommender
from pipelines.prepare import sides_of
from pipelines.split import Split
from pipelines.tables import Tables
from recsys_moe import metrics
from recsys_moe.config import Feature
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

SAMPLE = 50_000
"""Rows that are looked at, at most."""
_FEWEST = 20
"""Rows of either answer that an AUC needs: one of fewer is high by chance too often."""
_SMOOTHING = 20.0
_FOLDS = 2


@dataclass(frozen=True)
class Alone:
    """How well one feature by itself ranks a task's label: its AUC, over `rows` rows of which some are `positives`."""

    task: str
    feature: str
    auc: float
    rows: int
    positives: int

    def __str__(self) -> str:
        return f"{self.feature} alone ranks {self.task} with an AUC of {self.auc:.3f}"


def check(config: Recommender, tables: Tables, split: Split) -> list[str]:
    """Look for leaks in the training days: refuse what knows the future, and say (and log) what looks like it.

    Raises:
        UserError: a date feature lies after the event too often.
    """
    _check_columns(config, tables)
    refuse_future(config, tables, split)
    warnings = [
        f"{found}, above leaks.warn_auc {config.leaks.warn_auc:g}: is it known before the event?"
        for found in suspicious(config, tables, split)
    ]
    for warning in warnings:
        log.warning(warning)
    return warnings


def _check_columns(config: Recommender, tables: Tables) -> None:
    wanted = {feature.name for feature in model_features(config, sides_of(config, tables))}
    wanted |= {f"label_{task.name}" for task in config.tasks}
    lacking = sorted(wanted - set(tables.dataset("examples").schema.names))
    if lacking:
        raise UserError(
            f"{tables.path('examples')}: has no column {lacking[0]!r}, which the YAML names; prepare its days again"
        )


def refuse_future(config: Recommender, tables: Tables, split: Split) -> None:
    """Refuse a date feature (`days_since`) of which more than `leaks.max_future` lies after the event's day.

    Raises:
        UserError: naming the feature, its column, the share, and an example.
    """
    features = [feature for feature in config.features.numeric if feature.days_since]
    if not features:
        return
    with sql.connect(examples=tables.dataset("examples")) as connection:
        counts = ", ".join(_future_counts(feature) for feature in features)
        query = f"SELECT {counts} FROM examples WHERE {_inside(split)}"
        found = connection.execute(query).fetchone()
    assert found is not None
    for feature, (after, known, day, date) in zip(features, zip(*[iter(found)] * 4, strict=True), strict=True):
        if after > config.leaks.max_future * known:
            raise UserError(
                f"features.numeric.{feature.name}: {feature.days_since} lies after the event's day in "
                f"{after / known:.1%} of {known} training rows ({date} for an event on {day}, say), more than "
                f"leaks.max_future {config.leaks.max_future:.1%}; a model must not know the future: leave the "
                "feature out, or raise leaks.max_future where such dates are known before the event"
            )


def _future_counts(feature: NumericFeature) -> str:
    """SQL expressions: rows with a date after the event, rows with a date, and the worst row's event day and date."""
    days = sql.name(feature.name)
    worst = f"arg_min(event_day, {days})"
    return (
        f"count(*) FILTER ({days} < 0), count({days}), {worst}, CAST({worst} - CAST(min({days}) AS INTEGER) AS VARCHAR)"
    )


def suspicious(config: Recommender, tables: Tables, split: Split) -> list[Alone]:
    """The features that by themselves rank a label with an AUC above `leaks.warn_auc`, highest first.

    Looks at a sample of the training days, the same for the same days.
    """
    features = model_features(config, sides_of(config, tables))
    labels = {task.name: f"label_{task.name}" for task in config.tasks if task.kind == "binary"}
    user, item = config.columns.user, config.columns.item
    columns = list(dict.fromkeys([user, *(feature.name for feature in features), *labels.values()]))
    with sql.connect(examples=tables.dataset("examples")) as connection:
        rows = f"examples WHERE {_inside(split)}"
        total = sql.value(connection, f"SELECT count(*) FROM {rows}")
        drawn = sampled([user, item, "event_time"], total)
        picked = ", ".join(map(sql.name, columns))
        sample = sql.fetch(connection, f"SELECT {picked} FROM {rows} AND {drawn} LIMIT {SAMPLE}")
    return [found for found in rank_alone(sample, features, labels, user) if found.auc > config.leaks.warn_auc]


def sampled(key: Iterable[str], rows: int) -> str:
    """An SQL condition: about `SAMPLE` of so many rows, drawn by a hash of their key."""
    share = min(1.0, SAMPLE / max(rows, 1))
    return f"hash({', '.join(map(sql.name, key))}) <= {int(share * (2**64 - 1))}"


def _inside(split: Split) -> str:
    days = split.days_of("train")
    return f"ds BETWEEN DATE '{days[0]}' AND DATE '{days[-1]}'"


def rank_alone(rows: pa.Table, features: Iterable[Feature], labels: dict[str, str], user: str) -> list[Alone]:
    """The AUC of each binary task's label by each feature alone, highest first.

    Numbers rank by themselves, up or down, a missing one below all. Categories and lists rank by the smoothed rate of
    the label among other users' rows: the ids of a user, or of a row, tell nothing then.

    Args:
        rows: with the columns of the features, the labels (0, 1, null) and the user.
        labels: the column of each task's label.
        user: the column of the user.
    """
    folds = _codes(rows.column(user))
    folds = np.random.default_rng(0).integers(_FOLDS, size=folds.max(initial=0) + 1)[folds]
    answers = {task: _numbers(rows.column(column)) for task, column in labels.items()}
    found = []
    for feature in features:
        values = _values(rows.column(feature.name), feature.kind)
        for task, label in answers.items():
            known = np.isfinite(label)
            positives = int(label[known].sum())
            if min(positives, known.sum() - positives) >= _FEWEST:
                auc = values.auc(label, known, folds)
                found.append(Alone(task, feature.name, auc, int(known.sum()), positives))
    return sorted(found, key=lambda one: -one.auc)


@dataclass(frozen=True)
class _Numbers:
    """[N] numbers, a missing one below all."""

    values: NDArray[np.float64]

    def auc(self, label: NDArray[np.float64], known: NDArray[np.bool_], folds: NDArray[np.int64]) -> float:
        up = metrics.auc(label[known], self.values[known])
        return max(up, 1 - up)


@dataclass(frozen=True)
class _Categories:
    """Values as `codes` [V] from 0, and the rows [V] that they stand in: one a row, or any number."""

    codes: NDArray[np.int64]
    owners: NDArray[np.int64]

    def auc(self, label: NDArray[np.float64], known: NDArray[np.bool_], folds: NDArray[np.int64]) -> float:
        prior = float(label[known].mean())
        used = known[self.owners]
        codes, owners = self.codes[used], self.owners[used]
        rates = np.stack([_rates(codes, label[owners], folds[owners] != fold, prior) for fold in range(_FOLDS)])
        number = np.bincount(owners, minlength=len(label))
        total = np.bincount(owners, rates[folds[owners], codes], minlength=len(label))
        mean = np.divide(total, number, out=np.full(len(label), prior), where=number > 0)
        return metrics.auc(label[known], mean[known])


def _rates(
    codes: NDArray[np.int64], label: NDArray[np.float64], among: NDArray[np.bool_], prior: float
) -> NDArray[np.float64]:
    """[codes] the rate of the label by value, smoothed towards `prior`; values that are not there have just that."""
    size = int(codes.max(initial=0)) + 1
    rows = np.bincount(codes[among], minlength=size)
    hits = np.bincount(codes[among], label[among], minlength=size)
    return np.asarray((hits + _SMOOTHING * prior) / (rows + _SMOOTHING))


def _values(column: pa.ChunkedArray, kind: str) -> _Numbers | _Categories:
    if kind == "numeric":
        return _Numbers(np.nan_to_num(_numbers(column), nan=-np.inf))
    if kind == "multivalued":
        whole = column.combine_chunks()
        owners = np.asarray(pc.list_parent_indices(whole), np.int64)
        return _Categories(_codes(pc.list_flatten(whole)), owners)
    return _Categories(_codes(column), np.arange(len(column)))


def _codes(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """[values] a number from 0 for each different value; missing is one of them."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(whole.dictionary_encode(null_encoding="encode").indices, np.int64)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
