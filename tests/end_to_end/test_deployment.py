"""The demo's loop where people run it: PostgreSQL, Celery over Redis, S3 and MLflow's server, each a real one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
import psycopg
import pyarrow.fs
import pytest
import redis
import yaml

from pipelines.local.airflow_api import Airflow
from pipelines.tables import Tables
from tests.end_to_end.deployment import layout_of
from tests.end_to_end.loop import FIRST_NIGHT, SECOND_NIGHT, call, small_demo
from tests.end_to_end.waiting import wait_until
from tests.servers import IN_URLS, PASSWORD, postgres_server, redis_server, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]

S3_SECRET = "the-secret-of-S3"
STORAGE, ARTIFACTS = "s3://shop/tables", "s3://shop/mlflow"
# In the place of the CLI: lets through what a step needs, as a container's entry would, and writes down what that is.
OTHER_ENVIRONMENT = """#!/bin/sh
exec env -i PATH=/usr/bin:/bin HOME="$HOME" RECSYS_MOE_RESULT="$RECSYS_MOE_RESULT" \\
  /bin/sh -c 'env > "{seen}"; exec "{program}" "$@"' sh "$@"
"""
HISTORY = [date(2026, 1, day) for day in (1, 2, 3)]


@dataclass
class Served:
    """Airflow and MLflow in a process of their own, and what was seen of the processes below it meanwhile."""

    folder: Path
    process: subprocess.Popen[str]
    airflow: Airflow
    mlflow: httpx.Client
    commands: set[str] = field(default_factory=set)
    listening: set[str] = field(default_factory=set)

    def wait_for_line(self) -> Any:
        """What the process says next; until then, look at what runs below it."""
        while not select.select([self.process.stdout], [], [], 0.5)[0]:
            self.look_around()
        return json.loads(_stdout(self.process).readline())

    def look_around(self) -> None:
        """Note the commands of all processes, and the addresses at which they listen."""
        for one in psutil.Process(self.process.pid).children(recursive=True):
            try:
                self.commands.add(" ".join(one.cmdline()))
                self.listening |= {at.laddr.ip for at in one.net_connections() if at.status == psutil.CONN_LISTEN}
            except psutil.Error:
                continue  # it has ended meanwhile

    def task(self, dag_id: str, day: date, task_id: str) -> tuple[str, str]:
        """The state of a task that is not mapped, and its log."""
        (run,) = (run for run in self.airflow.runs(dag_id) if run["partition_key"] == str(day))
        (task,) = (one for one in self.airflow.tasks(dag_id, run["dag_run_id"]) if one["task_id"] == task_id)
        log = layout_of(self.folder).task_log(dag_id, run["dag_run_id"], task)
        return task["state"], log.read_text(encoding="utf-8")


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


@contextmanager
def _served(folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "tests.end_to_end.deployment", str(folder), *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**own, **environment}
    )
    with process:
        try:
            said = _stdout(process).readline()
            assert said, "it did not start; what it said is above"
            (url, password), (mlflow_url, mlflow_password) = json.loads(said)
            login = ("admin", mlflow_password)
            with (
                closing(Airflow(url, "admin", password)) as airflow,
                httpx.Client(base_url=f"{mlflow_url}/api/2.0/mlflow/", auth=login) as mlflow,
            ):
                yield Served(folder, process, airflow, mlflow)
        finally:
            process.terminate()


@dataclass(frozen=True)
class Servers:
    """The URLs of what runs before ours is started."""

    postgres: str
    redis: str
    s3: str

    @property
    def environment(self) -> dict[str, str]:
        """What a person would set for them."""
        return {"RECSYS_MOE_CELERY_BROKER": self.redis, "RECSYS_MOE_ARTIFACTS": ARTIFACTS} | self.databases | self.keys

    @property
    def databases(self) -> dict[str, str]:
        """Those for the two databases."""
        url = self.postgres.replace("postgresql:", "postgresql+psycopg:")
        return {"RECSYS_MOE_AIRFLOW_DATABASE": f"{url}/airflow", "RECSYS_MOE_MLFLOW_DATABASE": f"{url}/mlflow"}

    @property
    def keys(self) -> dict[str, str]:
        """Those for S3."""
        return {
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_ACCESS_KEY_ID": "shop",
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_REGION": "us-east-1",
        }

    def query(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with psycopg.connect(f"{self.postgres}/{database}") as connection:
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    with postgres_server(folder) as postgres, redis_server(folder) as queue, s3_server() as s3:
        with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
            for name in ("airflow", "mlflow", "local"):
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        yield Servers(postgres, queue, s3)


@pytest.fixture(scope="module")
def played(servers: Servers, tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[Served]:
    """The loop is over, and all of it is still running."""
    folder = tmp_path_factory.mktemp("celery")
    path = small_demo(folder, project_root, "shop")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["evaluation"]["baselines"]["models"] = ["popularity"]
    raw["scoring"]["exclude_seen"] = False  # so that each list has all of its items
    path.write_text(yaml.safe_dump(raw | {"storage": STORAGE}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in servers.keys.items():
            patch.setenv(name, value)
        pyarrow.fs.S3FileSystem(endpoint_override=servers.s3, allow_bucket_creation=True).create_dir("shop")
        code, _, said = call("simulate", "--config", path)
        assert code == 0, said
        started = time.monotonic()
        with _served(folder, "--loop", **servers.environment) as served:
            print(f"started in {time.monotonic() - started:.0f} s", file=sys.stderr)
            assert served.wait_for_line() == "played"
            print(f"played in {time.monotonic() - started:.0f} s", file=sys.stderr)
            yield served


def test_every_run_succeeds(played: Served) -> None:
    nights = [FIRST_NIGHT, SECOND_NIGHT]
    for kind, days in {"ingest": [*HISTORY, *nights], "train": nights, "score": nights, "monitor": nights}.items():
        runs = {run["partition_key"]: run["state"] for run in played.airflow.runs(f"shop_{kind}")}
        assert runs == {str(day): "success" for day in days}, kind


def test_the_registry_has_a_champion_for_who_logs_in(played: Served) -> None:
    asked = {"name": "shop", "alias": "champion"}
    assert httpx.get(f"{played.mlflow.base_url}registered-models/alias", params=asked).status_code == 401
    version = played.mlflow.get("registered-models/alias", params=asked).raise_for_status().json()["model_version"]
    assert version["source"]
    run = played.mlflow.get("runs/get", params={"run_id": version["run_id"]}).raise_for_status().json()["run"]
    assert run["info"]["artifact_uri"].startswith(f"{ARTIFACTS}/")


def test_every_user_has_a_whole_list_on_s3(played: Served) -> None:
    scores = Tables(STORAGE).read_day("scores", SECOND_NIGHT).to_pandas()
    lists = scores.groupby("user_id")["rank"].agg(["min", "max", "nunique", "size"])
    assert len(lists) == 300
    assert (lists == [1, 20, 20, 20]).all(axis=None)


def test_tasks_leave_a_log_that_a_person_can_read(played: Served) -> None:
    for kind, task in (("ingest", "prepare"), ("train", "promote"), ("score", "score")):
        state, log = played.task(f"shop_{kind}", FIRST_NIGHT, task)
        assert state == "success"
        assert str(FIRST_NIGHT) in log


def test_what_airflow_and_mlflow_know_is_in_postgresql(played: Served, servers: Servers) -> None:
    assert servers.query("airflow", "SELECT count(*) FROM dag_run WHERE state = 'success'") == [(11,)]
    assert servers.query("mlflow", "SELECT count(*) FROM model_versions WHERE name = 'shop'") == [(2,)]
    assert not list(played.folder.rglob("airflow.db"))
    assert not list(played.folder.rglob("mlflow.db"))


def test_every_task_went_through_redis_and_the_celery_worker(played: Served, servers: Servers) -> None:
    with redis.Redis.from_url(servers.redis) as client:
        pushed = client.info("commandstats")["cmdstat_lpush"]["calls"]
    ((tasks, results),) = servers.query(
        "airflow",
        """SELECT count(*), count(*) FILTER (WHERE result.status = 'SUCCESS')
           FROM task_instance AS task LEFT JOIN celery_taskmeta AS result ON result.task_id = task.external_executor_id
           WHERE task.state = 'success'""",
    )
    assert tasks == results > 30
    assert pushed >= tasks


def test_artifacts_are_on_s3_and_nowhere_else(played: Served, servers: Servers) -> None:
    bucket = pyarrow.fs.S3FileSystem(endpoint_override=servers.s3)
    found = bucket.get_file_info(pyarrow.fs.FileSelector(ARTIFACTS.removeprefix("s3://"), recursive=True))
    assert {"weights.safetensors", "MLmodel"} <= {Path(one.path).name for one in found}
    assert not list(played.folder.rglob("MLmodel"))


def test_nothing_listens_elsewhere_and_no_command_line_has_a_password(played: Served) -> None:
    played.look_around()
    assert played.listening == {"127.0.0.1"}
    assert any("score-shard" in command for command in played.commands)
    secrets = [
        PASSWORD,
        IN_URLS,
        S3_SECRET,
        *json.loads((played.folder / "airflow/passwords.json").read_text()).values(),
    ]
    assert not [command for command in played.commands for secret in secrets if secret in command]


def test_a_step_may_run_in_another_environment_under_the_local_executor_on_postgresql(
    servers: Servers, tmp_path: Path, project_root: Path
) -> None:
    path = small_demo(tmp_path, project_root, "shop")
    code, _, said = call("simulate", "--config", path)
    assert code == 0, said
    entry, seen = tmp_path / "entry.sh", tmp_path / "seen"
    program = Path(sys.executable).with_name("recsys-moe")
    entry.write_text(OTHER_ENVIRONMENT.format(seen=seen, program=program), encoding="utf-8")
    entry.chmod(0o755)
    database = servers.databases["RECSYS_MOE_AIRFLOW_DATABASE"].replace("/airflow", "/local")
    environment = {"RECSYS_MOE_AIRFLOW_DATABASE": database, "RECSYS_MOE_BIN": str(entry), "OF_AIRFLOW_ALONE": "1"}

    with _served(tmp_path, **environment) as served:
        wait_until(lambda: served.airflow.has_dag("shop_ingest"), 300)
        served.airflow.unpause("shop_ingest")
        served.airflow.run("shop_ingest", FIRST_NIGHT)
        wait_until(lambda: [run["state"] for run in served.airflow.runs("shop_ingest")] == ["success"], 600)
        (run,) = served.airflow.runs("shop_ingest")
        assert served.airflow.result("shop_ingest", run["dag_run_id"], "ingest")["accepted"] > 3000

    names = {line.partition("=")[0] for line in seen.read_text(encoding="utf-8").splitlines()}
    assert {"PATH", "HOME", "RECSYS_MOE_RESULT"} <= names <= {"PATH", "HOME", "RECSYS_MOE_RESULT", "PWD", "SHLVL", "_"}
    assert servers.query("local", "SELECT dag_id, state FROM dag_run") == [("shop_ingest", "success")]
    assert not list(tmp_path.rglob("airflow.db"))
