"""What Airflow does when a task fails, whom it tells, and the links from a task to what it made.

Notifiers are Airflow's own, and reach people through its connections (`smtp_default`, `slack_api_default`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink, RetryDecision, RetryPolicy
from airflow.sdk.configuration import conf

log = logging.getLogger(__name__)

MLFLOW_PAGES = os.environ.get("RECSYS_MOE_MLFLOW_PAGES") or os.environ.get("MLFLOW_TRACKING_URI", "")
_LINES = 15
_BEFORE, _AFTER = "Output:", "Command exited with return code"
"""What Airflow writes around a command's own words."""
_NO_LONGER_FOLDED = "::endgroup::"
"""Ends the group "Post Execute", which Airflow's page keeps folded: what callbacks say would not be seen."""

WHAT_TO_DO = """{task} of {day} failed in {dag} (try {number}).

{lines}

What to do: mend what the line that begins with "error:" names, then clear the task {task} in the run {run}:
{address}"""


class OnlyWhereItHelps(RetryPolicy):
    """Exit code 2 is something that a person has to put right: trying again cannot help. What passes by itself
    (exit code 75), a killed process or a bug that only shows at times may."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        if "exit code 2." in str(exception):
            return RetryDecision.fail("exit code 2: mend what the last line of the log names, then clear this task")
        return RetryDecision.default()


def say_what_to_do(context: Any) -> None:
    """Leave the on-call person's next step, below the log's last lines, as the end of the failed task's log; notifiers
    that come after find the same as `message`."""
    ti, run = context["ti"], context["dag_run"]
    context["message"] = WHAT_TO_DO.format(
        task=_which(ti),
        day=run.partition_key or run.run_id,
        dag=ti.dag_id,
        number=ti.try_number,
        lines="\n".join(last_lines(context)) or str(context.get("exception", "")),
        run=run.run_id,
        address=ti.log_url,
    )
    log.info(_NO_LONGER_FOLDED)
    log.error("%s", context["message"])


def say_what_was_found(context: Any) -> None:
    """The monitor's findings, for the log and for notifiers."""
    seen, ti = context["ti"].xcom_pull(task_ids="monitor"), context["ti"]
    found = "\n".join(f"- {one}" for one in seen["findings"])
    context["message"] = f"{ti.dag_id} of {seen['as_of']}: {seen['verdict']}\n\n{found}\n\n{ti.log_url}"
    log.warning("%s", context["message"])


def last_lines(context: Any) -> list[str]:
    """The end of what the command said, as the task's log has it; none where the task is no command, or logs are not
    files of this machine."""
    ti = context["ti"]
    name = context["task"].render_template(
        conf.get("logging", "log_filename_template"), {"ti": ti, "try_number": ti.try_number}
    )
    try:
        text = (Path(conf.get("logging", "base_log_folder")) / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    events = [_event(line) for line in text.splitlines()]
    if _BEFORE not in events:
        return []
    events = events[len(events) - events[::-1].index(_BEFORE) :]
    ended = next((place for place, event in enumerate(events) if event.startswith(_AFTER)), len(events))
    return events[: ended + 1][-_LINES:]


def _which(ti: Any) -> str:
    """The task, and which of those that it is mapped to."""
    return f"{ti.task_id} {ti.map_index}" if ti.map_index >= 0 else str(ti.task_id)


def _event(line: str) -> str:
    """A line of a log, which is JSON, as a person reads it."""
    try:
        return str(json.loads(line)["event"])
    except (ValueError, TypeError, KeyError):
        return line


def notifiers(email: tuple[str, ...], slack: str | None, subject: str) -> list[Callable[[Any], None]]:
    """Who is told `message`: nobody but the log where no address is named."""
    told: list[Callable[[Any], None]] = []
    if email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        told.append(SmtpNotifier(to=list(email), subject=subject, html_content="<pre>{{ message | e }}</pre>"))
    if slack:
        from airflow.providers.slack.notifications.slack import SlackNotifier

        told.append(SlackNotifier(channel=slack, text="{{ message }}"))
    return told


class MlflowVersion(BaseOperatorLink):
    """From a task that made or used a version to its page, which links to the run that trained it."""

    name = "MLflow version"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Empty, and so not shown, where there is no version or no MLflow server."""
        result = _result(ti_key)
        number = result.get("version") or result.get("model_version")
        name = quote(operator.dag.dag_id.rpartition("_")[0])
        return f"{MLFLOW_PAGES}/#/models/{name}/versions/{number}" if number and _is_server() else ""


class MlflowRun(BaseOperatorLink):
    """From a task that wrote a run to its page."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Empty, and so not shown, where there is no run or no MLflow server."""
        run_id = _result(ti_key).get("run_id")
        return f"{MLFLOW_PAGES}/#/runs/{run_id}" if run_id and _is_server() else ""


def _result(ti: Any) -> dict[str, Any]:
    found = ti.xcom_pull(task_ids=ti.task_id)
    return found if isinstance(found, dict) else {}


def _is_server() -> bool:
    return MLFLOW_PAGES.startswith(("http://", "https://"))
