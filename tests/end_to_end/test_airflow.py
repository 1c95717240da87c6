"""A real scheduler on this machine: what a backfill sets off, how failures show, who may look, and how it all ends.

The steps themselves are a stand-in (stand_in.py), since this is about Airflow; `make demo` runs the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pipelines.local.airflow_api import Airflow
from pipelines.local.services import Layout
from tests.end_to_end.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# In a process of its own: it ends every process below it.
SERVE = """
import json, sys, time
from pathlib import Path
from pipelines.local.services import Layout, running

folder = Path(sys.argv[1])
layout = Layout(home=folder / "airflow", configs=folder / "configs", mlflow=folder / "mlflow")
with running(layout, schedules=False, mlflow=True) as services:
    airflow, mlflow = services.airflow, services.mlflow
    print(json.dumps([[airflow.url, airflow.password], [mlflow.url, mlflow.password]]), flush=True)
    time.sleep(800)
"""

RECOMMENDER = 'name: {name}\nschedule: {{ingest: "0 3 * * *"}}\n'
DAYS = [date(2026, 3, day) for day in range(27, 32)]
DAG_KINDS = ("ingest", "train", "score", "monitor")
ENDED = ("success", "failed")


@dataclass
class Served:
    """Airflow and MLflow under a process of their own."""

    layout: Layout
    process: subprocess.Popen[str]
    airflow: Airflow
    mlflow_url: str
    mlflow_password: str

    def play(self, name: str, first: date, last: date) -> None:
        """Backfill days of a recommender and wait until the runs of its DAGs have ended."""
        dag_ids = [f"{name}_{kind}" for kind in DAG_KINDS]
        for dag_id in dag_ids:
            self.switch_on(dag_id)
        self.airflow.backfill(f"{name}_ingest", first, last)
        days = [str(day) for day in DAYS if first <= day <= last]
        wait_until(lambda: all(self.ended_days(dag_id) == days for dag_id in dag_ids), 600)

    def switch_on(self, dag_id: str) -> None:
        """Let a DAG run, once it was read."""
        wait_until(lambda: self.airflow.has_dag(dag_id), 120)
        self.airflow.unpause(dag_id)

    def ended_days(self, dag_id: str) -> list[str]:
        """The partitions of the DAG's ended runs."""
        return sorted(run["partition_key"] for run in self.airflow.runs(dag_id) if run["state"] in ENDED)

    def states(self, dag_id: str) -> dict[str, tuple[str, dict[str, tuple[str, int]]]]:
        """The state of each partition's run, and state and number of tries of its tasks; mapped ones are numbered."""
        return {
            run["partition_key"]: (
                run["state"],
                {
                    _name(task): (task["state"], task["try_number"])
                    for task in self.airflow.tasks(dag_id, run["dag_run_id"])
                },
            )
            for run in self.airflow.runs(dag_id)
        }

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str]:
        """The task's links to other places, by name."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        return dict(self.airflow._call("GET", path)["extra_links"])

    def emitted(self, asset: str) -> list[str]:
        """The partitions for which an asset was emitted."""
        events = self.airflow._call("GET", "assets/events", params={"limit": 500})["asset_events"]
        return sorted(event["partition_key"] for event in events if event["name"] == asset)


def _name(task: dict[str, Any]) -> str:
    return f"{task['task_id']} {task['map_index']}" if task["map_index"] >= 0 else str(task["task_id"])


def _layout(folder: Path) -> Layout:
    return Layout(home=folder / "airflow", configs=folder / "configs", mlflow=folder / "mlflow")


@contextmanager
def _served(folder: Path) -> Iterator[Served]:
    (folder / "configs").mkdir()
    for name in ("shop", "breaks", "hangs", "loses", "stumbles"):
        (folder / "configs" / f"{name}.yaml").write_text(RECOMMENDER.format(name=name), encoding="utf-8")
    (folder / "configs" / "wrong.yaml").write_text("name: wrong\nschedule: {ingest: at night}\n", encoding="utf-8")
    environment = {**os.environ, "RECSYS_MOE_BIN": str(Path(__file__).with_name("stand_in.py"))}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            (url, password), (mlflow_url, mlflow_password) = json.loads(process.stdout.readline())
            with closing(Airflow(url, "admin", password)) as airflow:
                yield Served(_layout(folder), process, airflow, mlflow_url, mlflow_password)
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with _served(tmp_path_factory.mktemp("served")) as one:
        for name in ("stumbles", "loses"):  # looked at later: a minute passes before a try
            one.switch_on(f"{name}_score")
            one.airflow.run(f"{name}_score", DAYS[0])
        yield one


def test_a_backfill_of_five_days_runs_each_and_what_follows(served: Served) -> None:
    served.play("shop", DAYS[0], DAYS[-1])

    for kind in DAG_KINDS:
        runs = served.states(f"shop_{kind}")
        assert sorted(runs) == [str(day) for day in DAYS]
        assert {state for state, _ in runs.values()} == {"success"}
    trained = {day for day, (_, tasks) in served.states("shop_train").items() if tasks["train"][0] == "success"}
    assert trained == {str(DAYS[-1])}  # the first waited until all days were in, and then there were newer ones
    newest = served.airflow.runs("shop_score")
    run_id = next(run["dag_run_id"] for run in newest if run["partition_key"] == str(DAYS[-1]))
    assert served.airflow.result("shop_score", run_id, "score") == {"step": "score", "as_of": str(DAYS[-1])}
    for day, (_, tasks) in served.states("shop_monitor").items():
        due = "success" if day == str(DAYS[-1]) else "skipped"
        assert {name: state for name, (state, _) in tasks.items()} == {
            "monitor": "success",
            "retrain_is_due": due,
            "found": due,
        }
    assert served.emitted("shop_retrain") == [str(DAYS[-1])]
    train = next(run["dag_run_id"] for run in served.airflow.runs("shop_train") if run["partition_key"] in trained)
    assert served.links("shop_train", train, "train") == {
        "MLflow version": f"{served.mlflow_url}/#/models/shop/versions/1",
        "MLflow run": f"{served.mlflow_url}/#/runs/abc",
    }


def test_a_failed_training_fails_its_run_and_the_day_is_scored_all_the_same(served: Served) -> None:
    served.play("breaks", DAYS[0], DAYS[0])

    state, tasks = served.states("breaks_train")[str(DAYS[0])]
    assert state == "failed"
    assert tasks["train"] == ("failed", 1)  # exit code 2 is not retried
    assert tasks["evaluate"][0] == tasks["promote"][0] == "upstream_failed"
    assert tasks["decided"][0] == "success"
    assert tasks["failed"][0] == "failed"
    assert served.states("breaks_score")[str(DAYS[0])][0] == "success"


def _scored(served: Served, name: str) -> tuple[str, dict[str, tuple[str, int]]]:
    """How the scoring of a recommender ended that the fixture began."""
    wait_until(lambda: served.ended_days(f"{name}_score") == [str(DAYS[0])], 300)
    return served.states(f"{name}_score")[str(DAYS[0])]


def test_a_shard_that_cannot_be_scored_fails_the_run_and_nothing_is_published(served: Served) -> None:
    state, tasks = _scored(served, "loses")

    assert state == "failed"
    assert tasks["shard 1"] == ("failed", 1)  # exit code 2 is not retried
    assert tasks["shard 0"][0] == tasks["shard 2"][0] == "success"
    assert tasks["score"] == ("upstream_failed", 0)
    (run,) = served.airflow.runs("loses_score")
    (shard,) = (task for task in served.airflow.tasks("loses_score", run["dag_run_id"]) if _name(task) == "shard 1")
    assert shard["rendered_map_index"] == "shard 1 of 3"
    said = [
        json.loads(line)["event"]
        for line in served.layout.task_log("loses_score", run["dag_run_id"], shard).read_text("utf-8").splitlines()
    ]
    (last_words,) = (event for event in said if "What to do:" in event)
    assert said[said.index(last_words) - 1] == "::endgroup::"  # or Airflow's page would keep it folded
    assert last_words.startswith(f"shard 1 of {DAYS[0]} failed in loses_score (try 1).")
    assert "error: loses.yaml: shard 1 has no columns" in last_words
    assert f"then clear the task shard 1 in the run {run['dag_run_id']}" in last_words


def test_a_shard_that_fails_once_is_scored_again_alone(served: Served) -> None:
    state, tasks = _scored(served, "stumbles")

    assert state == "success"
    assert {name: tasks[name] for name in ("shard 0", "shard 1", "shard 2", "score")} == {
        "shard 0": ("success", 1),
        "shard 1": ("success", 2),
        "shard 2": ("success", 1),
        "score": ("success", 1),
    }


def test_a_broken_yaml_is_an_import_error_and_the_others_run(served: Served) -> None:
    (error,) = served.airflow.import_errors()
    assert "wrong.yaml: schedule.ingest: 'at night' is no cron" in error
    assert served.airflow.has_dag("shop_ingest")
    assert not served.airflow.has_dag("wrong_ingest")


def test_both_servers_ask_for_a_login(served: Served) -> None:
    assert httpx.get(f"{served.airflow.url}/api/v2/dags").status_code == httpx.codes.UNAUTHORIZED
    search = f"{served.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(search).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(search, auth=("admin", served.mlflow_password)).status_code == httpx.codes.OK


def test_nothing_is_reachable_from_other_machines(served: Served) -> None:
    below = psutil.Process(served.process.pid).children(recursive=True)
    listening = {
        at.laddr.ip for process in below for at in process.net_connections() if at.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_everything_ends_with_the_process_that_started_it(tmp_path: Path, ending: signal.Signals) -> None:
    with _served(tmp_path) as served:
        wait_until(lambda: served.airflow.has_dag("hangs_ingest"), 120)
        served.airflow.unpause("hangs_ingest")
        served.airflow.run("hangs_ingest", DAYS[0])
        wait_until(lambda: any("stand_in.py" in line for line in _commands(served.process.pid)), 120)
        below = psutil.Process(served.process.pid).children(recursive=True)

        served.process.send_signal(ending)

        _, alive = psutil.wait_procs(below, timeout=90)
        assert alive == []


def _commands(pid: int) -> list[str]:
    lines = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue  # it has ended meanwhile
    return lines
