"""What the champion says of rows: a sample of a day's examples, and of those that it learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import split
from pipelines.config import Recommender
from pipelines.tables import Tables
from recsys_moe.checkpoint import Ranker


@dataclass(frozen=True)
class Said:
    """Rows with what a model says of them.

    Attributes:
        rows: [N] the columns that the model reads, and `label_<task>`.
        segments: [N] names.
        scores: by task, [N]; of a task that is given another, that both happen.
    """

    rows: pa.Table
    segments: pa.ChunkedArray
    scores: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, config: Recommender, tables: Tables, ranker: Ranker, days: Sequence[date], as_of: date) -> Said | None:
        """Ask a model about the examples of some days, or `monitoring.max_rows` of them; None where there are none.

        Raises:
            UserError: it reads a column that the examples do not have.
        """
        rows = [block for block in _blocks(config, tables, ranker, days, as_of) if block.num_rows]
        if not rows:
            return None
        names = [task.name for task in ranker.config.tasks]
        said = np.concatenate([ranker.predict(block) for block in rows])
        segments = pa.chunked_array([ranker.encoder.segment_of(block)[0] for block in rows])
        table = pa.concat_tables(rows, promote_options="permissive")
        return cls(table, segments, {name: said[:, place] for place, name in enumerate(names)})

    def labels(self, config: Recommender) -> dict[str, NDArray[np.float64]]:
        """By task, [N]; NaN where it is not known. Where the task that it is given did not happen, it is 0."""
        found: dict[str, NDArray[np.float64]] = {}
        for task in config.tasks:
            found[task.name] = self.rows.column(f"label_{task.name}").to_numpy().astype(np.float64)
            if task.given is not None:
                found[task.name] = np.where(found[task.given] == 0, 0.0, found[task.name])
        return found


def _blocks(
    config: Recommender, tables: Tables, ranker: Ranker, days: Sequence[date], as_of: date
) -> Iterator[pa.Table]:
    if not days:
        return
    share = config.monitoring.max_rows / max(tables.count("examples", days), 1)
    labels = [f"label_{task.name}" for task in config.tasks]
    columns = [*ranker.config.columns, *labels, config.columns.user, config.columns.item, "event_time"]
    for day in days:
        for block in tables.read_blocks("examples", day, list(dict.fromkeys(columns))):
            rows = pa.Table.from_batches([block])
            yield split.sample(config, rows, share, as_of) if share < 1 else rows
