"""Serve a folder's recommender with the servers that the environment names: `python -m … FOLDER [--loop]`.

In a process of its own, since it ends every process below it. It says where Airflow and MLflow are, plays the demo's
loop if asked and says so, and ends with its standard input.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

from pipelines.config import Recommender, load
from pipelines.local.backends import Backends
from pipelines.local.services import Layout, Services, running
from pipelines.local.watch import Watch

PATIENCE_SECONDS = 2400  # for a night; on a machine that does nothing else it takes a tenth of that


def layout_of(folder: Path) -> Layout:
    """The folders of what is served."""
    return Layout(home=folder / "airflow", configs=folder / "configs", mlflow=folder / "mlflow")


def main() -> None:
    """Start, tell, play, wait."""
    folder = Path(sys.argv[1])
    with running(layout_of(folder), schedules=False, mlflow=True, backends=Backends.of_environment()) as services:
        airflow, mlflow = services.airflow, services.mlflow
        assert mlflow is not None
        _tell([[airflow.url, airflow.password], [mlflow.url, mlflow.password]])
        if sys.argv[2:] == ["--loop"]:
            (path,) = (folder / "configs").glob("*.yaml")
            _play(load(path), services)
            _tell("played")
        sys.stdin.read()


def _tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def _play(config: Recommender, services: Services) -> None:
    """All days but two as history, then two nights, each with its monitor."""
    size = config.simulation
    assert size is not None
    days = [size.start + timedelta(days=number) for number in range(size.days)]
    watch = Watch(services, days, config.name, PATIENCE_SECONDS)
    services.wait_until("reading the DAGs", lambda: all(map(services.airflow.has_dag, watch.dag_ids)))
    *history, first_night, second_night = days
    watch.play("history", history, with_training=False)
    monitor = f"{config.name}_monitor"
    services.airflow.unpause(monitor)
    watch.play("first night", [first_night])
    watch.play("second night", [second_night])
    services.wait_until("monitoring", lambda: _ended(services, monitor) == 2, PATIENCE_SECONDS)


def _ended(services: Services, dag_id: str) -> int:
    return sum(run["state"] in ("success", "failed") for run in services.airflow.runs(dag_id))


if __name__ == "__main__":
    main()
