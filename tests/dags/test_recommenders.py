"""The DAG files, read as Airflow reads them: what they make of a folder of YAMLs, good and broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOOD = """
name: {name}
columns: {{timezone: Asia/Shanghai}}
schedule: {{ingest: "0 3 * * *", train: after_ingest, score: {score}}}
"""

# One process reads a folder and says what it found, as JSON: Airflow keeps its settings in module globals, and it is a
# process of Airflow's that parses these files in a real run too.
READ = """
import json, sys
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization

dags = Path(sys.argv[1])
bag = BundleDagBag(dag_folder=dags, bundle_path=dags, bundle_name="test")
def of(task, name):
    return task.partial_kwargs.get(name) if task.is_mapped else getattr(task, name, None)

def of_shards(count):
    score = next(dag for dag_id, dag in sorted(bag.dags.items()) if dag_id.endswith("_score"))
    try:
        return score.get_task("shards").python_callable({"shards": count})
    except AirflowFailException as refusal:
        return str(refusal)

heavy = ("torch", "mlflow", "pandas", "numpy", "pyarrow", "pipelines", "recsys_moe")
print(json.dumps({
    "dags": {dag_id: DagSerialization.to_dict(dag)["dag"] for dag_id, dag in bag.dags.items()},
    "tasks": {dag_id: {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
              for dag_id, dag in bag.dags.items()},
    "errors": bag.import_errors,
    "heavy": sorted(set(heavy) & set(sys.modules)),
    "commands": {f"{dag_id}.{task.task_id}": [task.python_callable(), of(task, "env")]
                 for dag_id, dag in bag.dags.items() for task in dag.tasks if of(task, "append_env")},
    "of_task": {f"{dag_id}.{task.task_id}": {
                    "retries": task.retries,
                    "decisions": {code: task.retry_policy.evaluate(Exception(f"exit code {code}."), 1, 3).action.value
                                  for code in (2, 75, 1, 22)},
                    "mapped": task.is_mapped,
                    "seconds": task.execution_timeout.total_seconds(),
                    "outlets": [outlet.name for outlet in task.outlets],
                    "pool": task.pool,
                    "links": [link.name for link in task.operator_extra_links],
                    "on_failure": [getattr(one, "__name__", type(one).__name__) for one in task.on_failure_callback],
                    "on_success": [getattr(one, "__name__", type(one).__name__) for one in task.on_success_callback],
                } for dag_id, dag in bag.dags.items() for task in dag.tasks},
    "shards": [of_shards(3), of_shards(1025)],
    "docs": {dag_id: dag.doc_md for dag_id, dag in bag.dags.items()},
}))
"""

PARTS = {
    "maintain.maintain": ("maintain", ""),
    "ingest.prepare": ("prepare", ' --as-of "$AS_OF" --alone'),
    "score.plan": ("score-plan", ' --as-of "$AS_OF"'),
    "score.shard": ("score-shard", ' --plan "$PLAN" --shard "$SHARD"'),
    "score.score": ("score-publish", ' --plan "$PLAN"'),
    "score.export": ("export", ' --as-of "$AS_OF"'),
}
"""Commands that are called otherwise than their tasks, or without a day, and their options."""
KINDS = ("ingest", "train", "score", "monitor", "maintain")
Read = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def read(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Read the DAG files over a folder of configs."""
    home = tmp_path_factory.mktemp("airflow")

    def read_configs(configs: Path) -> dict[str, Any]:
        settings = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        environment = {**os.environ, **settings, "RECSYS_MOE_CONFIGS": str(configs)}
        command = [sys.executable, "-c", READ, str(project_root / "dags")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return read_configs


@pytest.fixture(scope="module")
def broken(read: Read, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder with two good recommenders, one without a schedule, and one broken in each way."""
    folder = tmp_path_factory.mktemp("configs")
    files = {
        "good": GOOD.format(name="good", score="after_train"),
        "rarely": GOOD.format(name="rarely", score="after_ingest") + "start: 1",
        "by_hand": "name: by_hand",
        "syntax": "name: [",
        "empty": "",
        "key": GOOD.format(name="key", score="after_train").replace("train:", "trian:"),
        "cron": GOOD.format(name="cron", score="after_train").replace("0 3", "0 33"),
        "hourly": GOOD.format(name="hourly", score="after_train").replace("0 3", "0 *"),
        "zone": GOOD.format(name="zone", score="after_train").replace("Shanghai", "Shangri-La"),
        "name": GOOD.format(name="My Shop", score="after_train"),
        "a_copy": GOOD.format(name="good", score="after_ingest"),
        "start": GOOD.format(name="start", score="after_train").replace("}\n", ", start: tomorrow}\n"),
        "seldom": GOOD.format(name="seldom", score="after_train").replace("train: after_ingest", "train: when_due"),
        "told": GOOD.format(name="told", score="after_train").replace("}\n", ", alerts: {email: [nobody]}}\n"),
        "slack": GOOD.format(name="slack", score="after_train").replace("}\n", ", alerts: {slack: '#on-call'}}\n"),
    }
    files["rarely"] = GOOD.format(name="rarely", score="after_ingest").replace(
        "train: after_ingest, score: after_ingest",
        "train: when_due, score: after_ingest, start: 2026-05-04, alerts: {email: [on-call@example.org]}",
    )
    files["rarely"] += "exports: [{name: lake, kind: parquet, path: '../out/{ds}.parquet'}]"
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return read(folder)


def test_the_shipped_configs_have_no_import_errors(read: Read, project_root: Path) -> None:
    found = read(project_root / "configs")
    assert found["errors"] == {}
    assert {f"demo_{kind}" for kind in KINDS} <= set(found["dags"])


def test_each_schedule_makes_five_dags(broken: dict[str, Any]) -> None:
    names = [f"{name}_{what}" for name in ("good", "rarely") for what in KINDS]
    assert sorted(broken["dags"]) == sorted(names)
    assert broken["tasks"]["good_ingest"] == {"ingest": ["prepare"], "prepare": []}
    assert broken["tasks"]["good_score"] == {"plan": ["shards"], "shards": ["shard"], "shard": ["score"], "score": []}
    assert broken["tasks"]["rarely_score"]["score"] == ["export"]
    assert broken["tasks"]["good_monitor"] == {
        "monitor": ["found", "retrain_is_due"],
        "found": [],
        "retrain_is_due": [],
    }
    assert broken["tasks"]["good_maintain"] == {"maintain": []}
    assert broken["tasks"]["good_train"] == {
        "all_days_in": ["failed", "train"],
        "train": ["evaluate", "failed"],
        "evaluate": ["failed", "promote"],
        "promote": ["decided", "failed"],
        "decided": [],
        "failed": [],
    }


def test_ingest_runs_at_the_schedules_hour_for_the_day_before(broken: dict[str, Any]) -> None:
    timetable = broken["dags"]["good_ingest"]["timetable"]
    assert timetable["__type"].endswith("CronPartitionTimetable")
    assert timetable["__var"]["expression"] == "0 3 * * *"
    assert timetable["__var"]["timezone"] == "Asia/Shanghai"
    assert timetable["__var"]["run_offset"] == -1
    assert timetable["__var"]["key_format"] == "%Y-%m-%d"


@pytest.mark.parametrize(
    ("dag_id", "asset"),
    [
        ("good_train", "good_days"),
        ("good_score", "good_decisions"),
        ("good_monitor", "good_days"),
        ("rarely_train", "rarely_retrain"),
        ("rarely_score", "rarely_days"),
    ],
)
def test_the_others_follow_an_asset(broken: dict[str, Any], dag_id: str, asset: str) -> None:
    timetable = broken["dags"][dag_id]["timetable"]
    assert timetable["__type"].endswith("PartitionedAssetTimetable")
    assert timetable["__var"]["asset_condition"]["name"] == asset


def test_days_are_caught_up_from_the_start_that_is_named(broken: dict[str, Any]) -> None:
    assert broken["dags"]["rarely_ingest"]["catchup"] is True
    # 5 May 00:00 in Shanghai: that night's run is the one for 4 May.
    assert broken["dags"]["rarely_ingest"]["start_date"] == 1777910400.0
    assert broken["dags"]["good_ingest"].get("catchup", False) is False


def test_values_reach_the_command_through_the_environment_only(broken: dict[str, Any]) -> None:
    commands = broken["commands"]
    assert len(commands) == 21
    for task, (command, environment) in commands.items():
        assert environment["AS_OF"] == "{{ dag_run.partition_key }}"
        assert environment["DRY_RUN"] == "{{ params.dry_run }}"
        assert environment["CONFIG"].endswith(f"/{task.split('_')[0]}.yaml")
        assert environment["RECSYS_MOE_BIN"] == str(Path(sys.executable).with_name("recsys-moe"))
        assert "{" not in command
        assert not any(value in command for value in environment.values())
        step, options = PARTS.get(task.split("_")[1], (task.split(".")[1], ' --as-of "$AS_OF"'))
        assert f'set -- {step} --config "$CONFIG"{options}' in command


def test_a_shard_is_a_task_that_is_told_its_plan_and_its_number(broken: dict[str, Any]) -> None:
    mapped = {task for task, known in broken["of_task"].items() if known["mapped"]}
    assert mapped == {"good_score.shard", "rarely_score.shard"}
    environment = broken["commands"]["good_score.shard"][1]
    assert environment["PLAN"] == broken["commands"]["good_score.score"][1]["PLAN"]
    assert "task_ids='plan'" in environment["PLAN"]
    assert environment["SHARD"] == "{{ ti.map_index }}"


def test_more_shards_than_airflow_maps_are_refused(broken: dict[str, Any]) -> None:
    fine, refusal = broken["shards"]
    assert fine == [0, 1, 2]
    assert refusal.startswith("error: ")
    assert "good.yaml: scoring.users_per_shard: makes 1025 shards, and Airflow maps 1024 tasks at most" in refusal


@pytest.mark.parametrize("task", ["good_train.train", "good_score.plan", "good_maintain.maintain"])
@pytest.mark.parametrize(("dry_run", "code"), [("False", 0), ("True", 99)])
def test_a_dry_run_calls_nothing_that_changes_anything(
    broken: dict[str, Any], tmp_path: Path, task: str, dry_run: str, code: int
) -> None:
    """The commands themselves, with a program in the CLI's place that writes its arguments where results go."""
    program = tmp_path / "cli"
    program.write_text('#!/bin/sh\necho "$@" > "$RECSYS_MOE_RESULT"\n', encoding="utf-8")
    program.chmod(0o755)
    command, _ = broken["commands"][task]
    values = {"RECSYS_MOE_BIN": str(program), "CONFIG": "a b.yaml", "AS_OF": "2026-01-31", "DRY_RUN": dry_run}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env={**os.environ, **values}, capture_output=True, text=True, check=False
    )
    knows_dry_runs = task == "good_maintain.maintain"
    assert done.returncode == (0 if knows_dry_runs else code)
    assert (tmp_path / "result.json").exists() == (knows_dry_runs or code == 0)
    assert ("--dry-run" in done.stdout) == (knows_dry_runs and dry_run == "True")
    assert "--config a b.yaml" in done.stdout


@pytest.mark.parametrize(
    "settings", [{}, dict.fromkeys(("AIRFLOW__CELERY__BROKER_URL", "AIRFLOW_CONN_SLACK", "AIRFLOW_VAR_KEY"), "secret")]
)
def test_a_step_gets_the_environment_without_airflows_settings(
    broken: dict[str, Any], tmp_path: Path, settings: dict[str, str]
) -> None:
    program = tmp_path / "cli"
    program.write_text('#!/bin/sh\nenv > "$RECSYS_MOE_RESULT"\n', encoding="utf-8")
    program.chmod(0o755)
    command, _ = broken["commands"]["good_train.train"]
    values = {"RECSYS_MOE_BIN": str(program), "CONFIG": "a.yaml", "AS_OF": "2026-01-31", "DRY_RUN": "False"}
    environment = {"PATH": os.environ["PATH"], "AWS_ACCESS_KEY_ID": "its own", **settings, **values}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "AWS_ACCESS_KEY_ID=its own" in done.stdout.splitlines()
    assert "AIRFLOW_" not in done.stdout
    assert done.stderr == ""


def test_a_users_error_is_not_retried_and_what_may_pass_is(broken: dict[str, Any]) -> None:
    for task, known in broken["of_task"].items():
        assert known["decisions"] == {"2": "fail", "75": "default", "1": "default", "22": "default"}
        assert known["retries"] == (0 if task.endswith("_train.failed") else 3)


def test_each_task_has_an_end_and_says_what_to_do(broken: dict[str, Any]) -> None:
    for task, known in broken["of_task"].items():
        assert 0 < known["seconds"] <= 12 * 3600
        told = ["say_what_to_do", *(["SmtpNotifier"] if task.startswith("rarely") else [])]
        assert known["on_failure"] == ([] if task.endswith("_train.failed") else told)


def test_one_training_at_a_time_and_as_many_shards_as_there_are_places(broken: dict[str, Any]) -> None:
    pools = {task: known["pool"] for task, known in broken["of_task"].items()}
    assert pools.pop("good_train.train") == pools.pop("rarely_train.train") == "gpu"
    assert pools.pop("good_score.shard") == pools.pop("rarely_score.shard") == "scoring"
    assert set(pools.values()) == {"default_pool"}


def test_what_a_day_sets_off(broken: dict[str, Any]) -> None:
    outlets = {task: known["outlets"] for task, known in broken["of_task"].items() if known["outlets"]}
    assert {task: names for task, names in outlets.items() if task.startswith("good")} == {
        "good_ingest.prepare": ["good_days"],
        "good_train.decided": ["good_decisions"],
        "good_monitor.retrain_is_due": ["good_retrain"],
    }


def test_the_monitor_tells_what_it_found(broken: dict[str, Any]) -> None:
    of_task = broken["of_task"]
    assert of_task["good_monitor.found"]["on_success"] == ["say_what_was_found"]
    assert of_task["rarely_monitor.found"]["on_success"] == ["say_what_was_found", "SmtpNotifier"]


def test_commands_link_to_mlflow(broken: dict[str, Any]) -> None:
    links = {task: known["links"] for task, known in broken["of_task"].items()}
    of_one_run = [task for task in broken["commands"] if not broken["of_task"][task]["mapped"]]
    assert all(links[task] == ["MLflow version", "MLflow run"] for task in of_one_run)


def test_each_dag_tells_an_on_call_person_what_to_do(broken: dict[str, Any]) -> None:
    for dag_id, docs in broken["docs"].items():
        name, what = dag_id.split("_")
        assert f"`recsys-moe {what} --config" in docs
        assert f"/{name}.yaml" in docs
        assert "{" not in docs
        assert "A task failed?" in docs


def test_reading_the_dags_imports_nothing_heavy(broken: dict[str, Any]) -> None:
    assert broken["heavy"] == []


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("syntax", "while parsing"),
        ("empty", "file: None is not of type 'object'"),
        ("key", "'trian' was unexpected"),
        ("cron", "'0 33 * * *' is no cron"),
        ("hourly", "'0 * * * *' is no cron for one time a day"),
        ("zone", "'Asia/Shangri-La' is no time zone"),
        ("name", "'My Shop' does not match"),
        ("a_copy", "'good' is taken by good.yaml"),
        ("start", "schedule.start: 'tomorrow' does not match"),
        ("seldom", "schedule.score: with train: when_due, set score: after_ingest"),
        ("told", "schedule.alerts.email[0]: 'nobody' does not match"),
        ("slack", "needs the package apache-airflow-providers-slack"),
    ],
)
def test_a_broken_yaml_shows_as_an_import_error_of_its_own(broken: dict[str, Any], file: str, words: str) -> None:
    # The recommenders' own file has none: Airflow takes every DAG of a file with an import error out of service.
    assert list(broken["errors"]) == ["broken_recommenders.py"]
    message = next(
        line for line in broken["errors"]["broken_recommenders.py"].splitlines() if f" {file}.yaml: " in line
    )
    assert words in message


def test_a_url_in_a_yaml_is_not_shown(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project_root / "dags")
    from checked_configs import read_all

    wrong = "exports: [{name: store, kind: redis, connection: 'redis://:secret@host'}]\n"
    (tmp_path / "shop.yaml").write_text(GOOD.format(name="shop", score="after_train") + wrong, encoding="utf-8")
    schema = {"properties": {"exports": {"items": {"properties": {"connection": {"pattern": "^[A-Z_]+$"}}}}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    found, (problem,) = read_all(tmp_path)
    assert found == []
    assert problem.startswith("shop.yaml: exports[0].connection: is not what the schema asks for")
