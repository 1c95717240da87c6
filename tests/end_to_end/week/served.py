"""The services of serving.py as a test sees them, and Airflow's runs of one recommender."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from pipelines.local.airflow_api import Airflow
from pipelines.local.services import Layout
from pipelines.local.watch import tail_of_task

ROOT = Path(__file__).resolve().parents[3]
ENDED = ("success", "failed")

# What takes minutes on a machine that nobody looks at, in seconds: a try after a failure, and what Airflow waits before
# it takes a scheduler, or a task, whose heart does not beat for dead.
IMPATIENT = {
    "RECSYS_MOE_RETRY_SECONDS": "5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "30",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",  # nobody changes them here
}


class WentWrong(AssertionError):
    """Something failed that must not, or took too long; the message holds the ends of the failed tasks' logs."""


@dataclass
class Served:
    """PostgreSQL, MLflow and Airflow under a process of their own."""

    name: str
    layout: Layout
    process: subprocess.Popen[str]
    airflow: Airflow
    mlflow_url: str
    mlflow_password: str

    def ask(self, line: str) -> dict[str, Any]:
        """Have the process obey a line of serving.py's; returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise WentWrong(f"the services ended at {line!r}")
        return dict(json.loads(answer))

    def switch_on(self) -> None:
        """Let the recommender's DAGs run."""
        for what in ("ingest", "train", "score", "monitor"):
            dag_id = f"{self.name}_{what}"
            self.wait(f"{dag_id} is there", lambda dag_id=dag_id: self.airflow.has_dag(dag_id), 120)
            self.airflow.unpause(dag_id)

    def wait(self, what: str, is_so: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so; servers that do not answer meanwhile may be down on purpose.

        Raises:
            WentWrong: it took too long.
        """
        deadline = time.monotonic() + seconds
        while True:
            with suppress(httpx.HTTPError, RuntimeError):
                if is_so():
                    return
            if time.monotonic() > deadline:
                raise WentWrong(f"{what}: not within {seconds:.0f} s\n{self.failures()}")
            time.sleep(2)

    def runs(self, what: str, day: date) -> list[dict[str, Any]]:
        """The runs of one of the DAGs for a day, oldest first."""
        runs = [run for run in self.airflow.runs(f"{self.name}_{what}") if run["partition_key"] == str(day)]
        return sorted(runs, key=lambda run: str(run["run_after"]))

    def ended(self, what: str, day: date, times: int = 1) -> bool:
        """Whether so many runs for a day are there, and all have ended."""
        runs = self.runs(what, day)
        return len(runs) >= times and all(run["state"] in ENDED for run in runs)

    def tasks(self, what: str, day: date) -> dict[str, dict[str, Any]]:
        """The tasks of a day's newest run, by name; of mapped ones the first."""
        run = self.runs(what, day)[-1]
        found = self.airflow.tasks(f"{self.name}_{what}", run["dag_run_id"])
        return {task["task_id"]: task for task in sorted(found, key=lambda task: -task["map_index"])}

    def states(self, what: str, day: date) -> dict[str, str]:
        """The states of those tasks."""
        return {name: task["state"] for name, task in self.tasks(what, day).items()}

    def result(self, what: str, day: date, task_id: str) -> dict[str, Any]:
        """What a task of a day's newest run returned."""
        run = self.runs(what, day)[-1]
        return dict(self.airflow.result(f"{self.name}_{what}", run["dag_run_id"], task_id))

    def said(self, what: str, day: date, task_id: str) -> str:
        """The whole log of a task's last try."""
        run, task = self.runs(what, day)[-1], self.tasks(what, day)[task_id]
        return self.layout.task_log(f"{self.name}_{what}", run["dag_run_id"], task).read_text(encoding="utf-8")

    def clear(self, what: str, day: date) -> None:
        """What an on-call person does after mending: have the failed tasks of a day, and what follows, run again."""
        dag_id, run = f"{self.name}_{what}", self.runs(what, day)[-1]
        body = {"dry_run": False, "dag_run_id": run["dag_run_id"], "only_failed": True, "include_downstream": True}
        self.airflow._call("POST", f"dags/{dag_id}/clearTaskInstances", json=body)

    def failures(self) -> str:
        """The ends of the logs of all tasks that are not well, for whoever asks why the test failed."""
        found = []
        for what in ("ingest", "train", "score", "monitor"):
            dag_id = f"{self.name}_{what}"
            for run in self.airflow.runs(dag_id):
                for task in self.airflow.tasks(dag_id, run["dag_run_id"]):
                    if task["state"] in ("failed", "up_for_retry", "running", "queued", "restarting"):
                        log = tail_of_task(self.layout.task_log(dag_id, run["dag_run_id"], task))
                        found.append(f"{dag_id} {run['partition_key']} {task['task_id']}: {task['state']}\n{log}")
        return "\n\n".join(found)


@contextmanager
def served(name: str, folder: Path, more: Mapping[str, str]) -> Iterator[Served]:
    """The services for the recommender `name` of a folder's `configs`, for the length of a `with` block.

    Args:
        name: the recommender.
        folder: has `configs`; all but PostgreSQL's data lies below it.
        more: variables of the environment.
    """
    # As root PostgreSQL runs as another user, who may not look into pytest's folders.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.week.serving", str(folder), base],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **IMPATIENT, **more},
        )
        assert process.stdout is not None
        with process:
            try:
                told = json.loads(process.stdout.readline())
                layout = Layout(home=folder / "airflow", configs=folder / "configs", mlflow=folder / "var" / "mlflow")
                with closing(Airflow(told["airflow"][0], "admin", told["airflow"][1])) as airflow:
                    yield Served(name, layout, process, airflow, *told["mlflow"])
            finally:
                process.send_signal(signal.SIGTERM)
