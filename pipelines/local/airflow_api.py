"""The few things that are asked of Airflow, over its REST API (its command line takes seconds to start)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import httpx


@dataclass(frozen=True)
class Airflow:
    """An Airflow server and the login to it."""

    url: str
    username: str
    password: str

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def is_ready(self) -> bool:
        """Whether it answers, and its scheduler and DAG processor are alive."""
        try:
            health = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        return all((health.get(part) or {}).get("status") == "healthy" for part in ("scheduler", "dag_processor"))

    def import_errors(self) -> list[str]:
        """What Airflow could not load, a message each."""
        return [error["stack_trace"] for error in self._call("GET", "importErrors")["import_errors"]]

    def has_dag(self, dag_id: str) -> bool:
        """Whether the DAG was read and can run."""
        dags = self._call("GET", "dags", params={"dag_id_pattern": dag_id})["dags"]
        return any(dag["dag_id"] == dag_id and not dag["has_import_errors"] for dag in dags)

    def create_pool(self, name: str, slots: int, description: str) -> None:
        """Create a pool, or leave the one of that name as it is."""
        body = {"name": name, "slots": slots, "description": description}
        self._call("POST", "pools", json=body, fine=lambda status: status == httpx.codes.CONFLICT)

    def unpause(self, dag_id: str) -> None:
        """Let the DAG run."""
        self._call("PATCH", f"dags/{dag_id}", json={"is_paused": False})

    def backfill(self, dag_id: str, first: date, last: date) -> None:
        """Run the partitions `first` to `last`, one at a time, oldest first."""
        body = {
            "dag_id": dag_id,
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T23:59:59Z",  # a bound is compared with the day's tick, not with the day
            "max_active_runs": 1,
        }
        self._call("POST", "backfills", json=body)

    def run(self, dag_id: str, day: date) -> None:
        """Run one partition now. Unlike a backfill, which may be under way only once, any number can be asked for."""
        self._call("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": None, "partition_key": str(day)})

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The DAG's runs: `dag_run_id`, `partition_key` and `state` of each."""
        runs: list[dict[str, Any]] = self._call("GET", f"dags/{dag_id}/dagRuns", params={"limit": 500})["dag_runs"]
        return runs

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's tasks: `task_id`, `map_index` (-1 where it is not mapped), `state` and `try_number` of each."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        tasks: list[dict[str, Any]] = self._call("GET", path, params={"limit": 500})["task_instances"]
        return tasks

    def result(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What the task returned, or None."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        found = self._call("GET", path, fine=lambda status: status == httpx.codes.NOT_FOUND)
        return found.get("value")

    def _call(self, method: str, path: str, fine: Callable[[int], bool] = lambda _: False, **request: Any) -> Any:
        answer = self._client.request(method, path, **request)
        if answer.is_error and not fine(answer.status_code):
            raise RuntimeError(f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}")
        return answer.json()

    @cached_property
    def _client(self) -> httpx.Client:
        login = {"username": self.username, "password": self.password}
        answer = httpx.post(f"{self.url}/auth/token", json=login, timeout=30).raise_for_status()
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        return httpx.Client(base_url=f"{self.url}/api/v2/", headers=headers, timeout=30)
