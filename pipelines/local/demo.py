"""`recsys-moe demo`: the whole loop on simulated days, under a real scheduler, in a few minutes."""

from __future__ import annotations

import shutil
from datetime import date, timedelta
from pathlib import Path

from pipelines.config import Recommender, load
from pipelines.local.services import REPOSITORY, Layout, Services, only_user_of, running
from pipelines.local.summary import show_summary
from pipelines.local.up import show_addresses, wait_for_ctrl_c
from pipelines.local.watch import RunFailed, Watch
from pipelines.progress import console
from pipelines.simulate import simulate
from recsys_moe.errors import UserError

CONFIG = REPOSITORY / "configs" / "demo.yaml"


def demo(keep_open: bool = False) -> int:
    """Simulate days, load all but two as history, then play two nights: ingest, train, compare, promote, score.

    It starts from nothing each time: its tables and its Airflow are made anew; MLflow's runs are kept.

    Args:
        keep_open: leave Airflow and MLflow running after the summary, until Ctrl-C.

    Returns:
        The exit code: 0, or 1 if a run failed.

    Raises:
        UserError: a service did not start, or another demo is running.
    """
    config = load(CONFIG)
    days = _days(config)
    storage = config.workspace
    layout = Layout(home=REPOSITORY / "var" / "demo-airflow", configs=CONFIG.parent, mlflow=storage.parent / "mlflow")
    with only_user_of(layout.home):
        _start_over(layout, storage)
        console.print(f"Simulating {len(days)} days, then starting Airflow …")
        simulate(config)
        _forget_champion(config, layout)
        with running(layout, schedules=False, mlflow=keep_open) as services:
            watch = Watch(services, days, config.name)
            try:
                _play(config, services, watch)
            except RunFailed as failure:
                console.print(f"[bold red]{failure}", highlight=False)
                return 1
            show_summary(config, watch.results(), layout)
            if keep_open:
                show_addresses(services)
                wait_for_ctrl_c(services)
    return 0


def _days(config: Recommender) -> list[date]:
    size = config.simulation
    if size is None or config.schedule is None:
        raise UserError(f"{CONFIG}: the demo needs the blocks simulation and schedule")
    if size.days < 5:
        raise UserError(f"{CONFIG}: simulation.days: the demo needs 5 or more, not {size.days}")
    return [size.start + timedelta(days=number) for number in range(size.days)]


def _start_over(layout: Layout, storage: Path) -> None:
    """Remove what an earlier demo left, finished or interrupted."""
    var = REPOSITORY / "var"
    if var not in storage.parents:
        raise UserError(f"{CONFIG}: storage: the demo removes this folder first, so it must lie in {var}")
    for folder in (storage, layout.home):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _play(config: Recommender, services: Services, watch: Watch) -> None:
    services.wait_until("reading the DAGs", lambda: all(map(services.airflow.has_dag, watch.dag_ids)))
    *history, first_night, second_night = watch.days
    # Training is switched on after the history is in: each day that comes before would start a training too.
    watch.play("The days before, without training", history, with_training=False)
    watch.play("A night, with the first training", [first_night])
    watch.play("The next night: a challenger", [second_night])


def _forget_champion(config: Recommender, layout: Layout) -> None:
    """Runs and versions of earlier demos stay, but none of them serves: this demo's first version starts anew."""
    if layout.mlflow.exists():
        from pipelines.promotions import CHAMPION
        from pipelines.registry import Registry

        registry = Registry(config)
        if registry.champion():
            registry.client.delete_registered_model_alias(config.name, CHAMPION)
