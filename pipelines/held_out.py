"""Test rows, what models say of them, and the metrics of that: every model on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from pipelines.config import Recommender
from pipelines.simulate import truth_path
from pipelines.split import Part, Split
from pipelines.tables import Tables
from recsys_moe import metrics

Scores = dict[str, NDArray[np.float64]]
"""By task, [rows]: what a model says. NaN where it says nothing."""

TRUE_COLUMNS = {"click": "p_click", "like": "p_like", "purchase": "p_click_purchase"}
"""Where a simulation wrote what it drew each task from."""
_SMOOTHING = 20.0
_SEGMENT_METRICS = ("auc", "gauc", "log_loss", "calibration")


@dataclass(frozen=True)
class HeldOut:
    """The test rows of a training for one day, or those of its validation days.

    Attributes:
        split: what was trained on and what was not.
        table: the examples, as the model reads them.
        labels: by task, [rows]; NaN where undefined. A task with `given` is asked of every row: no click, no purchase.
        users: [rows] whose row it is.
    """

    config: Recommender
    split: Split
    table: pa.Table
    labels: Scores
    users: NDArray[Any]

    @classmethod
    def of(cls, config: Recommender, tables: Tables, split: Split, part: Part = "test") -> HeldOut:
        """Read the rows into memory."""
        table = pa.concat_tables(split.rows(tables, part), promote_options="permissive")
        users = table.column(config.columns.user).to_pandas().astype("category").cat.codes.to_numpy()
        return cls(config, split, table, _labels(config, table), users)

    def measure(self, scores: Scores) -> dict[str, dict[str, float]]:
        """Metrics of every task that has scores, over all rows."""
        return {task: self._of_task(task, scores, np.isfinite(said)) for task, said in scores.items()}

    def measure_segments(self, scores: Scores, segments: NDArray[Any]) -> dict[str, dict[str, dict[str, float]]]:
        """By task and segment, the metrics that a segment is judged by; `segments` [rows] are their names."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for task, said in scores.items():
            for segment in np.unique(segments):
                inside = (segments == segment) & np.isfinite(said)
                measured = self._of_task(task, scores, inside)
                kept = {name: measured[name] for name in (*_SEGMENT_METRICS, "rows", "positives") if name in measured}
                found.setdefault(task, {})[str(segment)] = kept
        return found

    def conditional_auc(self, task: str, scores: Scores) -> float:
        """AUC of a task given another, on the rows where that one happened: of the quotient of their probabilities."""
        parent = next(other.given for other in self.config.tasks if other.name == task)
        assert parent is not None
        there = self.labels[parent] == 1
        conditional = scores[task] / np.maximum(scores[parent], 1e-12)
        return metrics.auc(self.labels[task][there], conditional[there])

    def _of_task(self, task: str, scores: Scores, among: NDArray[np.bool_]) -> dict[str, float]:
        among = among & np.isfinite(self.labels[task])
        labels, said, users = self.labels[task][among], scores[task][among], self.users[among]
        kind = next(other.kind for other in self.config.tasks if other.name == task)
        if kind == "regression":
            error = float(np.sqrt(np.mean((labels - said) ** 2))) if len(labels) else float("nan")
            return {"rmse": error, "rows": float(len(labels))}
        return {
            "auc": metrics.auc(labels, said),
            "gauc": metrics.gauc(labels, said, users),
            "log_loss": metrics.log_loss(labels, said),
            "normalised_entropy": metrics.normalised_entropy(labels, said),
            "calibration": metrics.calibration(labels, said),
            "ece": metrics.ece(labels, said),
            "rows": float(len(labels)),
            "positives": float(labels.sum()),
        }

    def popularity(self, tables: Tables) -> Scores:
        """The baseline: each item's smoothed rate of the task over the days that were learned from."""
        item = self.config.columns.item
        columns = [item, *(f"label_{task.name}" for task in self.config.tasks)]
        blocks = self.split.rows(tables, "train", "validation", columns=columns)
        seen = pa.concat_tables(blocks, promote_options="permissive")
        labels = _labels(self.config, seen)
        past = pd.DataFrame({"item": seen.column(item).to_pandas(), **labels}).groupby("item")
        wanted = self.table.column(item).to_pandas()
        scores = {}
        for task, values in labels.items():
            prior = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
            rate = (past[task].sum() + _SMOOTHING * prior) / (past[task].count() + _SMOOTHING)
            scores[task] = wanted.map(rate).fillna(prior).to_numpy(np.float64)
        return scores

    def best_attainable(self) -> Scores | None:
        """The probabilities that a simulation drew from, where the data is simulated; NaN for a row without one."""
        paths = [truth_path(self.config, day) for day in self.split.days_of("test")]
        if self.config.simulation is None or not all(path.exists() for path in paths):
            return None
        return _joined_truth(self.config, self.table, paths)


def _labels(config: Recommender, table: pa.Table) -> Scores:
    labels = {task.name: table.column(f"label_{task.name}").to_numpy().astype(np.float64) for task in config.tasks}
    for task in config.tasks:
        if task.given is not None:
            never = labels[task.given] == 0
            labels[task.name] = np.where(never & np.isnan(labels[task.name]), 0.0, labels[task.name])
    return labels


def _joined_truth(config: Recommender, table: pa.Table, paths: list[Path]) -> Scores:
    key = [config.columns.user, config.columns.item, "event_time"]
    truth = pa.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
    known = truth.select([*key, *TRUE_COLUMNS.values()]).to_pandas().drop_duplicates(key)
    for column in key[:2]:
        known[column] = known[column].astype(str)
    rows = table.select(key)
    frame = rows.to_pandas()
    known["event_time"] = pd.to_datetime(known["event_time"], utc=True).astype(frame["event_time"].dtype)
    joined = frame.merge(known, on=key, how="left")
    assert len(joined) == table.num_rows
    return {
        task.name: joined[TRUE_COLUMNS[task.name]].to_numpy(np.float64)
        for task in config.tasks
        if task.name in TRUE_COLUMNS
    }


def flat(prefix: str, measured: dict[str, dict[str, float]]) -> dict[str, float]:
    """`{prefix}/{task}/{metric}`, as the tracking server groups them."""
    return {f"{prefix}/{task}/{name}": value for task, of in measured.items() for name, value in of.items()}
