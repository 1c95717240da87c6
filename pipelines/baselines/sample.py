"""What baselines are fitted to: all rows of some users, as many as `evaluation.baselines.max_rows` allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import Recommender
from pipelines.held_out import labels_of
from pipelines.split import Part, Split, batches_of, trained_columns
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import Feature, ModelConfig, Task
from recsys_moe.encoding import Encoder
from recsys_moe.errors import UserError

Floats = NDArray[np.float64]
Scores = dict[str, Floats]
"""By task, [rows]."""

SEGMENT = "__segment"
"""The column with a row's segment. No column of a source may be called so."""
_BINS = 1 << 20
"""Users fall into so many bins by a hash of their ids. The first ones that fit are taken, each as a whole."""
_PARTS: tuple[Part, ...] = ("train", "validation")


@dataclass(frozen=True)
class Sample:
    """Rows to fit baselines to: the columns that a model reads, the ids, labels and the segment.

    Attributes:
        beside: the model that the baselines are measured beside. It says what a row's segment is.
        train, validation: rows of the split's parts; those that the model learned from, of the sampled users.
    """

    config: Recommender
    beside: Ranker
    train: pa.Table
    validation: pa.Table

    @classmethod
    def of(cls, config: Recommender, tables: Tables, split: Split, beside: Ranker) -> Self:
        """Read the rows, in two passes: over the users' ids, then over all columns. Memory holds the sample alone.

        Raises:
            UserError: the first users have more rows than `evaluation.baselines.max_rows`.
        """
        bins = _bins_to_take(config, tables, split)
        read = trained_columns(config, beside.config)
        read["columns"] = list(dict.fromkeys([*read["columns"], config.columns.user, config.columns.item]))

        def rows_of(part: Part) -> list[pa.Table]:
            blocks = split.rows_to_learn(tables, part, **read)
            return [block.filter(pa.array(_bin(config, block) < bins)) for block in blocks]

        train = pa.concat_tables(rows_of("train"), promote_options="permissive")
        validation = pa.concat_tables([train.slice(0, 0), *rows_of("validation")], promote_options="permissive")
        return cls(config, beside, *(with_segment(beside.encoder, part) for part in (train, validation)))

    @cached_property
    def learned(self) -> pa.Table:
        """The rows that a baseline is fitted to in the end."""
        if not self.config.evaluation.refit:
            return self.train
        return pa.concat_tables([self.train, self.validation], promote_options="permissive")

    @cached_property
    def encoder(self) -> Encoder:
        """What encodes rows for baselines, fitted to `learned`."""
        return Encoder.fit(shape_with_segment(self.beside.config), batches_of([self.learned]))

    @property
    def tasks(self) -> Sequence[Task]:
        """What is predicted."""
        return self.beside.config.tasks

    @cached_property
    def labels(self) -> Scores:
        """Of `learned`."""
        return labels_of(self.tasks, self.learned)

    @cached_property
    def weights(self) -> Floats:
        """[rows of `learned`] of each row; negatives that were kept stand for those that were not."""
        weighed = self.config.columns.weight is not None
        weights = self._numbers("row_weight") if weighed else np.ones(self.learned.num_rows)
        sampled = self.beside.config.sampled
        if sampled is None:
            return weights
        return np.where(self._numbers(f"label_{sampled.task}") == 0, weights / sampled.share, weights)

    def _numbers(self, column: str) -> Floats:
        numbers: Floats = self.learned.column(column).to_numpy().astype(np.float64)
        return numbers


def with_segment(encoder: Encoder, table: pa.Table) -> pa.Table:
    """The rows with the column `SEGMENT`: the name of each one's segment, as a fitted encoder knows it."""
    if SEGMENT in table.column_names:
        return table
    names, _ = encoder.segment_of(table)
    return table.append_column(SEGMENT, names)


def shape_with_segment(shape: ModelConfig) -> ModelConfig:
    """A model of the same features without segments: the segment is one of them, like any other."""
    if shape.segments is None:
        return shape
    segment = Feature(name=SEGMENT, kind="categorical", side="context", min_count=1)
    return shape.model_copy(update={"features": (*shape.features, segment), "segments": None})


def _bins_to_take(config: Recommender, tables: Tables, split: Split) -> int:
    rows, most = np.zeros(_BINS, np.int64), config.evaluation.baselines.max_rows
    for block in split.rows_to_learn(tables, *_PARTS, columns=[config.columns.user]):
        rows += np.bincount(_bin(config, block), minlength=_BINS)
    through = np.cumsum(rows)
    bins = int(np.searchsorted(through, most, side="right"))
    if not bins or not through[bins - 1]:
        if not through[-1]:
            raise UserError("evaluation.baselines: there are no rows to learn from; name no models")
        first = int(through[np.argmax(through > 0)])
        raise UserError(
            f"evaluation.baselines.max_rows: {most} rows are fewer than the {first} of a single user; "
            "raise it, or name no models"
        )
    return bins


def _bin(config: Recommender, rows: pa.Table) -> NDArray[np.int64]:
    """[rows] the bin of each row's user."""
    users = rows.select([config.columns.user]).to_pandas()
    hashed = pd.util.hash_pandas_object(users, index=False, hash_key="baselines of all").to_numpy()
    return (hashed % _BINS).astype(np.int64)
