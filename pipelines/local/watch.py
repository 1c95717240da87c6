"""Follow Airflow's runs until those that are promised have ended: a live grid on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
from rich.live import Live
from rich.table import Table

from pipelines.local.services import Services, tail
from pipelines.progress import console

_SIGNS = {"queued": "[dim]…", "running": "[cyan]▶", "success": "[green]✔", "failed": "[red]✘"}
_SECONDS_BETWEEN_LOOKS = 2.5


class RunFailed(Exception):
    """A run failed; the message names the task and holds the end of its log."""


@dataclass
class Watch:
    """The runs of one recommender's DAGs, by DAG and day, and what is known of them."""

    services: Services
    days: Sequence[date]
    name: str
    patience_seconds: float = 1200
    _seen: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def dag_ids(self) -> list[str]:
        """The recommender's DAGs, in the order in which they follow each other."""
        return [f"{self.name}_{what}" for what in ("ingest", "train", "score")]

    def play(self, title: str, days: Sequence[date], with_training: bool = True) -> None:
        """Ingest `days` (several are a backfill), and return when that and what follows from it has succeeded.

        Raises:
            RunFailed: a run has failed.
            UserError: a service has ended, or it takes too long.
        """
        console.print(f"[bold]{title}[/]: {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else ""), highlight=False)
        dag_ids = self.dag_ids if with_training else self.dag_ids[:1]
        for dag_id in dag_ids:
            self.services.airflow.unpause(dag_id)
        if len(days) > 1:
            self.services.airflow.backfill(self.dag_ids[0], days[0], days[-1])
        else:
            self.services.airflow.run(self.dag_ids[0], days[0])
        wanted = {(dag_id, str(day)) for dag_id in dag_ids for day in days}
        live = Live(console=console, get_renderable=self._grid) if console.is_terminal else None
        shown: AbstractContextManager[object] = live or nullcontext()
        with shown:
            self.services.wait_until(title, lambda: self._all_succeeded(wanted), self.patience_seconds)

    def results(self) -> dict[tuple[str, date], dict[str, Any]]:
        """What each step returned for each day; steps that were skipped are left out."""
        found = {}
        for (dag_id, day), run in self._seen.items():
            for task in self.services.airflow.tasks(dag_id, run["dag_run_id"]):
                value = self.services.airflow.result(dag_id, run["dag_run_id"], task["task_id"])
                if isinstance(value, dict):
                    found[task["task_id"], date.fromisoformat(day)] = value
        return found

    def _all_succeeded(self, wanted: set[tuple[str, str]]) -> bool:
        with suppress(httpx.TimeoutException):  # on a busy machine Airflow takes its time to answer
            for dag_id in self.dag_ids:
                for run in self.services.airflow.runs(dag_id):
                    self._look_at(dag_id, run)
        if all(self._seen.get(key, {}).get("state") == "success" for key in wanted):
            return True
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        return False

    def _look_at(self, dag_id: str, run: dict[str, Any]) -> None:
        key = dag_id, run["partition_key"]
        before = self._seen.get(key, {}).get("state")
        self._seen[key] = run
        if run["state"] != before and not console.is_terminal:
            console.print(f"{time.monotonic() - self._started:6.0f} s  {dag_id} {run['partition_key']}: {run['state']}")
        if run["state"] == "failed":
            raise RunFailed(self._last_words(dag_id, run))

    def _last_words(self, dag_id: str, run: dict[str, Any]) -> str:
        tasks = self.services.airflow.tasks(dag_id, run["dag_run_id"])
        # `failed` only passes on that another task has failed.
        task = next((one for one in tasks if one["state"] == "failed" and one["task_id"] != "failed"), tasks[0])
        log = self.services.layout.task_log(dag_id, run["dag_run_id"], task)
        return f"{dag_id}: {task['task_id']} of {run['partition_key']} failed. Its log ends with\n{tail_of_task(log)}"

    def _grid(self) -> Table:
        grid = Table("", *(day.strftime("%d %b") for day in self.days), box=None, padding=(0, 1))
        for dag_id in self.dag_ids:
            states = (self._seen.get((dag_id, str(day)), {}).get("state", "") for day in self.days)
            grid.add_row(dag_id, *(_SIGNS.get(state, "[dim]·") for state in states))
        return grid


def tail_of_task(log: Path) -> str:
    """The last lines of a task's log, which is JSON by the line, as a person reads them."""
    *lines, place = tail(log, lines=25).splitlines()
    return "\n".join([*(_event(line) for line in lines), place])


def _event(line: str) -> str:
    try:
        return str(json.loads(line)["event"])
    except (ValueError, TypeError, KeyError):
        return line
