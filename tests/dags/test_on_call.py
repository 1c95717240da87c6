"""What people are told when a task fails, and where its links lead: in a process with Airflow, without a scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAY = """
import json, sys
from types import SimpleNamespace

sys.path.insert(0, sys.argv[1])
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
import on_call

with DAG("my_shop_train") as dag:
    task = BashOperator(task_id="train", bash_command="true")

def told(run_id, result=None, map_index=-1):
    ti = SimpleNamespace(task_id="train", dag_id=dag.dag_id, run_id=run_id, try_number=2, map_index=map_index,
                         log_url="http://airflow/log", xcom_pull=lambda task_ids: result)
    run = SimpleNamespace(partition_key="2026-01-31", run_id=run_id)
    context = {"ti": ti, "dag_run": run, "task": task, "dag": dag, "exception": ValueError("it broke")}
    on_call.say_what_to_do(context)
    (mail,) = on_call.notifiers(("on-call@example.org",), None, "{{ ti.dag_id }}: {{ ti.task_id }} failed")
    mail.render_template_fields(mail._update_context(context))
    links = [link.get_link(task, ti_key=ti) for link in (on_call.MlflowVersion(), on_call.MlflowRun())]
    return {"message": context["message"], "to": mail.to, "subject": mail.subject, "html": mail.html_content,
            "links": links}

print(json.dumps({
    "logged": told("one", {"version": 7, "run_id": "abc"}),
    "scored": told("one", {"model_version": 7}),
    "unlogged": told("two"),
    "mapped": told("one", map_index=3),
    "no_command": told("three"),
}))
"""
LOG = [
    "::group::Pre Execute",
    "Running command: ['bash', 'Output: is not this line']",
    "Output:",
    *(f"step {number}" for number in range(30)),
    "error: shop.yaml: tasks: <b>click</b> is no column",
    "Command exited with return code 2",
    "Task failed with exception",
]


def _write_log(home: Path, where: str, events: list[str]) -> None:
    log = home / "logs" / "dag_id=my_shop_train" / where / "attempt=2.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"event": event}) + "\n" for event in events) + "not json\n", encoding="utf-8")


@pytest.fixture(scope="module")
def said(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of three failures."""
    home = tmp_path_factory.mktemp("airflow")
    _write_log(home, "run_id=one/task_id=train", LOG)
    _write_log(home, "run_id=one/task_id=train/map_index=3", ["Output:", "error: shard 3 of 8 failed"])
    _write_log(home, "run_id=three/task_id=train", ["DAG bundles loaded"])
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }
    command = [sys.executable, "-c", SAY, str(project_root / "dags")]
    environment = {**os.environ, **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_message_has_the_commands_last_lines_and_what_to_do(said: dict[str, Any]) -> None:
    first, _, *lines = said["logged"]["message"].splitlines()
    assert first == "train of 2026-01-31 failed in my_shop_train (try 2)."
    assert lines[:14] == [*(f"step {number}" for number in range(17, 30)), LOG[-3]]
    assert lines[14] == LOG[-2]
    assert lines[-2].startswith('What to do: mend what the line that begins with "error:" names, then clear')
    assert lines[-1] == "http://airflow/log"


def test_the_message_names_a_mapped_task_by_its_number(said: dict[str, Any]) -> None:
    first, _, *lines = said["mapped"]["message"].splitlines()
    assert first == "train 3 of 2026-01-31 failed in my_shop_train (try 2)."
    assert lines[0] == "error: shard 3 of 8 failed"
    assert "then clear the task train 3 in the run one:" in lines[-2]


@pytest.mark.parametrize("which", ["unlogged", "no_command"])
def test_without_a_commands_words_the_message_has_the_exception(said: dict[str, Any], which: str) -> None:
    assert "it broke" in said[which]["message"].splitlines()


def test_a_mail_says_the_same_and_escapes_it(said: dict[str, Any]) -> None:
    logged = said["logged"]
    assert (logged["to"], logged["subject"]) == (["on-call@example.org"], "my_shop_train: train failed")
    assert "error: shop.yaml: tasks: &lt;b&gt;click&lt;/b&gt; is no column" in logged["html"]


def test_links_lead_to_the_version_and_the_run(said: dict[str, Any]) -> None:
    version = "http://mlflow:5000/#/models/my_shop/versions/7"
    assert said["logged"]["links"] == [version, "http://mlflow:5000/#/runs/abc"]
    assert said["scored"]["links"] == [version, ""]
    assert said["unlogged"]["links"] == ["", ""]
