"""One MLflow run, as steps add to it: numbers, pictures and files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import mlflow
from matplotlib.figure import Figure
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient


class Run:
    """Where a run's numbers, pictures and files go."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def tags(self, values: Mapping[str, str]) -> None:
        """What it is found by and told apart by."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    def description(self, markdown: str) -> None:
        """What its page begins with."""
        self._client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def params(self, values: Mapping[str, object]) -> None:
        """Settings worth comparing; what the run has already is left as it is."""
        known = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:6000]) for key, value in values.items() if key not in known]
        self._client.log_batch(self.run_id, params=new)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at a step; what is not a number (an AUC of one class, say) is left out."""
        now = milliseconds()
        kept = [Metric(key, float(value), now, step) for key, value in values.items() if value == value]
        for start in range(0, len(kept), 1000):
            self._client.log_batch(self.run_id, metrics=kept[start : start + 1000])

    def history(self, name: str) -> dict[int, float]:
        """The values of a metric, by step."""
        return {point.step: point.value for point in self._client.get_metric_history(self.run_id, name)}

    def inputs(self, tables: Mapping[str, tuple[str, int]]) -> None:
        """The tables, at their versions, that the run learned from. The run must be the active one."""
        for name, (path, version) in tables.items():
            source = DeltaDatasetSource(path=path, delta_table_version=version)
            dataset = MetaDataset(source, name=name, digest=f"v{version}")  # type: ignore[abstract]
            mlflow.log_input(dataset, context="training")

    def text(self, content: str, path: str) -> None:
        """A text file."""
        self._client.log_text(self.run_id, content, path)

    def table(self, content: Mapping[str, Any], path: str) -> None:
        """A JSON file."""
        self._client.log_dict(self.run_id, dict(content), path)

    def picture(self, figure: Figure, path: str) -> None:
        """A picture."""
        self._client.log_figure(self.run_id, figure, path)


def milliseconds() -> int:
    """Now, as MLflow writes times."""
    return int(time.time() * 1000)
