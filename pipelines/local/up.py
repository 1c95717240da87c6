"""`recsys-moe up`: Airflow and MLflow for a person to work with, until Ctrl-C."""

from __future__ import annotations

import time
from pathlib import Path

from rich.panel import Panel
from rich.table import Table

from pipelines.local.backends import Backends
from pipelines.local.services import REPOSITORY, USERNAME, Layout, Services, only_user_of, running
from pipelines.progress import console
from recsys_moe.errors import UserError


def up(configs: Path = REPOSITORY / "configs") -> None:
    """Start Airflow and MLflow, say where they are, and stay until Ctrl-C or SIGTERM.

    DAGs keep the state that a person gave them; new ones are paused.

    Raises:
        UserError: a service did not start or has ended, or another `up` is running.
    """
    if not configs.is_dir():
        raise UserError(f"{configs}: no such folder; it should hold a YAML for each recommender")
    layout = Layout(
        home=REPOSITORY / "var" / "airflow", configs=configs.resolve(), mlflow=REPOSITORY / "var" / "mlflow"
    )
    console.print("Starting Airflow and MLflow …")
    backends = Backends.of_environment()
    with only_user_of(layout.home), running(layout, schedules=True, mlflow=True, backends=backends) as services:
        show_addresses(services)
        wait_for_ctrl_c(services)


def show_addresses(services: Services) -> None:
    """Print where to look, with which login."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row("", "[dim]address", "[dim]user", "[dim]password")
    rows.add_row("[bold]Airflow", services.airflow.url, USERNAME, services.airflow.password)
    if services.mlflow:
        rows.add_row("[bold]MLflow", services.mlflow.url, USERNAME, services.mlflow.password)
    console.print(Panel(rows, title="running", expand=False))
    console.print("New DAGs are paused: switch one on in Airflow when its data is there. Ctrl-C ends all of it.")
    console.print(f"[dim]For `airflow` in another terminal: . {services.layout.environment}", highlight=False)
    console.print(f"[dim]Logs of the services: {services.layout.logs}", highlight=False)


def wait_for_ctrl_c(services: Services) -> None:
    """Return on Ctrl-C or SIGTERM; raise `UserError` when a service has ended by itself."""
    try:
        while True:
            services.check()
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("Ending Airflow and MLflow …")
