"""Three Airflow DAGs for each recommender in `configs/` that has a `schedule:`; wiring, no logic.

    <name>_ingest   cron      ingest → prepare ─────────────► asset <name>_days
    <name>_train    the asset  train → evaluate → promote → decided ► asset <name>_decisions
    <name>_score    the asset  score

A partition is a day: `dag_run.partition_key` is its date in the recommender's time zone, for scheduled, backfilled
and manual runs alike. Every step is the command of the same name, so it can be run by hand as well.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, Asset, CronPartitionTimetable, PartitionedAssetTimetable, RetryDecision, RetryPolicy, task
from airflow.sdk.exceptions import AirflowFailException
from checked_configs import Scheduled, read_all

BESIDE = shutil.which("recsys-moe", path=str(Path(sys.executable).parent))
BIN = os.environ.get("RECSYS_MOE_BIN") or BESIDE or "recsys-moe"
# The demo plays days of its own, with no night of today's between them: `off` lets cron start nothing.
END = datetime(2000, 1, 1, tzinfo=UTC) if os.environ.get("RECSYS_MOE_CRON") == "off" else None

# Values come through the environment, never into the text of the command. Airflow runs it in a temporary folder of
# its own and removes that afterwards; stderr and stdout come as one stream, so the result is read from a file.
COMMAND = """export RECSYS_MOE_RESULT="$PWD/result.json"
"$RECSYS_MOE_BIN" {step} --config "$CONFIG" --as-of "$AS_OF" && cat "$RECSYS_MOE_RESULT" """

ON_CALL = """
### {name}: {what}

**A task failed?** In its log, the line that begins with `error:` says what is wrong, where, and what would be right.
Exit code 2 is something to mend in `{path}` or in the delivered file, and is not retried; anything else was retried
already. Mend it, then *clear* the task: every step replaces its own day, so running it again is safe, and a training
goes on from its last checkpoint. Meanwhile yesterday's champion scores today's users.

**By hand:** `recsys-moe {step} --config {path} --as-of DATE`

**Days again:** `airflow backfill create --dag-id {name}_ingest --from-date FIRST --to-date LASTT23:59:59
--max-active-runs 1 --reprocess-behavior completed`. A training follows for each day that is the newest when its turn
comes; pause `{name}_train` until the last day is due, and there is only one.
"""


class NoRetryForUserErrors(RetryPolicy):
    """Exit code 2 is something that a person has to put right: trying again cannot help."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        if "exit code 2." in str(exception):
            return RetryDecision.fail("exit code 2: mend what the last line of the log names, then clear this task")
        return RetryDecision.default()


def say_what_to_do(context: Any) -> None:
    """Leave the on-call person's next step as the last line of the failed task's log."""
    ti, run = context["ti"], context["dag_run"]
    logging.getLogger(__name__).error(
        "%s of %s failed. Mend what the lines above name, then clear the task %s in the run %s.",
        *(ti.task_id, run.partition_key, ti.task_id, run.run_id),
    )


def step(name: str, recommender: Scheduled, hours: float, options: str = "", **operator: Any) -> Any:
    """A task that runs one command of the CLI. Exit code 99 marks it as skipped."""

    @task.bash(
        task_id=name,
        env={"RECSYS_MOE_BIN": BIN, "CONFIG": str(recommender.path), "AS_OF": "{{ dag_run.partition_key }}"},
        append_env=True,
        output_processor=json.loads,
        execution_timeout=timedelta(hours=hours),
        **operator,
    )
    def command() -> str:
        return COMMAND.format(step=f"{name} {options}".strip())

    return command()


def dag(recommender: Scheduled, what: str, first_step: str, schedule: Any, **options: Any) -> DAG:
    """One run at a time, oldest first: a day's history features need the days before it."""
    return DAG(
        f"{recommender.name}_{what}",
        schedule=schedule,
        max_active_runs=1,
        tags=[recommender.name, what],
        doc_md=ON_CALL.format(name=recommender.name, what=what, path=recommender.path, step=first_step),
        default_args={
            "owner": "recsys-moe",
            "retries": 2,
            "retry_delay": timedelta(minutes=1),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(minutes=30),
            "retry_policy": NoRetryForUserErrors(),
            "on_failure_callback": say_what_to_do,
        },
        **options,
    )


def ingest_dag(recommender: Scheduled, days: Asset) -> None:
    """Yesterday's rows each day; every day since `schedule.start` where that is given."""
    zone = recommender.timezone
    nightly = CronPartitionTimetable(recommender.cron, timezone=zone, run_offset=-1, key_format="%Y-%m-%d")
    first = recommender.start and recommender.start + timedelta(days=1)  # the night after the first day
    start = first and datetime(first.year, first.month, first.day, tzinfo=ZoneInfo(zone))
    with dag(recommender, "ingest", "ingest", nightly, start_date=start, end_date=END, catchup=start is not None):
        step("ingest", recommender, hours=2) >> step("prepare", recommender, hours=2, outlets=[days])


def train_dag(recommender: Scheduled, days: Asset, decisions: Asset) -> None:
    """Train the newest day, compare, promote. `decided` follows whatever the outcome: the champion still scores."""
    with dag(recommender, "train", "train", PartitionedAssetTimetable(assets=days)):
        train = step("train", recommender, hours=12, options="--if-due", pool="gpu")
        evaluate, promote = step("evaluate", recommender, hours=2), step("promote", recommender, hours=1)

        @task(trigger_rule="all_done", outlets=[decisions], execution_timeout=timedelta(minutes=5))
        def decided() -> None:
            """Emit the day's asset."""

        @task(trigger_rule="one_failed", retries=0, execution_timeout=timedelta(minutes=5))
        def failed() -> None:
            """Fail the run: `decided` alone would make it look like a success."""
            raise AirflowFailException("a task above failed; the champion of before stays and scores")

        train >> evaluate >> promote >> decided()
        [train, evaluate, promote] >> failed()


def score_dag(recommender: Scheduled, after: Asset) -> None:
    """The best items for every user, by the champion."""
    with dag(recommender, "score", "score", PartitionedAssetTimetable(assets=after)):
        step("score", recommender, hours=4)


for one in read_all()[0]:
    days, decisions = Asset(f"{one.name}_days"), Asset(f"{one.name}_decisions")
    ingest_dag(one, days)
    train_dag(one, days, decisions)
    score_dag(one, days if one.score == "after_ingest" else decisions)
