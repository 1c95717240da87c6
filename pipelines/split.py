"""Which examples are trained on, validated on and tested on; rows are read a day at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import ColumnSplit, RandomSplit, Recommender, TimeSplit
from pipelines.tables import Tables
from recsys_moe.errors import UserError

Part = Literal["train", "validation", "test"]
_PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The days that a training for `as_of` looks at, and which of their rows belong to which part."""

    config: Recommender
    days: tuple[date, ...]

    @classmethod
    def of(cls, config: Recommender, days: Iterable[date], as_of: date) -> Split:
        """The split of the prepared `days` up to and with `as_of`.

        Raises:
            UserError: `as_of` is not prepared, or there are too few days.
        """
        known = sorted(day for day in days if day <= as_of)
        if as_of not in known:
            raise UserError(f"{as_of}: has no examples; run `recsys-moe ingest` and `prepare` for it first")
        needed = days_needed(config)
        if len(known) < needed:
            raise UserError(
                f"{as_of}: training needs at least {needed} prepared days (evaluation.split), there are {len(known)}"
            )
        split = config.evaluation.split
        if isinstance(split, TimeSplit) and split.train_days:
            known = known[-(split.train_days + split.validation_days + split.test_days) :]
        return cls(config, tuple(known))

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

    def rows(self, tables: Tables, *parts: Part) -> Iterator[pa.Table]:
        """The examples of some parts, a day at a time, oldest first."""
        for day in self.days_of(*parts):
            rows = tables.read_day("examples", day)
            split = self.config.evaluation.split
            yield rows if isinstance(split, TimeSplit) else rows.filter(pa.array(_drawn(self.config, rows, parts)))


def days_needed(config: Recommender) -> int:
    """How many prepared days a training takes at least."""
    split = config.evaluation.split
    return split.validation_days + split.test_days + 1 if isinstance(split, TimeSplit) else 1


def _drawn(config: Recommender, rows: pa.Table, parts: tuple[Part, ...]) -> NDArray[np.bool_]:
    """[rows] whether each is in one of the parts, by its own content: the order of rows does not matter."""
    split = config.evaluation.split
    if isinstance(split, ColumnSplit):
        values = rows.column(split.column).to_pandas()
        validation, test = values.isin(split.validation).to_numpy(), values.isin(split.test).to_numpy()
    else:
        assert isinstance(split, RandomSplit)
        key = rows.select([config.columns.user, config.columns.item, "event_time"]).to_pandas()
        hashed = pd.util.hash_pandas_object(key, index=False, hash_key=f"{split.seed:016d}").to_numpy()
        share = hashed / 2.0**64
        test = share < split.test
        validation = ~test & (share < split.test + split.validation)
    found = {"train": ~test & ~validation, "validation": validation, "test": test}
    chosen: NDArray[np.bool_] = np.logical_or.reduce([found[part] for part in parts])
    return chosen
