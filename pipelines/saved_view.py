"""The views of an experiment that the MLflow UI offers under "Views": which columns the table of runs has.

The UI keeps a view as a tag of the experiment: a name, and as JSON the state of the page as it writes it itself. A UI
that does not know a part of the state passes over it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

KEY = "trainings"
TAG = f"mlflow.sharedViewState.{KEY}"
_NAME = "attributes.`Run Name`"
_WIDE = {_NAME: 250, "tags.`loses_to`": 160, "attributes.`Created`": 150, "attributes.`Models`": 150}
"""Columns whose values are longer than their titles, in pixels."""


def address(experiment_id: str) -> str:
    """Where the view is: the part of the address after the server's."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}"


def trainings(tasks: Sequence[str]) -> str:
    """The tag's value: trainings alone, newest first, with what tells them apart beside how good they are."""
    columns = [
        "attributes.`Created`",
        *(f"tags.`{name}`" for name in ("preset", "verdict", "loses_to")),
        *(f"metrics.`test/{task}/auc`" for task in tasks),
        "tags.`champion_at_the_time`",
        *(f"params.`{name}`" for name in ("model.experts.routed", "training.epochs", "training.learning_rate")),
        "attributes.`Models`",
    ]
    return _view("Trainings", columns)


def monitored(tags: Sequence[str], metrics: Sequence[str]) -> str:
    """The same of an experiment that has a run a day of the monitor."""
    columns = ["attributes.`Created`", *(f"tags.`{name}`" for name in tags), *(f"metrics.`{name}`" for name in metrics)]
    return _view("Days", columns, "tags.`as_of`")


def _view(name: str, columns: Sequence[str], order: str = "attributes.start_time") -> str:
    state = {
        "searchFilter": "",
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": {column: _width(column) for column in (_NAME, *columns)},
    }
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _width(column: str) -> int:
    """Pixels in which a column's title is whole."""
    return _WIDE.get(column, 45 + 8 * len(column.split("`")[1]))
