"""How the servers are started: on 127.0.0.1, with a login. That they then are so: tests/end_to_end/test_airflow.py."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from pipelines.local import services
from pipelines.local.airflow_api import Airflow
from pipelines.local.backends import Backends


class Written(services.Services):
    """Writes down what would be started."""

    started: dict[str, tuple[list[str], dict[str, str]]]

    def start(self, name: str, arguments: list[str], environment: dict[str, str]) -> Any:
        """Instead of a process, one that has ended well."""
        self.started = {**getattr(self, "started", {}), name: (arguments, environment)}
        self.processes[name] = Ended()  # type: ignore[assignment]
        return self.processes[name]


class Ended:
    """A process that is done."""

    def wait(self) -> int:
        """Its exit code."""
        return 0


BACKENDS = Backends(
    airflow_database="postgresql+psycopg://airflow:the%20password@there/airflow",
    mlflow_database="postgresql://mlflow:the%20password@there/mlflow",
    artifacts="s3://there/mlflow",
    celery_broker="redis://:the%20password@there/0",
)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True")
    home = tmp_path / "home"
    home.mkdir()
    layout = services.Layout(home, tmp_path / "configs", tmp_path / "mlflow")
    login = services.Login("http://127.0.0.1:5001", "the password of mlflow")
    airflow = Airflow("http://127.0.0.1:8081", services.USERNAME, "the password of airflow")
    made = Written(layout, airflow, login, BACKENDS)
    services._start_mlflow(made, login, "key")
    services._start_airflow(made, schedules=True)
    return made


def test_what_listens_does_so_on_loopback_and_asks_for_a_login(written: Written) -> None:
    for name in ("mlflow", "api-server"):
        arguments, _ = written.started[name]
        assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    mlflow, environment = written.started["mlflow"]
    assert mlflow[mlflow.index("--app-name") + 1] == "basic-auth"
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == "the password of mlflow"
    assert written.started["api-server"][1]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:admin"
    assert written.started["api-server"][1]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"
    for name in ("scheduler", "triggerer", "worker"):  # their log servers would listen on every address
        assert "--skip-serve-logs" in written.started[name][0]


def test_no_secret_is_in_a_command_or_in_a_file_of_others(written: Written) -> None:
    for arguments, _ in written.started.values():
        assert not any("the password" in argument or "the%20password" in argument for argument in arguments)
    for path in written.layout.home.iterdir():
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
