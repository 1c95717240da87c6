"""What `recsys-moe up` takes from the environment, and what Airflow is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.local.backends import THIS_MACHINE, Backends, without_addresses
from recsys_moe.errors import UserError

POSTGRES = "postgresql+psycopg://airflow:secret@there:5432/airflow"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW_DATABASE", "MLFLOW_DATABASE", "ARTIFACTS", "CELERY_BROKER"):
        monkeypatch.delenv(f"RECSYS_MOE_{name}", raising=False)


def test_what_is_not_named_is_this_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_MOE_CELERY_BROKER", "")
    assert Backends.of_environment() == THIS_MACHINE
    settings = THIS_MACHINE.airflow_settings(tmp_path)
    assert settings["CORE__EXECUTOR"] == "LocalExecutor"
    assert settings["DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{tmp_path}/airflow.db"
    assert settings["DATABASE__SQL_ALCHEMY_CONN_ASYNC"] == f"sqlite+aiosqlite:///{tmp_path}/airflow.db"


def test_what_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_MOE_AIRFLOW_DATABASE", POSTGRES)
    monkeypatch.setenv("RECSYS_MOE_CELERY_BROKER", "redis://there/0")
    monkeypatch.setenv("RECSYS_MOE_ARTIFACTS", "s3://shop/mlflow")
    found = Backends.of_environment()
    assert found == Backends(airflow_database=POSTGRES, artifacts="s3://shop/mlflow", celery_broker="redis://there/0")
    settings = found.airflow_settings(tmp_path)
    assert settings["CORE__EXECUTOR"] == "CeleryExecutor"
    assert settings["CELERY__BROKER_URL"] == "redis://there/0"
    assert settings["DATABASE__SQL_ALCHEMY_CONN"] == settings["DATABASE__SQL_ALCHEMY_CONN_ASYNC"] == POSTGRES


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (
            {"AIRFLOW_DATABASE": "mysql://a:secret@there/b"},
            r"^RECSYS_MOE_AIRFLOW_DATABASE: should be postgresql\+psycopg",
        ),
        (
            {"CELERY_BROKER": "redis://:secret@there/0"},
            "^RECSYS_MOE_CELERY_BROKER: needs RECSYS_MOE_AIRFLOW_DATABASE, too",
        ),
    ],
)
def test_what_does_not_go_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, named: dict[str, str], says: str
) -> None:
    for name, value in named.items():
        monkeypatch.setenv(f"RECSYS_MOE_{name}", value)
    with pytest.raises(UserError, match=says) as refused:
        Backends.of_environment()
    assert "secret" not in str(refused.value)


def test_what_is_started_does_not_inherit_the_addresses() -> None:
    environment = {"RECSYS_MOE_AIRFLOW_DATABASE": POSTGRES, "RECSYS_MOE_CONFIGS": "configs", "PATH": "/bin"}
    assert without_addresses(environment) == {"RECSYS_MOE_CONFIGS": "configs", "PATH": "/bin"}
