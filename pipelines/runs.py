"""One MLflow run, as steps add to it: numbers, pictures and files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from matplotlib.figure import Figure
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

NOTE = "mlflow.note.content"
"""The tag that the UI shows as the description of a run, or of an experiment."""


@dataclass(frozen=True)
class Facts:
    """What a run has been told: `started` in milliseconds since 1970, the last value of each metric, and the versions
    of the tables that it read."""

    name: str
    started: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    tables: Mapping[str, int | None]


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
        self._client.set_tag(self.run_id, NOTE, markdown)

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

    def facts(self) -> Facts:
        """What it has been told so far."""
        run = self._client.get_run(self.run_id)
        inputs = [found.dataset for found in run.inputs.dataset_inputs] if run.inputs else []
        tables = {one.name: json.loads(one.source).get("delta_table_version") for one in inputs}
        return Facts(run.info.run_name, run.info.start_time, run.data.params, run.data.tags, run.data.metrics, tables)

    def files(self, folder: str | None = None) -> list[str]:
        """The paths of its files in a folder; of the first level where None."""
        return [file.path for file in self._client.list_artifacts(self.run_id, folder) if not file.is_dir]

    def read(self, path: str) -> dict[str, Any] | None:
        """A JSON file that it has; None where it has none."""
        content = self.read_text(path)
        return dict(json.loads(content)) if content is not None else None

    def read_text(self, path: str) -> str | None:
        """A text file that it has; None where it has none."""
        if path not in self.files():
            return None
        with TemporaryDirectory() as folder:
            return Path(self._client.download_artifacts(self.run_id, path, folder)).read_text(encoding="utf-8")

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
