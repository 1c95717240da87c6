"""A month that Airflow fills in four days at a time, and the wrong way round, leaves the tables of one in order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from pipelines.config import Recommender
from pipelines.local.airflow_api import Airflow
from pipelines.prepare import catch_up
from pipelines.tables import TableName
from tests.end_to_end.waiting import wait_until
from tests.pipelines.conftest import Tiny
from tests.pipelines.test_any_order import NEGATIVES, check_equal, elsewhere, in_order, play, world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DAYS = 30
AT_ONCE = 4


def test_a_month_backwards_four_days_at_a_time(
    tiny: Tiny, rows_of: Callable[[Recommender, TableName, date], pd.DataFrame], tmp_path: Path
) -> None:
    config = world(tiny, DAYS, NEGATIVES, schedule={"ingest": "0 3 * * *"})
    days = [tiny.day(number) for number in range(DAYS)]
    command = [sys.executable, "-m", "tests.end_to_end.deployment", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        (url, password), _ = json.loads(process.stdout.readline())
        with closing(Airflow(url, "admin", password)) as airflow:
            _backfill(airflow, days)
        process.communicate()

    expected = elsewhere(config, tmp_path)
    play(expected, tiny, in_order(range(DAYS)))
    catch_up(config)  # as the training does that follows
    check_equal(config, expected, rows_of, days)


def _backfill(airflow: Airflow, days: list[date]) -> None:
    wait_until(lambda: airflow.has_dag("tiny_ingest"), 300)
    airflow.unpause("tiny_ingest")
    body = {"dag_id": "tiny_ingest", "max_active_runs": AT_ONCE, "run_backwards": True}
    airflow._call("POST", "backfills", json=body | {"from_date": str(days[0]), "to_date": f"{days[-1]}T23:59:59Z"})
    at_once = 0

    def all_ended() -> bool:
        nonlocal at_once
        states = [run["state"] for run in airflow.runs("tiny_ingest")]
        at_once = max(at_once, states.count("running"))
        assert "failed" not in states
        return states.count("success") == len(days)

    wait_until(all_ended, 3000)
    assert at_once == AT_ONCE
