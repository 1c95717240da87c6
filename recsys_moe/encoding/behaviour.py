"""Groups of users who behave alike: k-means over their history, fitted on a sample, found again with numpy alone."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys_moe.config import BehaviouralSegments
from recsys_moe.encoding.columns import as_numbers
from recsys_moe.encoding.moments import Moments, Scaler

SAMPLE_ROWS = 100_000
"""Rows that the groups are fitted on: a group of 2000 rows in 10 million still has 20 of them."""
_STARTS = 4

Points = NDArray[np.float64]
"""[rows, D]: the columns' values, counts first."""


@dataclass(frozen=True)
class Behaviour:
    """Groups of rows whose users' history is alike, the largest first.

    Attributes:
        by: the D columns, counts first.
        scalers: [D].
        names: [K], `behaviour 1` is the largest.
        centroids: [K, D], in scaled values. K is `by.k`, or less where there are fewer distinct rows than that.
    """

    by: BehaviouralSegments
    scalers: tuple[Scaler, ...]
    names: tuple[str, ...]
    centroids: Points

    def keys(self, block: pa.RecordBatch) -> pa.Array:
        """The name of each row's group, null where the user has no history.

        Raises:
            UserError: a column is missing or holds no numbers.
        """
        points, has_history = history_of(self.by, block)
        if not self.names:
            return pa.nulls(block.num_rows, pa.string())
        group = nearest(scaled(points, self.scalers), self.centroids)
        return pa.array(self.names, pa.string()).take(pa.array(group, mask=~has_history))

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads; numbers keep every digit."""
        scalers = {column: asdict(scaler) for column, scaler in zip(self.by.columns, self.scalers, strict=True)}
        return {"scalers": scalers, "centroids": dict(zip(self.names, self.centroids.tolist(), strict=True))}

    @classmethod
    def from_json(cls, by: BehaviouralSegments, values: dict[str, Any]) -> Self:
        """What `as_json` gave.

        Raises:
            KeyError, ValueError: it is of other columns, or damaged.
        """
        scalers = tuple(Scaler(**values["scalers"][column]) for column in by.columns)
        centroids = np.array(list(values["centroids"].values()), np.float64).reshape(-1, len(by.columns))
        return cls(by, scalers, tuple(values["centroids"]), centroids)


class BehaviourSample:
    """A uniform sample of the rows that have a history: one pass, bounded memory, however the rows are cut."""

    def __init__(self, by: BehaviouralSegments, limit: int = SAMPLE_ROWS) -> None:
        self.by, self.limit, self.rows = by, limit, 0
        self._generator = np.random.default_rng(by.seed)
        # The rows of the smallest draws are the sample, so a draw above the limit-th smallest can be dropped at once.
        self._threshold, self._pending = 1.0, 0
        self._parts = [(np.zeros(0), np.zeros((0, len(by.columns))))]

    def add(self, block: pa.RecordBatch) -> None:
        points, has_history = history_of(self.by, block)
        points = points[has_history]
        draws = self._generator.random(len(points))
        self.rows += len(points)
        kept = draws < self._threshold
        self._parts.append((draws[kept], points[kept]))
        self._pending += int(kept.sum())
        if self._pending > self.limit:
            self._compact()

    def fitted(self) -> tuple[Behaviour, NDArray[np.float64]]:
        """The groups, and how many rows each has of all that were added: [K], scaled up from the sample."""
        self._compact()
        _, points = self._parts[0]
        scalers = tuple(_scaler(column) for column in points.T)
        points = scaled(points, scalers)
        centroids, sizes = _groups(points, self.by.k, self.by.seed)
        names = tuple(f"behaviour {number}" for number in range(1, len(centroids) + 1))
        scale = self.rows / max(len(points), 1)
        return Behaviour(self.by, scalers, names, centroids), sizes.astype(np.float64) * scale

    def _compact(self) -> None:
        """Keep the rows of the smallest draws, in the order of their draws."""
        draws, points = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        order = np.argsort(draws)[: self.limit]
        self._parts, self._pending = [(draws[order], points[order])], 0
        if len(order) == self.limit:
            self._threshold = float(draws[order[-1]])


def history_of(by: BehaviouralSegments, block: pa.RecordBatch) -> tuple[Points, NDArray[np.bool_]]:
    """Values of the columns, counts as their logarithm, and which rows have any history: a count above 0."""
    counts = [np.log1p(np.maximum(np.nan_to_num(as_numbers(block, column)), 0.0)) for column in by.counts]
    rates = [as_numbers(block, column) for column in by.rates]
    return np.column_stack([*counts, *rates]), np.any([count > 0.0 for count in counts], axis=0)


def scaled(points: Points, scalers: tuple[Scaler, ...]) -> Points:
    return np.column_stack([scaler.scaled(column) for scaler, column in zip(scalers, points.T, strict=True)])


def nearest(points: Points, centroids: Points) -> NDArray[np.int64]:
    """Which centroid is nearest to each point; the first of equals.

    The plain sum of squares, centroid by centroid: a matrix product would be quicker, but its rounding depends on how
    many rows it is given, and a row must get the same group alone as among others.
    """
    distances = [np.square(points - centroid).sum(axis=1) for centroid in centroids]
    first: NDArray[np.int64] = np.argmin(distances, axis=0)
    return first


def _scaler(values: NDArray[np.float64]) -> Scaler:
    moments = Moments()
    moments.add(values)
    return moments.scaler()


def _groups(points: Points, k: int, seed: int) -> tuple[Points, NDArray[np.int64]]:
    """Centroids [K, D], K at most k, and how many points each has, the largest first and equals by their centroid."""
    if not len(points):
        return points, np.zeros(0, np.int64)
    found = _k_means(points, min(k, len(points)), seed)
    sizes = np.bincount(nearest(points, found), minlength=len(found))
    order = np.lexsort((*found.T[::-1], -sizes))
    order = order[sizes[order] > 0]
    return found[order], sizes[order]


def _k_means(points: Points, k: int, seed: int) -> Points:
    # Only fitting needs scikit-learn: a served model does not have it.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # It warns of fewer distinct points than k. The centroids that are left over have no points, and go.
        warnings.simplefilter("ignore", ConvergenceWarning)
        centroids: Points = KMeans(k, n_init=_STARTS, random_state=seed).fit(points).cluster_centers_
    return centroids
