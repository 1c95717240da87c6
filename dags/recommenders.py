"""Five Airflow DAGs for each recommender in `configs/` that has a `schedule:`; wiring, no logic.

    <name>_ingest    cron      ingest → prepare ───────────────────────────► asset <name>_days
    <name>_train     the asset  all_days_in → train → evaluate → promote → decided ► asset <name>_decisions
    <name>_score     the asset  plan → shards → shard, one task for each → score (→ export)
    <name>_monitor   <name>_days  monitor → retrain_is_due ────────────────► asset <name>_retrain
                                          → found
    <name>_maintain  weekly    maintain

A partition is a day: `dag_run.partition_key` is its date in the recommender's time zone, for scheduled, backfilled
and manual runs alike. Every step is the command of the same name, so it can be run by hand as well.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import (
    DAG,
    Asset,
    CronPartitionTimetable,
    CronTriggerTimetable,
    Param,
    PartitionedAssetTimetable,
    task,
)
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from checked_configs import Scheduled, read_all
from on_call import MlflowRun, MlflowVersion, OnlyWhereItHelps, notifiers, say_what_to_do, say_what_was_found

BESIDE = shutil.which("recsys-moe", path=str(Path(sys.executable).parent))
# Tasks inherit what the environment names. Among a task's own values, Airflow would take a name that ends with .sh for
# that of a template's file.
PROGRAM = {} if os.environ.get("RECSYS_MOE_BIN") else {"RECSYS_MOE_BIN": BESIDE or "recsys-moe"}
# The demo plays days of its own, with no night of today's between them: `off` lets cron start nothing.
END = datetime(2000, 1, 1, tzinfo=UTC) if os.environ.get("RECSYS_MOE_CRON") == "off" else None
RETRY_AFTER = timedelta(seconds=float(os.environ.get("RECSYS_MOE_RETRY_SECONDS") or 60))

# Values come through the environment, never into the text of the command. Airflow runs it in a temporary folder of
# its own and removes that afterwards; stderr and stdout come as one stream, so the result is read from a file.
# Airflow's own settings and connections, with their passwords, are no business of a step, whose YAML may name any
# variable.
COMMAND = """unset $(compgen -v AIRFLOW__) $(compgen -v AIRFLOW_CONN_) $(compgen -v AIRFLOW_VAR_)
export RECSYS_MOE_RESULT="$PWD/result.json"
set -- {arguments}
if [ "$DRY_RUN" = True ]; then {dry_run}; fi
"$RECSYS_MOE_BIN" "$@" && cat "$RECSYS_MOE_RESULT" """
AS_OF = '--as-of "$AS_OF"'
ONLY_SAID = 'echo "dry run, nothing was done: recsys-moe $*"; exit 99'

TOO_MANY = (
    "error: {path}: scoring.users_per_shard: makes {count} shards, and Airflow maps {limit} tasks at most; "
    "raise it, or core.max_map_length in Airflow's settings"
)

DRY_RUN = Param(False, type="boolean", description="Only say what would be done; nothing that follows is started.")

ON_CALL = """
### {name}: {what}

{about}

**A task failed?** The end of its log says what to do; the line that begins with `error:` says what is wrong, where, and
what would be right. Exit code 2 is something to mend in `{path}` or in the delivered file, and is not retried; anything
else was retried already. Mend it, then *clear* the task: every step replaces its own day, so running it again is safe,
and a training goes on from its last checkpoint. Meanwhile yesterday's champion scores today's users.

**Skipped** (pink) means that there was nothing to do: the log says why.

**By hand:** `recsys-moe {step} --config {path}{as_of}`
"""
ABOUT = {
    "ingest": """Each night yesterday's rows, then their examples.

**Days again:** `airflow backfill create --dag-id {name}_ingest --from-date FIRST --to-date LASTT23:59:59
--max-active-runs 1 --reprocess-behavior completed`. Several at once leave the same tables; one by one, oldest
first, is less work. `{name}_train` waits until all are in, so that a month is one training.""",
    "train": """Trains for the newest day, measures the version beside the champion, and lets it take over if the gate
holds. `all_days_in` waits while days are being ingested; `train` is skipped for a day that is not the newest.
`decided` tells `{name}_score` to go on, whatever the outcome; `failed` makes the run red where a task above is.""",
    "score": """The best items for every user, by the champion, for the day after. Skipped until there is a champion.
`plan` fixes the version and the tables and cuts the users into shards; each is a task `shard` of its own, as many at
once as the pool `scoring` has places; `score` looks at all of it and publishes it at once. Where the YAML has
`exports`, the task `export` brings the lists there.

**A shard failed?** Nothing was published, and readers still see the scores of before. Clear that one: the others stand.
After a change in the YAML or in the model clear `plan`, since a plan stays what it was.""",
    "monitor": """Looks at the day: has all come, is it as much as usual, do features and scores drift, does happen what
was predicted, are all experts used. The link *MLflow run* of the task `monitor` has the report; `found` is pink where
all is well, `retrain_is_due` where no training is. Limits are in the YAML's block `monitoring`.""",
    "maintain": """Each week: removes days that the YAML's `retention` no longer keeps, joins small files, deletes those
that no kept version needs.""",
}


def command(
    name: str,
    recommender: Scheduled,
    hours: float,
    options: str = AS_OF,
    env: Mapping[str, str] | None = None,
    dry_run: str = ONLY_SAID,
    **operator: Any,
) -> Any:
    """What makes a task, or many mapped ones, that run a command of the CLI. Exit code 99 marks it as skipped."""

    @task.bash(
        env={
            **PROGRAM,
            "CONFIG": str(recommender.path),
            "AS_OF": "{{ dag_run.partition_key }}",
            "DRY_RUN": "{{ params.dry_run }}",
            **(env or {}),
        },
        append_env=True,
        output_processor=json.loads,
        execution_timeout=timedelta(hours=hours),
        **{"task_id": name, **operator},
    )
    def line(**mapped: Any) -> str:
        return COMMAND.format(arguments=f'{name} --config "$CONFIG" {options}', dry_run=dry_run)

    return line


def step(name: str, recommender: Scheduled, hours: float, options: str = AS_OF, **others: Any) -> Any:
    """A task that runs one command of the CLI, with links to what it made."""
    made = command(name, recommender, hours, options, **others)()
    made.operator.operator_extra_links = (MlflowVersion(), MlflowRun())
    return made


def dag(recommender: Scheduled, what: str, schedule: Any, **options: Any) -> DAG:
    """A DAG of a recommender. One run at a time, oldest first, is the least work; any order leaves the same tables."""
    name, path = recommender.name, recommender.path
    about, as_of = ABOUT[what].format(name=name), "" if what == "maintain" else " --as-of DATE"
    told = notifiers(recommender.email, recommender.slack, "{{ ti.dag_id }}: {{ ti.task_id }} failed")
    return DAG(
        f"{name}_{what}",
        schedule=schedule,
        max_active_runs=1,
        tags=[name, what],
        params={"dry_run": DRY_RUN},
        doc_md=ON_CALL.format(name=name, what=what, about=about, path=path, step=what, as_of=as_of),
        default_args={
            "owner": "recsys-moe",
            "retries": 3,
            "retry_delay": RETRY_AFTER,
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(minutes=30),
            "retry_policy": OnlyWhereItHelps(),
            "on_failure_callback": [say_what_to_do, *told],
        },
        **options,
    )


def ingest_dag(recommender: Scheduled, days: Asset) -> None:
    """Yesterday's rows each day; every day since `schedule.start` where that is given."""
    zone = recommender.timezone
    nightly = CronPartitionTimetable(recommender.cron, timezone=zone, run_offset=-1, key_format="%Y-%m-%d")
    first = recommender.start and recommender.start + timedelta(days=1)  # the night after the first day
    start = first and datetime(first.year, first.month, first.day, tzinfo=ZoneInfo(zone))
    with dag(recommender, "ingest", nightly, start_date=start, end_date=END, catchup=start is not None):
        prepare = step("prepare", recommender, hours=2, options=f"{AS_OF} --alone", outlets=[days])
        step("ingest", recommender, hours=2) >> prepare


def train_dag(recommender: Scheduled, after: Asset, decisions: Asset) -> None:
    """Train the newest day, compare, promote. `decided` follows whatever the outcome: the champion still scores."""
    with dag(recommender, "train", PartitionedAssetTimetable(assets=after)):
        train = step("train", recommender, hours=12, options=f"{AS_OF} --if-due", pool="gpu")
        evaluate, promote = step("evaluate", recommender, hours=2), step("promote", recommender, hours=1)

        @task.sensor(poke_interval=15, timeout=6 * 3600, mode="reschedule", execution_timeout=timedelta(minutes=5))
        def all_days_in(ti: Any) -> bool:
            """Many days that come in at once are one training: that of the newest, once the last is in."""
            dag_id = f"{recommender.name}_ingest"
            return recommender.every_day or ti.get_dr_count(dag_id=dag_id, states=["queued", "running"]) == 0

        @task(trigger_rule="all_done", outlets=[decisions], execution_timeout=timedelta(minutes=5))
        def decided(params: dict[str, Any]) -> None:
            """Emit the day's asset, but of a dry run."""
            if params["dry_run"]:
                raise AirflowSkipException("dry run: nothing is scored")

        @task(trigger_rule="one_failed", retries=0, on_failure_callback=[], execution_timeout=timedelta(minutes=5))
        def failed() -> None:
            """Fail the run: `decided` alone would make it look like a success."""
            raise AirflowFailException("a task above failed; the champion of before stays and scores")

        waited = all_days_in()
        waited >> train >> evaluate >> promote >> decided()
        [waited, train, evaluate, promote] >> failed()


def score_dag(recommender: Scheduled, after: Asset) -> None:
    """The best items for every user, by the champion: each shard is a task, and they are published together."""
    env = {"PLAN": "{{ ti.xcom_pull(task_ids='plan')['plan'] }}"}
    with dag(recommender, "score", PartitionedAssetTimetable(assets=after)):

        @task(execution_timeout=timedelta(minutes=5))
        def shards(planned: dict[str, Any]) -> list[int]:
            """The numbers of the plan's shards: what tasks are mapped over must be a list."""
            count, limit = planned["shards"], conf.getint("core", "max_map_length")
            if count > limit:
                raise AirflowFailException(TOO_MANY.format(path=recommender.path, count=count, limit=limit))
            return list(range(count))

        shard = command(
            "score-shard",
            recommender,
            hours=4,
            options='--plan "$PLAN" --shard "$SHARD"',
            env={**env, "SHARD": "{{ ti.map_index }}"},
            task_id="shard",
            map_index_template="shard {{ ti.map_index }} of {{ ti.xcom_pull(task_ids='plan')['shards'] }}",
            pool="scoring",
        )
        planned = step("score-plan", recommender, hours=2, task_id="plan")
        done = shard.expand(number=shards(planned))
        published = step("score-publish", recommender, hours=2, options='--plan "$PLAN"', env=env, task_id="score")
        done >> published
        if recommender.exports:
            published >> step("export", recommender, hours=2)


def monitor_dag(recommender: Scheduled, days: Asset, retrain: Asset) -> None:
    """What came in and what became of yesterday's scores. A skipped task emits no asset, and tells nobody."""
    subject = "{{ ti.dag_id }}: {{ ti.xcom_pull(task_ids='monitor')['verdict'] }}"
    told = [say_what_was_found, *notifiers(recommender.email, recommender.slack, subject)]
    with dag(recommender, "monitor", PartitionedAssetTimetable(assets=days)):

        @task(outlets=[retrain], execution_timeout=timedelta(minutes=5))
        def retrain_is_due(seen: dict[str, Any]) -> list[str]:
            """Emit the asset where the monitor says so."""
            if not seen["retrain"]:
                raise AirflowSkipException("no training is due")
            return list(seen["reasons"])

        @task(on_success_callback=told, execution_timeout=timedelta(minutes=5))
        def found(seen: dict[str, Any]) -> None:
            """Tell of what is not as it should be."""
            if seen["verdict"] == "ok":
                raise AirflowSkipException("all is well")

        seen = step("monitor", recommender, hours=2)
        retrain_is_due(seen)
        found(seen)


def maintain_dag(recommender: Scheduled) -> None:
    """Once a week, half a day away from the nightly work, whose writes a compaction could make fail."""
    minute, hour = recommender.cron.split()[:2]
    weekly = CronTriggerTimetable(f"{minute} {(int(hour) + 12) % 24} * * 0", timezone=recommender.timezone)
    with dag(recommender, "maintain", weekly, end_date=END, catchup=False):
        step("maintain", recommender, hours=6, options="", dry_run='set -- "$@" --dry-run')


for one in read_all()[0]:
    days, decisions, retrain = (Asset(f"{one.name}_{what}") for what in ("days", "decisions", "retrain"))
    ingest_dag(one, days)
    train_dag(one, retrain if one.train == "when_due" else days, decisions)
    score_dag(one, days if one.score == "after_ingest" else decisions)
    monitor_dag(one, days, retrain)
    maintain_dag(one)
