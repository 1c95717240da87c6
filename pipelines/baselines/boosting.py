"""Gradient boosting over the same features: what trees make of numbers, history and columns of few values.

Each task has trees of its own (scikit-learn's histogram booster, after LightGBM: Ke et al. 2017). They cannot use an id
of thousands of values, and know a user or an item by its history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from pipelines.baselines.sample import Floats, Sample, Scores, with_segment
from recsys_moe.config import Task
from recsys_moe.encoding import Encoder
from recsys_moe.encoding.columns import as_numbers, block_of
from recsys_moe.encoding.fitting import numeric_features, sparse_features
from recsys_moe.errors import UserError

TREES, LEAVES, LEARNING_RATE = 100, 31, 0.1
"""At most so many trees: fewer where a tenth of the rows, held out, is predicted no better."""
MOST_NAMES = 255
"""Categorical features of at most so many values are read, as their numbers in the vocabulary: the booster's finest
bins. Its splits by sets of names were worse (docs/baselines.md)."""
MOST_IN_LISTS = 32
"""Multivalued features of at most so many values are read, as a yes or no for each."""

_Trees: TypeAlias = HistGradientBoostingClassifier | HistGradientBoostingRegressor


@dataclass(frozen=True)
class Bins:
    """Equal-mass bins of each column, the booster's finest: made once for all tasks.

    scikit-learn would make them for each fit, and where rows have weights look for the 255 bounds of a column one by
    one: minutes for a few hundred columns.

    Attributes:
        bounds: of each column, ascending.
    """

    bounds: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(cls, inputs: NDArray[np.float32]) -> Self:
        """Bounds between quantiles of what is there; of few values, between all of them."""
        return cls(tuple(_bounds(column[~np.isnan(column)]) for column in inputs.T))

    def __call__(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """[rows, columns] the bin of each number; NaN stays."""
        binned = np.empty_like(inputs, order="F")
        for number, (column, bounds) in enumerate(zip(inputs.T, self.bounds, strict=True)):
            binned[:, number] = np.where(np.isnan(column), np.nan, np.searchsorted(bounds, column, side="right"))
        return binned


def _bounds(values: NDArray[np.float32]) -> NDArray[np.float32]:
    distinct = np.unique(values)
    if len(distinct) > MOST_NAMES:
        distinct = np.unique(np.quantile(values, np.linspace(0, 1, MOST_NAMES), method="lower"))
    return ((distinct[1:] + distinct[:-1]) / 2).astype(np.float32)  # what lies between falls to the nearer one


@dataclass(frozen=True)
class Boosting:
    """Trees for each task; a number, the mean, where all labels but one at most are the same.

    Attributes:
        encoder: numbers the names, and tells which features have few enough of them.
        segments: what knows a row's segment.
        bins: what trees read of a number.
    """

    encoder: Encoder
    segments: Encoder
    bins: Bins
    trees: Mapping[str, _Trees | float]
    name = "boosting"

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Fit trees to a sample.

        Raises:
            UserError: there is no feature that they can read.
        """
        raw = _inputs(sample.encoder, sample.learned)
        if not raw.shape[1]:
            raise UserError(
                f"no feature is a number, has {MOST_NAMES} values or fewer, or lists {MOST_IN_LISTS} at most"
            )
        bins = Bins.of(raw)
        inputs, trees = bins(raw), {}
        for task in sample.tasks:
            known = np.isfinite(sample.labels[task.name]) & (sample.weights > 0)
            labels, weights = sample.labels[task.name][known], sample.weights[known]
            trees[task.name] = _fitted(task, inputs[known], labels, weights)
        return cls(sample.encoder, sample.beside.encoder, bins, trees)

    def predict(self, table: pa.Table) -> Scores:
        """What it says of raw rows, by task."""
        inputs = self.bins(_inputs(self.encoder, with_segment(self.segments, table)))
        return {task: _said(trees, inputs) for task, trees in self.trees.items()}


def _fitted(task: Task, inputs: NDArray[np.float32], labels: Floats, weights: Floats) -> _Trees | float:
    counts = np.unique(labels, return_counts=True)[1]
    is_value = task.kind == "regression"
    if len(counts) < 2 or (not is_value and counts.min() < 2):  # the rows held out need one of each answer, too
        return float(np.average(labels, weights=weights)) if len(labels) else 0.0
    kind = HistGradientBoostingRegressor if is_value else HistGradientBoostingClassifier
    trees = kind(
        max_iter=TREES,
        max_leaf_nodes=LEAVES,
        learning_rate=LEARNING_RATE,
        random_state=0,
    )
    return trees.fit(inputs, labels, weights)


def _said(trees: _Trees | float, inputs: NDArray[np.float32]) -> Floats:
    if isinstance(trees, float):
        return np.full(len(inputs), trees)
    is_value = isinstance(trees, HistGradientBoostingRegressor)
    said: Floats = trees.predict(inputs) if is_value else trees.predict_proba(inputs)[:, 1]
    return said


def _inputs(encoder: Encoder, table: pa.Table) -> NDArray[np.float32]:
    """[rows, columns] numbers (NaN where missing), names by their numbers, and a yes or no for each name of a list."""
    block, encoded = block_of(table, 0, table.num_rows), encoder.encode(table)
    sizes = zip(sparse_features(encoder.config), encoder.vocab_sizes, strict=True)
    columns = [as_numbers(block, feature.name) for feature in numeric_features(encoder.config)]
    for feature, size in sizes:
        indices = encoded.column(f"index_{feature.name}")
        if feature.kind == "categorical" and size <= MOST_NAMES:
            columns.append(indices.to_numpy())
        elif feature.kind == "multivalued" and size <= MOST_IN_LISTS:
            columns.extend(_one_hot(indices, size))
    empty = np.zeros((0, table.num_rows), np.float32)
    return np.concatenate([empty, *(column[None].astype(np.float32) for column in columns)]).T


def _one_hot(lists: pa.ChunkedArray, size: int) -> NDArray[np.bool_]:
    """[size, rows] whether a row's list of numbers has each of them."""
    lengths = pc.list_value_length(lists).to_numpy()
    found = np.zeros((size, len(lists)), np.bool_)
    found[pc.list_flatten(lists).to_numpy(), np.repeat(np.arange(len(lists)), lengths)] = True
    return found
