"""Start and stop Airflow and MLflow on this machine, each with a login and on 127.0.0.1 only."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from types import FrameType
from typing import Any, TextIO

import httpx

from pipelines.local.airflow_api import Airflow
from pipelines.local.backends import TASKS_AT_ONCE, THIS_MACHINE, Backends, without_addresses
from pipelines.processes import adopt_orphans, end_descendants
from pipelines.tracking import alone_at
from recsys_moe.errors import UserError

HOST = "127.0.0.1"
USERNAME = "admin"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Layout:
    """Where things lie: Airflow's home, the recommenders' YAMLs, and the MLflow store, whose runs a server and the
    CLI without one share."""

    home: Path
    configs: Path
    mlflow: Path

    @property
    def logs(self) -> Path:
        """The folder of the services' own logs."""
        return self.home / "services"

    @property
    def task_logs(self) -> Path:
        """The folder of the tasks' logs."""
        return self.home / "logs"

    @property
    def environment(self) -> Path:
        """What a shell reads (`. FILE`) so that `airflow` and `recsys-moe` there mean these servers."""
        return self.home / "environment.sh"

    def task_log(self, dag_id: str, run_id: str, task: Mapping[str, Any]) -> Path:
        """The log of a task's last try; mapped ones have one each."""
        which = f"map_index={task['map_index']}" if task["map_index"] >= 0 else ""
        folder = self.task_logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task['task_id']}"
        return folder / which / f"attempt={task['try_number']}.log"


@dataclass(frozen=True)
class Login:
    """A server's address, and the password of `USERNAME`."""

    url: str
    password: str


@dataclass
class Services:
    """What is running, how to reach it, and what is left to look after."""

    layout: Layout
    airflow: Airflow
    mlflow: Login | None
    backends: Backends = THIS_MACHINE
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process that ends with this one; what it says goes to a log of its own."""
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipelines.processes", sys.executable, "-m", *arguments]
        with self.log(name).open("wb") as log:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=REPOSITORY
            )
        self.processes[name] = started
        return started

    def log(self, name: str) -> Path:
        """The log of a service."""
        return self.layout.logs / f"{name}.log"

    def check(self) -> None:
        """Raise `UserError` with a service's last words if one has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise UserError(f"{name} ended with exit code {process.returncode}:\n{tail(self.log(name))}")

    def wait_until(self, what: str, is_so: Callable[[], bool], seconds: float = 300) -> None:
        """Wait, and say which service has ended or that it took too long."""
        deadline = time.monotonic() + seconds
        while not is_so():
            self.check()
            if time.monotonic() > deadline:
                raise UserError(f"{what} took more than {seconds:.0f} s; the logs are in {self.layout.logs}")
            time.sleep(0.5)


@contextmanager
def running(layout: Layout, *, schedules: bool, mlflow: bool, backends: Backends = THIS_MACHINE) -> Iterator[Services]:
    """Airflow, and MLflow if asked, for the length of a `with` block; all that was started has ended after it.

    Args:
        layout: the folders.
        schedules: whether cron times start runs and deferred tasks are woken; without, only assets, backfills and
            people start runs.
        mlflow: whether to start MLflow's server. Without it the steps write to its store themselves.
        backends: servers to use that run already.

    Raises:
        UserError: a service did not start.
    """
    with _ending_all(), _port(8080) as airflow_port, _port(5000) as mlflow_port:
        layout.home.mkdir(parents=True, exist_ok=True)
        passwords = _passwords(layout.home)
        airflow = Airflow(f"http://{HOST}:{airflow_port}", USERNAME, passwords["airflow"])
        login = Login(f"http://{HOST}:{mlflow_port}", passwords["mlflow"]) if mlflow else None
        services = Services(layout, airflow, login, backends)
        with alone_at(_mlflow_store(services)):  # a step that a person runs now would make the same database
            if login:
                _start_mlflow(services, login, passwords["mlflow_key"])
            _start_airflow(services, schedules)
            services.wait_until("starting Airflow", airflow.is_ready)
            if login:
                services.wait_until("starting MLflow", lambda: _answers(f"{login.url}/health"))
        with closing(airflow):
            airflow.create_pool("gpu", 1, "one training at a time")
            airflow.create_pool("scoring", TASKS_AT_ONCE, "shards that are scored at a time")
            yield services


@contextmanager
def _ending_all() -> Iterator[None]:
    """On the way out, however it is taken, end every process below this one."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    adopt_orphans()
    endings = (signal.SIGTERM, signal.SIGINT)
    before = {ending: signal.signal(ending, stop) for ending in endings}
    try:
        yield
    finally:
        for ending in endings:
            signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        end_descendants()
        for ending in endings:
            signal.signal(ending, before[ending])


@contextmanager
def only_user_of(home: Path) -> Iterator[None]:
    """Keep another `up` or `demo` from using the same folder; a lock of a dead process does not count."""
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _locked(home.with_name(f"{home.name}.lock"))
    except BlockingIOError:
        raise UserError(f"{home} is in use by another `recsys-moe`; end that one (Ctrl-C) first") from None
    with lock:
        yield


def _passwords(home: Path) -> dict[str, str]:
    """The logins, made once and kept in a file that only this user can read."""
    path = home / "passwords.json"
    if not path.exists():
        made = {name: secrets.token_urlsafe(12) for name in ("airflow", "mlflow", "mlflow_key")}
        _write_private(path, json.dumps(made))
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _mlflow_store(services: Services) -> str:
    return services.backends.mlflow_database or f"sqlite:///{services.layout.mlflow / 'mlflow.db'}"


def _start_mlflow(services: Services, login: Login, secret_key: str) -> None:
    layout, backends = services.layout, services.backends
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    config = layout.home / "mlflow_auth.ini"
    # Without the cache each request, and a training makes a hundred, waits for the password to be hashed.
    settings = ["[mlflow]", "default_permission = READ", "auth_cache_ttl_seconds = 60"]
    _write_private(config, "\n".join([*settings, f"database_uri = sqlite:///{layout.home / 'mlflow_auth.db'}\n"]))
    # The options for these two would show a database's password to everyone on this machine.
    environment = without_addresses(dict(os.environ)) | {
        "MLFLOW_BACKEND_STORE_URI": _mlflow_store(services),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": backends.artifacts or (layout.mlflow / "artifacts").as_uri(),
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": USERNAME,
        "MLFLOW_AUTH_ADMIN_PASSWORD": login.password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secret_key,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    port = login.url.rpartition(":")[2]
    server = ["mlflow", "server", "--app-name", "basic-auth", "--host", HOST, "--port", port, "--workers", "1"]
    # Artifacts are files that are named by their path, not passed through the server: so a run that was logged
    # without a server shows in one, and the other way round.
    services.start("mlflow", [*server, "--no-serve-artifacts"], environment)


def _start_airflow(services: Services, schedules: bool) -> None:
    settings = _airflow_environment(services, schedules)
    _write_private(services.layout.environment, exports(settings))
    environment = without_addresses(dict(os.environ)) | settings
    migration = services.start("airflow-migrate", ["airflow", "db", "migrate"], environment)
    if migration.wait() != 0:
        services.check()
    del services.processes["airflow-migrate"]
    port = services.airflow.url.rpartition(":")[2]
    services.start("api-server", ["airflow", "api-server", "--host", HOST, "--port", port], environment)
    # Task logs are read from disk; the log server that would start otherwise listens on every interface.
    services.start("scheduler", ["airflow", "scheduler", "--skip-serve-logs"], environment)
    services.start("dag-processor", ["airflow", "dag-processor"], environment)
    if schedules:
        services.start("triggerer", ["airflow", "triggerer", "--skip-serve-logs"], environment)
    if services.backends.celery_broker:
        services.start("worker", ["airflow", "celery", "worker", "--skip-serve-logs"], environment)


def _airflow_environment(services: Services, schedules: bool) -> dict[str, str]:
    layout, url = services.layout, services.airflow.url
    passwords = layout.home / "airflow_passwords.json"
    _write_private(passwords, json.dumps({USERNAME: services.airflow.password}))
    settings = {
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        **services.backends.airflow_settings(layout.home),
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",  # an environment that says True would take the login away
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USERNAME}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "API__BASE_URL": url,
        "LOGGING__BASE_LOG_FOLDER": str(layout.task_logs),
        # The first task's requests wait until the server has loaded; with 5 s each, a busy machine fails that task.
        "WORKERS__EXECUTION_API_TIMEOUT": "60",
    }
    environment = {
        **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        "AIRFLOW_HOME": str(layout.home),
        "RECSYS_MOE_CONFIGS": str(layout.configs),
        "RECSYS_MOE_CRON": "on" if schedules else "off",
        # Each task gets its share of the cores: two trainings that both want all of them wait for each other.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // TASKS_AT_ONCE))),
    }
    if services.mlflow:
        environment["MLFLOW_TRACKING_URI"] = services.mlflow.url
        environment["MLFLOW_TRACKING_USERNAME"] = USERNAME
        environment["MLFLOW_TRACKING_PASSWORD"] = services.mlflow.password
    return environment


def exports(settings: Mapping[str, str]) -> str:
    """Settings as a shell reads them, whatever characters they have."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(settings.items()))


@contextmanager
def _port(wanted: int) -> Iterator[int]:
    """The wanted port, or any free one where it is taken; for the length of a `with` block nobody else gets it here.

    A server takes seconds to bind its port, and another that is started meanwhile would find it free.
    """
    for port in (wanted, 0):
        try:
            bound = _bindable(port)
            lock = _locked(Path(gettempdir()) / f"recsys-moe-port-{bound}.lock")
        except OSError:  # of another user's, too
            continue
        with lock:
            yield bound
        return
    raise UserError(f"no free port on {HOST}")


def _bindable(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def _locked(path: Path) -> TextIO:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, and where it is."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join([*text.splitlines()[-lines:], f"(all of it: {path})"])
