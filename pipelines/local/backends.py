"""Servers that `recsys-moe up` can use instead of files of this machine: databases, an artifact store, a queue."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from recsys_moe.errors import UserError

TASKS_AT_ONCE = 2


def _variable(field: str) -> str:
    """The environment variable that names one."""
    return f"RECSYS_MOE_{field.upper()}"


@dataclass(frozen=True)
class Backends:
    """Where Airflow and MLflow keep what they know, and who runs the tasks; what is not named is this machine's.

    Raises:
        UserError: they do not go together.
    """

    airflow_database: str | None = None
    """SQLAlchemy's URL of a PostgreSQL, such as `postgresql+psycopg://…`; None: SQLite in Airflow's home."""
    mlflow_database: str | None = None
    """What MLflow calls its backend store; None: SQLite in the layout's `mlflow`."""
    artifacts: str | None = None
    """The root of MLflow's artifacts, such as `s3://bucket/mlflow`; None: a folder in the layout's `mlflow`."""
    celery_broker: str | None = None
    """`redis://…`; with it Celery runs the tasks, in a worker that is started here; None: the scheduler does."""

    def __post_init__(self) -> None:
        database = _variable("airflow_database")
        if self.airflow_database and not self.airflow_database.startswith("postgresql+psycopg://"):
            raise UserError(f"{database}: should be postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE")
        if self.celery_broker and not self.airflow_database:
            raise UserError(f"{_variable('celery_broker')}: needs {database}, too: Celery does not go with SQLite")

    @classmethod
    def of_environment(cls) -> Backends:
        """What `RECSYS_MOE_AIRFLOW_DATABASE` and the others name."""
        return cls(**{one.name: os.environ.get(_variable(one.name)) or None for one in fields(cls)})

    def airflow_settings(self, home: Path) -> dict[str, str]:
        """Airflow's settings for its database and its executor, without the `AIRFLOW__` before their names."""
        database = self.airflow_database or f"sqlite:///{home / 'airflow.db'}"
        settings = {
            "CORE__EXECUTOR": "CeleryExecutor" if self.celery_broker else "LocalExecutor",
            "CORE__PARALLELISM": str(TASKS_AT_ONCE),
            "DATABASE__SQL_ALCHEMY_CONN": database,
            # psycopg does both; unless told so, Airflow takes asyncpg for this one.
            "DATABASE__SQL_ALCHEMY_CONN_ASYNC": database.replace("sqlite:", "sqlite+aiosqlite:", 1),
        }
        if self.celery_broker:
            settings |= {
                "CELERY__BROKER_URL": self.celery_broker,
                "CELERY__WORKER_CONCURRENCY": str(TASKS_AT_ONCE),
            }
        return settings


THIS_MACHINE = Backends()


def without_addresses(environment: dict[str, str]) -> dict[str, str]:
    """The environment less what `Backends` reads from it: tasks inherit it, and have no use for those."""
    left_out = {_variable(one.name) for one in fields(Backends)}
    return {name: value for name, value in environment.items() if name not in left_out}
