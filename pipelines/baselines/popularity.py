"""How an item does with a segment's users: the baseline that any model must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.baselines.sample import SEGMENT, Floats, Sample, Scores, with_segment
from recsys_moe.encoding import Encoder

Places = NDArray[np.int64]

SMOOTHING = 20.0
"""As many rows does the more general rate count for beside those of an item, or of an item in a segment."""


@dataclass(frozen=True)
class Popularity:
    """The rate of each task by item and segment, smoothed towards the item's, which is smoothed towards the task's.

    So a pair of item and segment that is new has the item's rate, and a new item the task's (a regression's mean).

    Attributes:
        segments: what knows a row's segment.
        item_column: where a row's item stands.
        items: [I] the known items, as text.
        pairs: [P] the known pairs, item × S + segment, sorted.
        item_rates, pair_rates: by task, [I + 1], the last that of unknown items, and [P].
    """

    segments: Encoder
    item_column: str
    items: pa.Array
    pairs: Places
    item_rates: Scores
    pair_rates: Scores
    name = "popularity"

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Count the rows of a sample."""
        segments, column = sample.beside.encoder, sample.config.columns.item
        items = _texts(sample.learned.column(column))
        known = items.unique()
        item = _places(items, known)
        keys = item * segments.num_segments + _places(sample.learned.column(SEGMENT), pa.array(segments.segment_names))
        pairs, pair = np.unique(keys, return_inverse=True)
        of_item, of_pair = {}, {}
        for task, labels in sample.labels.items():
            prior = _smoothed(np.zeros(len(item), np.int64), labels, sample.weights, np.zeros(1), smoothing=0.0)
            of_item[task] = _smoothed(item, labels, sample.weights, np.repeat(prior, len(known) + 1))
            of_pair[task] = _smoothed(pair, labels, sample.weights, of_item[task][pairs // segments.num_segments])
        return cls(segments, column, known, pairs, of_item, of_pair)

    def predict(self, table: pa.Table) -> Scores:
        """What it says of raw rows, by task."""
        rows = with_segment(self.segments, table)
        return self.rates(rows.column(self.item_column), rows.column(SEGMENT))

    def rates(self, items: pa.ChunkedArray, segments: pa.ChunkedArray) -> Scores:
        """Of items [N] in segments [N] of these names, by task."""
        item = _places(_texts(items), self.items)
        segment = _places(segments, pa.array(self.segments.segment_names))
        keys = item * self.segments.num_segments + segment
        pair = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        is_known = self.pairs[pair] == keys
        return {
            task: np.where(is_known, rates[pair], self.item_rates[task][item])
            for task, rates in self.pair_rates.items()
        }


def _texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(pa.string())


def _places(values: pa.ChunkedArray, among: pa.Array) -> Places:
    """Where each value stands in `among`, after its end for nowhere."""
    places: Places = pc.fill_null(pc.index_in(values, value_set=among), len(among)).to_numpy().astype(np.int64)
    return places


def _smoothed(group: Places, labels: Floats, weights: Floats, general: Floats, smoothing: float = SMOOTHING) -> Floats:
    """The mean label of each group [G], and the `general` rates [G] as if they were of `smoothing` rows more."""
    known = np.isfinite(labels)
    rows = np.bincount(group[known], weights[known], minlength=len(general)) + smoothing
    total = np.bincount(group[known], (weights * labels)[known], minlength=len(general)) + smoothing * general
    means: Floats = np.divide(total, rows, out=np.zeros(len(general)), where=rows > 0)
    return means
