"""What one pass over the training window gathers: counts of values, moments of numbers, a sample of behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_moe.config import BehaviouralSegments, Feature, ModelConfig, Segments
from recsys_moe.encoding.behaviour import Behaviour, BehaviourSample
from recsys_moe.encoding.columns import (
    canonical_dictionary,
    flat_list,
    optional_numbers,
    raw_column,
    transformed,
    whole_array,
)
from recsys_moe.encoding.moments import Moments, Scaler
from recsys_moe.encoding.segments import UNKNOWN, segment_keys

COMPACT_ROWS = 1 << 20


def sparse_features(config: ModelConfig) -> list[Feature]:
    """Categorical and multivalued features, in the config's order: the F of every shape."""
    return [f for f in config.features if f.kind != "numeric"]


def vocabulary_features(config: ModelConfig) -> list[Feature]:
    """Those of the sparse features that have a vocabulary: the others are hashed."""
    return [f for f in sparse_features(config) if f.hash_buckets is None]


def numeric_features(config: ModelConfig) -> list[Feature]:
    """Numeric features, in the config's order."""
    return [f for f in config.features if f.kind == "numeric"]


class Counts:
    """Counts of distinct values over many batches."""

    def __init__(self) -> None:
        self._parts = [pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})]
        self._pending = 0

    def add(self, values: pa.DictionaryArray) -> None:
        """Count values; a dictionary may hold one that no row has, one twice, and null."""
        places = values.indices.drop_null().to_numpy()
        counts = pa.array(np.bincount(places, minlength=len(values.dictionary)))
        counted = pa.table({"value": values.dictionary, "count": counts})
        is_seen = pc.and_(pc.is_valid(values.dictionary), pc.greater(counts, 0))
        # Mostly all are: of a whole row group of Parquet, say. To copy them costs more than to count them.
        self._parts.append(counted if pc.all(is_seen).as_py() else counted.filter(is_seen))
        self._pending += len(self._parts[-1])
        if self._pending > COMPACT_ROWS:
            self._parts, self._pending = [self._total()], 0

    def frequent(self, minimum: int) -> pa.Array:
        """Values seen at least `minimum` times, the most frequent first, equals by value."""
        total = self._total()
        total = total.filter(pc.greater_equal(total["count"], minimum))
        return whole_array(total.sort_by([("count", "descending"), ("value", "ascending")]), "value")

    def _total(self) -> pa.Table:
        grouped = pa.concat_tables(self._parts).group_by("value").aggregate([("count", "sum")])
        return grouped.rename_columns(["value", "count"])


class SegmentCounts:
    """Which segments have rows enough: their keys counted, or, for behaviour, its groups fitted on a sample.

    Where groups of behaviour are known already, these are counted.
    """

    def __init__(self, segments: Segments, behaviour: Behaviour | None) -> None:
        self._config, self._behaviour, self._counts = segments, behaviour, Counts()
        self._sample = None
        if isinstance(segments.by, BehaviouralSegments) and behaviour is None:
            self._sample = BehaviourSample(segments.by)

    def add(self, batch: pa.RecordBatch) -> None:
        if self._sample is not None:
            self._sample.add(batch)
            return
        for keys in segment_keys(self._config, batch, self._behaviour):
            self._counts.add(keys.dictionary_encode())

    def result(self) -> tuple[list[str], Behaviour | None]:
        """Names of the segments with at least `min_rows` rows, the largest first, and the groups of behaviour."""
        minimum = self._config.min_rows
        if self._sample is None:
            names = self._counts.frequent(minimum).to_pylist()
            return [name for name in names if name != UNKNOWN], self._behaviour
        behaviour, rows = self._sample.fitted()
        return [name for name, count in zip(behaviour.names, rows, strict=True) if count >= minimum], behaviour


@dataclass(frozen=True)
class Found:
    """What was found in the training window.

    Attributes:
        vocabularies: by feature, the values that were seen often enough, the most frequent first.
        scalers: by numeric feature, where it had a value at all.
        segment_names: `unknown`, then those with rows enough, the largest first.
        label_means: by task, where it had a label at all.
        behaviour: the groups, where segments are made of them.
    """

    vocabularies: dict[str, pa.Array]
    scalers: dict[str, Scaler]
    segment_names: list[str]
    label_means: dict[str, float]
    behaviour: Behaviour | None


class Fitting:
    """What one pass over the training window gathers; groups of `behaviour` that are known stay as they are."""

    def __init__(self, config: ModelConfig, behaviour: Behaviour | None = None) -> None:
        self.config, self.rows = config, 0
        self._values = {f.name: Counts() for f in vocabulary_features(config)}
        self._moments = {f.name: Moments() for f in numeric_features(config)}
        self._labels = {task.name: Moments() for task in config.tasks}
        self._segments = SegmentCounts(config.segments, behaviour) if config.segments else None

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        for feature in vocabulary_features(self.config):
            many = feature.kind == "multivalued"
            values = flat_list(batch, feature.name)[0] if many else raw_column(batch, feature.name)
            self._values[feature.name].add(canonical_dictionary(values))
        for feature in numeric_features(self.config):
            self._moments[feature.name].add(transformed(batch, feature))
        if self._segments is not None:
            self._segments.add(batch)
        self._add_labels(batch)

    def _add_labels(self, batch: pa.RecordBatch) -> None:
        labels = {t.name: optional_numbers(batch, f"label_{t.name}", None) for t in self.config.tasks}
        numbers = {name: column.to_numpy(zero_copy_only=False).astype(np.float64) for name, column in labels.items()}
        for task in self.config.tasks:
            defined = slice(None) if task.given is None else numbers[task.given] == 1.0
            self._labels[task.name].add(numbers[task.name][defined])

    def result(self) -> Found:
        minimum = {f.name: f.min_count or self.config.min_count for f in vocabulary_features(self.config)}
        segments, behaviour = self._segments.result() if self._segments else ([], None)
        return Found(
            vocabularies={name: counts.frequent(minimum[name]) for name, counts in self._values.items()},
            scalers={name: moments.scaler() for name, moments in self._moments.items() if moments.count},
            segment_names=[UNKNOWN, *segments],
            label_means={name: moments.mean for name, moments in self._labels.items() if moments.count},
            behaviour=behaviour,
        )
