"""The encoder: what was fitted, what it makes of raw rows, and how that becomes tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_moe.batch import Batch
from recsys_moe.config import BehaviouralSegments, Feature, ModelConfig, Side
from recsys_moe.encoding.behaviour import Behaviour
from recsys_moe.encoding.columns import (
    BLOCK_ROWS,
    RawTable,
    block_of,
    canonical_dictionary,
    flat_list,
    optional_numbers,
    raw_column,
    transformed,
    whole_array,
)
from recsys_moe.encoding.fitting import Fitting, numeric_features, sparse_features, vocabulary_features
from recsys_moe.encoding.growing import check_same_shape, grown
from recsys_moe.encoding.hashing import bucket_of
from recsys_moe.encoding.lookup import Lookup
from recsys_moe.encoding.moments import Scaler
from recsys_moe.encoding.segments import UNKNOWN, segment_keys
from recsys_moe.errors import UserError

ROW = "row"
"""Column of a row's place in what is trained on, beside those of `Encoder.schema`."""
ALL_SIDES: tuple[Side, ...] = ("user", "item", "context")


class Encoder:
    """Vocabularies, scalers and segments of one training window."""

    def __init__(
        self,
        config: ModelConfig,
        vocabularies: dict[str, pa.Array],
        scalers: dict[str, Scaler],
        segment_names: Sequence[str] = (UNKNOWN,),
        label_means: dict[str, float] | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        self.config = config
        self.vocabularies = vocabularies
        self.scalers = scalers
        self.segment_names = tuple(segment_names)
        self.label_means = label_means or {}
        self.behaviour = behaviour
        self._lookups: dict[str, Lookup] = {}

    @classmethod
    def fit(cls, config: ModelConfig, batches: Iterable[pa.RecordBatch], previous: Encoder | None = None) -> Self:
        """Fit on raw rows in one pass; memory follows the number of distinct values, not of rows.

        Segments by behaviour are fitted on a sample of `behaviour.SAMPLE_ROWS` rows, and whether one has `min_rows`
        is told from its share of that; with fewer rows than that, all of them are the sample.

        With a `previous` encoder, whose model is to be trained further, every value and segment that it knows keeps
        its index, seen again or not; new ones come after them. Groups of behaviour stay as they are. Scalers are
        those of the new rows, so that inputs stay in range as the data drift; where a number has no value among them,
        that of before.

        Raises:
            UserError: a raw column is missing or cannot be read as its kind; there are no rows; `previous` is of other
                features or segments.
        """
        if previous is not None:
            check_same_shape(previous.config, config)
        fitting = Fitting(config, previous.behaviour if previous else None)
        for batch in batches:
            fitting.add(batch)
        if not fitting.rows:
            raise UserError("the training window has no rows; ingest its days, or widen it")
        found = fitting.result()
        vocabularies, names = found.vocabularies, found.segment_names
        scalers = {f.name: Scaler() for f in numeric_features(config)} | found.scalers
        if previous is not None:
            vocabularies = {name: grown(previous.vocabularies[name], new) for name, new in vocabularies.items()}
            scalers = previous.scalers | found.scalers
            names = list(dict.fromkeys([*previous.segment_names, *names]))
        return cls(config, vocabularies, scalers, names, found.label_means, found.behaviour)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Rows of each sparse feature's table, index 0 (unknown, missing) included."""
        return tuple(1 + (f.hash_buckets or len(self.vocabularies[f.name])) for f in sparse_features(self.config))

    @property
    def num_dense(self) -> int:
        """Width of the dense part."""
        return len(numeric_features(self.config))

    @property
    def num_segments(self) -> int:
        """S, the unknown segment included."""
        return len(self.segment_names)

    @property
    def schema(self) -> pa.Schema:
        """What `encode` returns. A null index is a feature that was left out: an empty bag, all zeros."""
        kinds = {"categorical": pa.int32(), "multivalued": pa.list_(pa.int32())}
        return pa.schema(
            [
                *(pa.field(f"index_{f.name}", kinds[f.kind]) for f in sparse_features(self.config)),
                pa.field("dense", pa.list_(pa.float32(), self.num_dense)),
                pa.field("segment", pa.int32()),
                *(pa.field(f"label_{task.name}", pa.float32()) for task in self.config.tasks),
                pa.field("row_weight", pa.float32()),
            ]
        )

    def encode(self, table: RawTable, sides: Sequence[Side] = ALL_SIDES) -> pa.Table:
        """Encode raw columns; labels (`label_<task>`) and `row_weight` are taken where present.

        With `sides`, only these sides' columns are read, and the others give zeros to the model's input: an item's
        and a user's encoding add up to that of the pair. The segment is the user's and the context's.

        Returns: `schema`, a row for each row of `table`.

        Raises:
            UserError: a raw column is missing or cannot be read as its kind.
        """
        return pa.Table.from_batches(self.encoded_blocks(table, sides), schema=self.schema)

    def encoded_blocks(self, table: RawTable, sides: Sequence[Side] = ALL_SIDES) -> Iterator[pa.RecordBatch]:
        """`encode`, block by block, so that the whole need not be in memory."""
        return (self._encode_block(block_of(table, at), sides) for at in range(0, table.num_rows, BLOCK_ROWS))

    def segment_of(self, table: RawTable) -> tuple[pa.Array, pa.Array]:
        """Name of each row's segment, and its source: `direct`, `parent` (its own was too thin) or `unknown`."""
        index, direct = self._segment_index(block_of(table, 0, table.num_rows))
        names = pa.array(self.segment_names, pa.string()).take(pa.array(index))
        source = np.where(direct, "direct", np.where(index > 0, "parent", UNKNOWN))
        return names, pa.array(source, pa.string())

    def to_batch(self, encoded: RawTable) -> Batch:
        """Tensors of encoded rows, copied, so that the batch outlives what they are read from.

        `Batch.row` is the column `ROW` where there is one, as in what a `Loader` reads, and else counts the rows.
        """
        bags = [_bags(whole_array(encoded, f"index_{f.name}")) for f in sparse_features(self.config)]
        labels, mask = self._labels(encoded)
        dense = whole_array(encoded, "dense").flatten().to_numpy().reshape(encoded.num_rows, self.num_dense)
        segment, weight = (whole_array(encoded, name).to_numpy() for name in ("segment", "row_weight"))
        numbered = ROW in encoded.schema.names
        row = whole_array(encoded, ROW).to_numpy() if numbered else np.arange(encoded.num_rows)
        return Batch(
            values=_joined([values for values, _ in bags], np.int64),
            lengths=_joined([lengths for _, lengths in bags], np.int32),
            dense=torch.tensor(dense),
            segment=torch.tensor(segment, dtype=torch.int64),
            labels=torch.from_numpy(labels),
            label_mask=torch.from_numpy(mask),
            weight=torch.tensor(weight),
            row=torch.tensor(row),
        )

    def save(self, folder: Path) -> None:
        """Write config.json, encoder.json and vocabularies.parquet into an existing folder."""
        (folder / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        fitted: dict[str, Any] = {
            "scalers": {name: asdict(scaler) for name, scaler in self.scalers.items()},
            "segment_names": self.segment_names,
            "label_means": self.label_means,
        }
        if self.behaviour is not None:
            fitted["behaviour"] = self.behaviour.as_json()
        (folder / "encoder.json").write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
        sizes = [len(values) for values in self.vocabularies.values()]
        names = pa.array(np.repeat(np.array(list(self.vocabularies), dtype=object), sizes), pa.string())
        values = pa.concat_arrays([pa.array([], pa.string()), *self.vocabularies.values()])
        pq.write_table(pa.table({"feature": names, "value": values}), folder / "vocabularies.parquet")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            OSError, ValueError, KeyError: the files are not there or are not such files (`checkpoint.load` says so
                in a user's words).
        """
        config = ModelConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
        fitted = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "vocabularies.parquet")
        vocabularies = {
            f.name: whole_array(table.filter(pc.equal(table["feature"], f.name)), "value")
            for f in vocabulary_features(config)
        }
        scalers = {name: Scaler(**values) for name, values in fitted["scalers"].items()}
        by = config.segments.by if config.segments else None
        behaviour = Behaviour.from_json(by, fitted["behaviour"]) if isinstance(by, BehaviouralSegments) else None
        return cls(config, vocabularies, scalers, fitted["segment_names"], fitted["label_means"], behaviour)

    def _encode_block(self, block: pa.RecordBatch, sides: Sequence[Side]) -> pa.RecordBatch:
        indices = [self._indices(block, f, f.side in sides) for f in sparse_features(self.config)]
        segment = np.zeros(block.num_rows, np.int32)
        if "user" in sides or "context" in sides:
            segment, _ = self._segment_index(block)
        labels = [optional_numbers(block, f"label_{task.name}", None) for task in self.config.tasks]
        arrays = [
            *indices,
            self._dense(block, sides),
            pa.array(segment),
            *labels,
            optional_numbers(block, "row_weight", 1.0),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _indices(self, block: pa.RecordBatch, feature: Feature, wanted: bool) -> pa.Array:
        kind = pa.int32() if feature.kind == "categorical" else pa.list_(pa.int32())
        if not wanted:
            return pa.nulls(block.num_rows, kind)
        if feature.kind == "categorical":
            return self._index_of(raw_column(block, feature.name), feature)
        values, lengths = flat_list(block, feature.name)
        known = self._index_of(values, feature).to_numpy()
        # A row without any value keeps one index 0, so that "nothing there" has an embedding of its own.
        starts = np.cumsum(lengths) - lengths
        known = np.insert(known, starts[lengths == 0], 0)
        offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 1))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(known.astype(np.int32)))

    def _index_of(self, values: pa.Array, feature: Feature) -> pa.Array:
        """Indices of raw values; each distinct one is looked up, or hashed, once."""
        spelled = canonical_dictionary(values)
        if feature.hash_buckets is None:
            distinct = self._lookup(feature.name)(spelled.dictionary)
        else:
            distinct = bucket_of(spelled.dictionary, feature.hash_buckets)
        return distinct.take(spelled.indices).fill_null(0)

    def _lookup(self, name: str) -> Lookup:
        """Made when it is needed first: who only asks for sizes never does."""
        if name not in self._lookups:
            self._lookups[name] = Lookup(self.vocabularies[name])
        return self._lookups[name]

    def _dense(self, block: pa.RecordBatch, sides: Sequence[Side]) -> pa.Array:
        features = numeric_features(self.config)
        dense = np.zeros((block.num_rows, len(features)), np.float32)
        for column, feature in enumerate(features):
            if feature.side in sides:
                dense[:, column] = self.scalers[feature.name].scaled(transformed(block, feature))
        if not features:
            return pa.array([[]] * block.num_rows, pa.list_(pa.float32(), 0))
        return pa.FixedSizeListArray.from_arrays(pa.array(dense.reshape(-1)), len(features))

    def _segment_index(self, block: pa.RecordBatch) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        if self.config.segments is None:
            return np.zeros(block.num_rows, np.int32), np.zeros(block.num_rows, np.bool_)
        own, parent = segment_keys(self.config.segments, block, self.behaviour)
        names = pa.array(self.segment_names[1:], pa.string())
        direct, fallen = (look_up(keys, names).to_numpy() for keys in (own, parent))
        return np.where(direct > 0, direct, fallen).astype(np.int32), direct > 0

    def _labels(self, encoded: RawTable) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        columns = [whole_array(encoded, f"label_{task.name}") for task in self.config.tasks]
        labels = [c.fill_null(0.0).to_numpy(zero_copy_only=False) for c in columns]
        masks = [c.is_valid().to_numpy(zero_copy_only=False) for c in columns]
        return np.stack(labels, axis=1), np.stack(masks, axis=1)


def look_up(values: pa.Array, vocabulary: pa.Array) -> pa.Array:
    """Indices from 1; 0 where a value is missing or not in the vocabulary."""
    position = pc.index_in(values, value_set=vocabulary, skip_nulls=True)
    return pc.cast(pc.add(pc.fill_null(position, -1), 1), pa.int32())


def _bags(column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Values and lengths of one encoded feature; a null is an empty bag."""
    if pa.types.is_list(column.type):
        return column.flatten().to_numpy(), pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if not column.null_count:
        return column.to_numpy(), np.ones(len(column), np.int32)
    return column.drop_null().to_numpy(), column.is_valid().to_numpy(zero_copy_only=False).astype(np.int32)


def _joined(parts: list[NDArray[np.int32]], dtype: type[np.int32 | np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype))
