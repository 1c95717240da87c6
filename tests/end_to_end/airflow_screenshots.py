"""Screenshots of Airflow for the docs: `python -m tests.end_to_end.airflow_screenshots HOME NAME FAILED`.

HOME is the Airflow home of a `recsys-moe up` that is running (`var/airflow`), NAME the recommender, and FAILED a day
whose ingest has failed. `airflow_grid.png` shows the grid of its ingest, `airflow_train.png` and `airflow_score.png`
the graphs of its newest training and scoring, `airflow_failed_task.png` the end of the failed task's log.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from contextlib import closing
from pathlib import Path

import httpx

from pipelines.local.airflow_api import Airflow
from tests.end_to_end.screenshots import DOCS, Browser, browser

_WIDE, _LOW = (1400, 900), (1400, 620)
_CALM_SECONDS = 6.0
_ARRANGED = """
try {{
    localStorage.setItem('default_dag_view', '"{view}"');
    localStorage.setItem('react-resizable-panels:{view}-ltr', JSON.stringify({{
        'details-panel,main-panel': {{expandToSizes: {{}}, layout: [{share}, 100 - {share}]}}}}));
}} catch {{}}
"""
"""What a person would do with the mouse: choose grid or graph, and how wide it is."""


def running_at(home: Path) -> Airflow:
    """The Airflow of that home, with its login."""
    exported = (home / "environment.sh").read_text(encoding="utf-8")
    (url,) = re.findall(r"^export AIRFLOW__API__BASE_URL=(.*)$", exported, re.MULTILINE)
    password = json.loads((home / "passwords.json").read_text(encoding="utf-8"))["airflow"]
    return Airflow(shlex.split(url)[0], "admin", password)


def log_in(page: Browser, airflow: Airflow) -> None:
    """Give the browser the token that the login page would leave in its cookies."""
    login = {"username": airflow.username, "password": airflow.password}
    token = httpx.post(f"{airflow.url}/auth/token", json=login, timeout=30).raise_for_status().json()["access_token"]
    page.call("Network.setCookie", name="_token", value=token, url=airflow.url)


def newest(airflow: Airflow, dag_id: str, state: str, day: str = "") -> str:
    """The id of the run that ended last in a state, of one day or of the newest."""
    runs = [run for run in airflow.runs(dag_id) if run["state"] == state and day in ("", run["partition_key"])]
    return str(max(runs, key=lambda run: (run["partition_key"], run["end_date"]))["dag_run_id"])


def take(airflow: Airflow, name: str, failed: str, folder: Path) -> None:
    """Open each page as a person would, and save what is seen."""
    ingest, train, score = (f"{name}_{what}" for what in ("ingest", "train", "score"))
    failed_run = newest(airflow, ingest, "failed", failed)
    with browser() as page:
        log_in(page, airflow)
        for dag_id, last, picture in ((train, "decided", "airflow_train"), (score, "shards", "airflow_score")):
            run = newest(airflow, dag_id, "success")
            show(page, f"{airflow.url}/dags/{dag_id}/runs/{run}", last, ("graph", 68), _LOW)
            page.save(folder / f"{picture}.png")
        show(page, f"{airflow.url}/dags/{ingest}", "Failed Runs", ("grid", 36), _LOW)
        page.save(folder / "airflow_grid.png")
        show(page, f"{airflow.url}/dags/{ingest}/runs/{failed_run}/tasks/ingest", "What to do", ("grid", 20), _WIDE)
        page.save(folder / "airflow_failed_task.png")


def show(page: Browser, address: str, expected: str, arranged: tuple[str, int], size: tuple[int, int]) -> None:
    """Go to a page with grid or graph so many percent wide, and wait until it shows a text and stands still."""
    script = _ARRANGED.format(view=arranged[0], share=arranged[1])
    made = page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    page.open(address, expected, size)
    time.sleep(_CALM_SECONDS)
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])


def main() -> None:
    """Read the arguments and take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, help="Airflow's home, such as var/airflow")
    parser.add_argument("name", help="of the recommender")
    parser.add_argument("failed", help="a day whose ingest has failed")
    parser.add_argument("--to", type=Path, default=DOCS)
    given = parser.parse_args()
    with closing(running_at(given.home)) as airflow:
        take(airflow, given.name, given.failed, given.to)


if __name__ == "__main__":
    main()
