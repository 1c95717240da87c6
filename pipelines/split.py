"""Which examples are trained on, validated on and tested on; rows are read a block at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import labels
from pipelines.config import ColumnSplit, KeptNegatives, RandomSplit, Recommender, TimeSplit
from pipelines.tables import Tables
from recsys_moe.config import ModelConfig
from recsys_moe.errors import UserError

Part = Literal["train", "validation", "test"]
_PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Replay:
    """Of the days through one, which were learned from before, the share of rows that are learned from again."""

    through: date
    share: float


@dataclass(frozen=True)
class Split:
    """The days that a training for `as_of` looks at, and which of their rows belong to which part.

    `days` are those whose labels are all known on `as_of`: with labels that are late, not the last ones.
    """

    config: Recommender
    as_of: date
    days: tuple[date, ...]
    replay: Replay | None = None

    @classmethod
    def of(cls, config: Recommender, days: Iterable[date], as_of: date) -> Split:
        """The split of the prepared `days` up to and with `as_of`.

        Raises:
            UserError: `as_of` is not prepared, or there are too few days.
        """
        known = sorted(day for day in days if day <= as_of)
        if as_of not in known:
            raise UserError(f"{as_of}: has no examples; run `recsys-moe ingest` and `prepare` for it first")
        ripe = [day for day in known if labels.all_ripe(config, day, as_of)]
        needed = days_needed(config)
        if len(ripe) < needed:
            late = ", tasks.label_delay_days" if len(ripe) < len(known) else ""
            raise UserError(
                f"{as_of}: training needs at least {needed} prepared days with known labels (evaluation.split{late}), "
                f"there are {len(ripe)}"
            )
        split = config.evaluation.split
        if isinstance(split, TimeSplit) and split.train_days:
            ripe = ripe[-(split.train_days + split.validation_days + split.test_days) :]
        return cls(config, as_of, tuple(ripe))

    def days_of(self, *parts: Part) -> tuple[date, ...]:
        """The days that may hold rows of some parts."""
        split = self.config.evaluation.split
        if not isinstance(split, TimeSplit):
            return self.days
        bounds = {
            "train": self.days[: -split.validation_days - split.test_days],
            "validation": self.days[-split.validation_days - split.test_days : -split.test_days],
            "test": self.days[-split.test_days :],
        }
        return tuple(day for part in _PARTS if part in parts for day in bounds[part])

    def rows(
        self, tables: Tables, *parts: Part, columns: Sequence[str] | None = None, coded: Collection[str] = ()
    ) -> Iterator[pa.Table]:
        """The examples of some parts, a block at a time, oldest day first: all columns, or some; `coded` text ones as
        dictionaries."""
        yield from self._read(tables, parts, columns, coded)

    def rows_to_learn(
        self, tables: Tables, *parts: Part, columns: Sequence[str] | None = None, coded: Collection[str] = ()
    ) -> Iterator[pa.Table]:
        """The examples of some parts that a model is fitted to: all, or `sampling.keep_negatives`'s share of them.

        Of days that were learned from before, a sample to `replay`. What a model is judged by is never sampled: read
        that with `rows`.
        """
        yield from self._read(tables, parts, columns, coded, self.config.sampling.keep_negatives, self.replay)

    def _read(
        self,
        tables: Tables,
        parts: tuple[Part, ...],
        columns: Sequence[str] | None,
        coded: Collection[str],
        sampled: KeptNegatives | None = None,
        replay: Replay | None = None,
    ) -> Iterator[pa.Table]:
        config, is_drawn = self.config, not isinstance(self.config.evaluation.split, TimeSplit)
        needed = None if columns is None else list(dict.fromkeys([*columns, *_deciding(config, replay)]))
        for day in self.days_of(*parts):
            share = replay.share if replay is not None and day <= replay.through else 1.0
            if not share:
                continue
            for block in tables.read_blocks("examples", day, needed, coded):
                rows = pa.Table.from_batches([block])
                if is_drawn:
                    rows = rows.filter(pa.array(_drawn(config, rows, parts)))
                if sampled is not None:
                    rows = rows.filter(pa.array(_kept(config, sampled, rows)))
                if share < 1.0:
                    rows = sample(config, rows, share, self.as_of)
                yield rows if columns is None else rows.select(columns)


def trained_columns(config: Recommender, model: ModelConfig) -> dict[str, list[str]]:
    """What `Split.rows` is to read for training a model: its columns, labels and weights; categorical text coded."""
    weight = ["row_weight"] if config.columns.weight else []
    return {
        "columns": [*model.columns, *(f"label_{task.name}" for task in model.tasks), *weight],
        "coded": [feature.name for feature in model.features if feature.kind == "categorical"],
    }


def batches_of(blocks: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """The same rows, as an encoder is fitted to them."""
    for block in blocks:
        yield from block.to_batches()


def days_needed(config: Recommender) -> int:
    """How many prepared days a training takes at least."""
    split = config.evaluation.split
    return split.validation_days + split.test_days + 1 if isinstance(split, TimeSplit) else 1


def sample(config: Recommender, rows: pa.Table, share: float, as_of: date) -> pa.Table:
    """A share of the rows, drawn by their content: other ones for each `as_of`."""
    return rows.filter(pa.array(_draws(config, rows, f"replay{as_of.toordinal():010d}") < share))


def _deciding(config: Recommender, replay: Replay | None) -> list[str]:
    """The columns that decide which part a row belongs to, and whether it is learned from."""
    split = config.evaluation.split
    sampled = config.sampling.keep_negatives
    column = [split.column] if isinstance(split, ColumnSplit) else []
    column += [f"label_{sampled.task}"] if sampled is not None else []
    is_drawn = isinstance(split, RandomSplit) or sampled is not None or replay is not None
    return column + ([config.columns.user, config.columns.item, "event_time"] if is_drawn else [])


def _drawn(config: Recommender, rows: pa.Table, parts: tuple[Part, ...]) -> NDArray[np.bool_]:
    """[rows] whether each is in one of the parts, by its own content: the order of rows does not matter."""
    split = config.evaluation.split
    if isinstance(split, ColumnSplit):
        values = rows.column(split.column).to_pandas()
        validation, test = values.isin(split.validation).to_numpy(), values.isin(split.test).to_numpy()
    else:
        assert isinstance(split, RandomSplit)
        share = _draws(config, rows, f"{split.seed:016d}")
        test = share < split.test
        validation = ~test & (share < split.test + split.validation)
    found = {"train": ~test & ~validation, "validation": validation, "test": test}
    chosen: NDArray[np.bool_] = np.logical_or.reduce([found[part] for part in parts])
    return chosen


def _kept(config: Recommender, sampled: KeptNegatives, rows: pa.Table) -> NDArray[np.bool_]:
    """[rows] whether each is learned from: all but those whose label is 0 and whose draw is too high."""
    is_negative = rows.column(f"label_{sampled.task}").to_pandas().eq(0.0).to_numpy()
    # A key of its own: with the split's, rows that it put into one part would be drawn alike here.
    kept: NDArray[np.bool_] = ~is_negative | (_draws(config, rows, f"keep{sampled.seed:012d}") < sampled.share)
    return kept


def _draws(config: Recommender, rows: pa.Table, key: str) -> NDArray[np.float64]:
    """[rows] a number from 0 to 1 by a row's user, item and time, another with every `key` of 16 characters."""
    values = rows.select([config.columns.user, config.columns.item, "event_time"]).to_pandas()
    hashed = pd.util.hash_pandas_object(values, index=False, hash_key=key).to_numpy()
    return hashed / 2.0**64
