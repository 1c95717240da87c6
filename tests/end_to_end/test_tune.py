"""`recsys-moe tune`, killed by the system half-way and called again: no trial is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import load
from pipelines.registry import Registry
from pipelines.study import Study
from tests.end_to_end.loop import call_step, small_demo

LAST_DAY, TRIALS = "2026-01-05", 8


@pytest.fixture
def prepared(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small demo with little to learn, its days prepared."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = small_demo(tmp_path, project_root)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["simulation"]["rows_per_day"] = 1000
    raw["tuning"]["trials"] = TRIALS
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    call_step("simulate", "--config", path)
    for day in range(1, 6):
        for step in ("ingest", "prepare"):
            call_step(step, "--config", path, "--as-of", f"2026-01-{day:02}")
    return path


def _command(config: Path) -> list[str]:
    start = "from pipelines.cli import main; main()"
    return [sys.executable, "-c", start, "tune", "--config", str(config), "--as-of", LAST_DAY]


def _events(config: Path) -> list[dict[str, Any]]:
    """The lines of the study's journal; the last one may be unfinished."""
    journals = list((config.parent.parent / "var" / "small" / "tuning").glob("*.journal"))
    lines = journals[0].read_text(encoding="utf-8").splitlines() if journals else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _killed_in_trial(config: Path, ended: int) -> None:
    """Start a search, and kill it when so many trials have ended and the next has told of its first validation."""
    with subprocess.Popen(_command(config), env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            events = _events(config)
            over = {event["trial_id"] for event in events if event.get("values") and "trial_id" in event}
            running = {event["trial_id"] for event in events if "intermediate_value" in event} - over
            if len(over) >= ended and running:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.05)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_half_way_and_called_again_no_trial_is_lost(prepared: Path) -> None:
    _killed_in_trial(prepared, ended=3)
    config = load(prepared)
    result = call_step("tune", "--config", prepared, "--as-of", LAST_DAY)
    assert result["trials"] == TRIALS
    registry = Registry(config)
    runs = registry.client.search_runs([registry.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'")
    killed = [run for run in runs if run.info.status == "KILLED"]
    ended = {int(run.data.tags["trial"]): run.data.params for run in runs if run.info.status == "FINISHED"}
    assert len(killed) == 1
    assert len(ended) == TRIALS
    lost = int(killed[0].data.tags["trial"])
    assert ended[lost + 1] == killed[0].data.params
    (journal,) = (config.workspace / "tuning").glob("*.journal")
    assert [trial.number for trial in Study(journal, config).finished()] == sorted(ended)
