"""Held-out rows, what models say of them, and the metrics of that: every model on the same rows, none of it a table.

Rows stream past, a block at a time; what is kept of them lies in columns on disk (`pipelines.predictions`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from pipelines.config import Recommender
from pipelines.predictions import Groups, Ids, Kind, Measured, OnDisk, Scores, hashed, measure, measure_groups
from pipelines.simulate import truth_path
from pipelines.split import Part, Split, trained_columns
from pipelines.tables import Tables
from recsys_moe import metrics
from recsys_moe.checkpoint import Ranker
from recsys_moe.config import ModelConfig, Task

TRUE_COLUMNS = {"click": "p_click", "like": "p_like", "purchase": "p_click_purchase"}
"""Where a simulation wrote what it drew each task from."""
ITEM, USER = "item", "user"


@dataclass(frozen=True)
class Segments:
    """Which segment a model puts each row into: [rows] the place of its name in `names`."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]

    def groups(self) -> Groups:
        """The rows by segment."""
        return Groups.of(self.names, self.codes)


@dataclass(frozen=True)
class HeldOut:
    """The test rows of a training for one day, or those of its validation days; always in the same order.

    Attributes:
        tables: read at one version, whatever is prepared meanwhile.
        split: what was trained on and what was not.
        part: of the split.
        labels: by task, [rows]; NaN where undefined. A task with `given` is asked of every row: no click, no purchase.
        ids: `user` and `item`: the distinct ones.
        codes: `user` and `item`, [rows]: the code of a row's among `ids`.
    """

    config: Recommender
    tables: Tables
    split: Split
    part: Part
    labels: Scores
    ids: Mapping[str, Ids]
    codes: Scores

    @classmethod
    def of(cls, config: Recommender, tables: Tables, split: Split, part: Part = "test") -> HeldOut:
        """Read the labels and whose rows they are."""
        version = tables.version("examples")
        then = tables if version is None else Tables(config.storage, {"examples": version})
        empty = cls(config, then, split, part, labels={}, ids={}, codes={})
        columns = {USER: config.columns.user, ITEM: config.columns.item}
        ids = {name: Ids.of(empty._hashes(column)) for name, column in columns.items()}
        coded = zip(*(ids[name].codes(empty._hashes(column)) for name, column in columns.items()), strict=True)
        codes = OnDisk.write(
            empty._scratch, dict.fromkeys(columns, np.int32), (dict(zip(columns, of, strict=True)) for of in coded)
        )
        return replace(empty, labels=empty._labels(), ids=ids, codes=codes)

    @property
    def users(self) -> NDArray[np.int32]:
        """[rows] the code of a row's user. Codes go by a hash of the id: those below any number are a sample."""
        return self.codes[USER]

    @property
    def table(self) -> pa.Table:
        """All columns of all rows, in memory: for few rows."""
        return pa.concat_tables(self.blocks(), promote_options="permissive")

    def blocks(self, columns: Sequence[str] | None = None, coded: Collection[str] = ()) -> Iterator[pa.Table]:
        """The rows, as `Split.rows` reads them."""
        return self.split.rows(self.tables, self.part, columns=columns, coded=coded)

    def sample(self, model: ModelConfig, most_rows: int) -> tuple[pa.Table, NDArray[np.int32]]:
        """What a model reads of the rows of some users, as many as have `most_rows` or fewer; and whose rows they are.

        The users are drawn by a hash of their ids.
        """
        users = self.users
        kept = users < users_within(users, most_rows)
        rows, begin = [], 0
        for block in self.blocks(**trained_columns(self.config, model)):
            rows.append(block.filter(pa.array(kept[begin : begin + block.num_rows])))
            begin += block.num_rows
        return pa.concat_tables(rows, promote_options="permissive"), users[kept]

    def said_by(self, predict: Callable[[pa.Table], Scores], model: ModelConfig, kind: str = "f8") -> Scores:
        """What something says of each row, by task.

        Args:
            predict: from a block of rows, by task.
            model: whose columns the rows have, besides those of the user and the item. Tasks of it that the
                recommender has no longer are left out.
            kind: of the numbers that it says.

        Raises:
            UserError: it reads a column that the examples do not have.
        """
        known = {task.name for task in self.config.tasks}
        tasks = {task.name: kind for task in model.tasks if task.name in known}
        columns = list(dict.fromkeys([*model.columns, self.config.columns.user, self.config.columns.item]))
        blocks = self.blocks(columns, trained_columns(self.config, model)["coded"])
        return OnDisk.write(self._scratch, tasks, (predict(block) for block in blocks))

    def segments(self, ranker: Ranker) -> Segments:
        """Which segment a model puts each row into."""
        names, segments = ranker.encoder.segment_names, ranker.config.segments
        if segments is None:
            return Segments(names, np.zeros(len(self.users), np.int32))
        values = pa.array(names, pa.string())
        named = (ranker.encoder.segment_of(block)[0] for block in self.blocks(segments.columns))
        codes = [np.empty(0, np.int32), *(pc.index_in(of, values).to_numpy() for of in named)]
        return Segments(names, np.concatenate(codes))

    def measure(self, scores: Scores) -> dict[str, Measured]:
        """Metrics of every task that has scores, over all rows."""
        users = self.users
        return {task: measure(self.kind(task), self.labels[task], scores[task], users) for task in scores}

    def measure_groups(self, scores: Scores, groups: Groups) -> dict[str, dict[str, Measured]]:
        """The same by task and group of rows."""
        users = self.users
        return {
            task: measure_groups(self.kind(task), self.labels[task], scores[task], users, groups) for task in scores
        }

    def conditional_auc(self, task: str, scores: Scores) -> float:
        """AUC of a task given another, on the rows where that one happened: of the quotient of their probabilities."""
        parent = next(other.given for other in self.config.tasks if other.name == task)
        assert parent is not None
        there = self.labels[parent] == 1
        said, of_parent = (scores[name][there].astype(np.float64) for name in (task, parent))
        return metrics.auc(self.labels[task][there], said / np.maximum(of_parent, 1e-12))

    def cold(self) -> Groups:
        """The rows by whether their user and their item have a row among those that were learned from.

        `cold users` and `cold items` may overlap; `others` are neither.
        """
        users, items = (~self._learned_from(name)[self.codes[name]] for name in (USER, ITEM))
        return Groups.of_masks({"cold users": users, "cold items": items, "others": ~users & ~items})

    def _learned_from(self, name: str) -> NDArray[np.bool_]:
        """[ids] whether each has a row that was learned from."""
        ids, column = self.ids[name], self._column(name)
        seen = np.zeros(len(ids.hashes), np.bool_)
        parts: tuple[Part, ...] = ("train", "validation") if self.config.evaluation.refit else ("train",)
        blocks = self.split.rows(self.tables, *parts, columns=[column], coded=[column])
        for codes in ids.codes(hashed(block.column(column)) for block in blocks):
            seen[codes[codes >= 0]] = True
        return seen

    def best_attainable(self) -> Scores | None:
        """The probabilities that a simulation drew from, where the data is simulated; NaN for a row without one."""
        paths = [truth_path(self.config, day) for day in self.split.days_of(self.part)]
        if self.config.simulation is None or not all(path.exists() for path in paths):
            return None
        key = [self._column(USER), self._column(ITEM), "event_time"]
        tasks = {task.name: TRUE_COLUMNS[task.name] for task in self.config.tasks if task.name in TRUE_COLUMNS}
        truth = _truth(paths, key, [*tasks.values()])
        joined = (_joined(block, truth, key) for block in self.blocks(key))
        said = ({task: found[column].to_numpy() for task, column in tasks.items()} for found in joined)
        return OnDisk.write(self._scratch, dict.fromkeys(tasks, "f8"), said)

    def kind(self, task: str) -> Kind:
        """What a task's labels are."""
        return next(other.kind for other in self.config.tasks if other.name == task)

    @property
    def _scratch(self) -> Path:
        return self.config.workspace / "scratch"

    def _column(self, name: str) -> str:
        return {USER: self.config.columns.user, ITEM: self.config.columns.item}[name]

    def _hashes(self, column: str) -> Iterator[NDArray[np.uint64]]:
        return (hashed(block.column(column)) for block in self.blocks([column], coded=[column]))

    def _labels(self) -> Scores:
        kinds = {task.name: "f8" if task.kind == "regression" else "f4" for task in self.config.tasks}
        blocks = self.blocks([f"label_{task}" for task in kinds])
        return OnDisk.write(self._scratch, kinds, (labels_of(self.config.tasks, block) for block in blocks))


def users_within(users: NDArray[np.int32], most_rows: int) -> int:
    """How many of the first codes of users have so many rows or fewer together; at least one."""
    return max(int(np.searchsorted(np.cumsum(np.bincount(users)), most_rows, side="right")), 1)


def labels_of(tasks: Sequence[Task], table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """By task, [rows]; NaN where undefined. A task with `given` is asked of every row: no click, no purchase."""
    labels = {task.name: table.column(f"label_{task.name}").to_numpy().astype(np.float64) for task in tasks}
    for task in tasks:
        if task.given is not None:
            never = labels[task.given] == 0
            labels[task.name] = np.where(never & np.isnan(labels[task.name]), 0.0, labels[task.name])
    return labels


def _truth(paths: Sequence[Path], key: list[str], columns: list[str]) -> pd.DataFrame:
    read = pa.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
    known: pd.DataFrame = read.select([*key, *columns]).to_pandas().drop_duplicates(key)
    for column in key[:2]:
        known[column] = known[column].astype(str)
    known["event_time"] = pd.to_datetime(known["event_time"], utc=True)
    return known


def _joined(block: pa.Table, truth: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    rows = block.to_pandas()
    joined: pd.DataFrame = rows.merge(truth.astype({"event_time": rows["event_time"].dtype}), on=key, how="left")
    assert len(joined) == len(rows)
    return joined


def flat(prefix: str, measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`{prefix}/{task}/{metric}`, as the tracking server groups them."""
    return {f"{prefix}/{task}/{name}": value for task, of in measured.items() for name, value in of.items()}
