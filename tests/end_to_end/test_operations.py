"""docs/operations.md as a new user follows it: its YAML and its commands, on data of another shape than the demo's.

In a copy of the project, which has its own tables, Airflow and MLflow; only `.venv` is this one's, since
`tests/test_setup.py` is about making it. The night is five minutes away, and what it does, it does by itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest

from pipelines.local.airflow_api import Airflow
from tests.end_to_end.airflow_screenshots import running_at
from tests.end_to_end.films import deliver

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
BEGUN = "2026-01-30"
"""The only day that the page's commands name."""
KINDS = ("ingest", "train", "score", "monitor")
A_WHILE = 1500.0


def blocks(kind: str) -> list[str]:
    """The page's blocks of a kind; those of `sh` are meant to be typed as they are."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Club:
    """The copy of the project, and when it is there."""

    folder: Path
    zone: str

    @property
    def yesterday(self) -> date:
        return datetime.now(ZoneInfo(self.zone)).date() - timedelta(days=1)

    def type(self, *commands: str) -> str:
        """What commands say that are typed into a new terminal; each must succeed."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", "\n".join(commands).replace(BEGUN, str(self.yesterday))],
            cwd=self.folder,
            env={**os.environ, "TZ": self.zone, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=A_WHILE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write_yaml(self) -> datetime:
        """The page's YAML, with a night that is about to begin; returns when."""
        (text,) = (block for block in blocks("yaml") if block.startswith("name: films"))
        night = datetime.now(ZoneInfo(self.zone)).replace(second=0, microsecond=0) + timedelta(minutes=5)
        changed = {
            '"30 5 * * *"': f'"{night.minute} {night.hour} * * *"',
            BEGUN: str(self.yesterday - timedelta(days=1)),
            "Europe/Berlin": self.zone,
        }
        for old, new in changed.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        (self.folder / "configs" / "films.yaml").write_text(text, encoding="utf-8")
        return night


@pytest.fixture(scope="module")
def club(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Club:
    """What a clone has, and a week of deliveries; somewhere where it is not about to be midnight."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=project_root,
        capture_output=True,
        check=True,
        timeout=60,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (project_root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project_root / name, folder / name)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{folder}"\n', encoding="utf-8")
    zone = "Europe/Berlin" if datetime.now(ZoneInfo("Europe/Berlin")).hour < 22 else "America/New_York"
    made = Club(folder, zone)
    deliver(folder / "data" / "films", made.yesterday - timedelta(days=6), made.yesterday, zone)
    return made


@pytest.fixture(scope="module")
def up(club: Club) -> Iterator[Airflow]:
    """The servers, after all that the page does before them."""
    activate, look, run = blocks("sh")[:3]
    club.write_yaml()
    club.type(activate, look, run)
    assert (club.folder / "var" / "films" / "profile" / f"{club.yesterday}.html").exists()
    club.write_yaml()  # the night is near from now on
    with subprocess.Popen(
        ["bash", "-e", "-c", f"{activate}\nexec recsys-moe up"],
        cwd=club.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any("New DAGs are paused" in line for line in process.stdout)
            with closing(running_at(club.folder / "var" / "airflow")) as airflow:
                yield airflow
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=90)  # it says that it ends, so somebody has to listen
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_leads_to_a_night_that_runs_by_itself(club: Club, up: Airflow) -> None:
    activate, _, _, switch_on, when = blocks("sh")[:5]
    assert "No data found" in club.type(activate, switch_on)
    said = club.type(activate, blocks("sh")[3].splitlines()[0], when)
    assert f"{datetime.now(ZoneInfo('UTC')):%Y-%m}" in said

    _wait_until(up, lambda: all(_state(up, kind, club.yesterday) == "success" for kind in KINDS))

    (night,) = (run for run in up.runs("films_ingest") if run["partition_key"] == str(club.yesterday))
    assert night["run_type"] == "scheduled"
    lists = club.type(activate, f"python <<'END'\n{blocks('python')[0]}END")
    assert re.search(rf"^{club.yesterday} +400$", lists, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_broken_yaml_is_named_and_the_others_run_on(club: Club, up: Airflow) -> None:
    activate, switch_on, again = blocks("sh")[0], blocks("sh")[3], blocks("sh")[5]
    environment, list_errors = switch_on.splitlines()[:2]
    (club.folder / "configs" / "broken.yaml").write_text("name: broken\nschedule: {ingest: at night}\n", "utf-8")

    _wait_until(up, lambda: bool(up.import_errors()))

    assert "broken.yaml: " in club.type(activate, environment, f"{list_errors} || true")  # its exit code is 1
    before = len(up.runs("films_ingest"))
    club.type(activate, environment, again)
    _wait_until(up, lambda: [run["state"] for run in up.runs("films_ingest")].count("success") == before + 1)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_takes(project_root: Path, tmp_path: Path) -> None:
    (text,) = blocks("ini")
    unit = tmp_path / "recsys-moe.service"
    unit.write_text(text.replace("/srv/recsys_moe/.venv", str(Path(sys.executable).parents[1])), encoding="utf-8")

    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=50)

    assert (done.returncode, done.stderr) == (0, "")


def _state(airflow: Airflow, kind: str, day: date) -> str:
    found = [run["state"] for run in airflow.runs(f"films_{kind}") if run["partition_key"] == str(day)]
    return str(found[-1]) if found else ""


def _wait_until(airflow: Airflow, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + A_WHILE
    while True:
        try:
            if is_so():
                return
            failed = [run for kind in KINDS for run in airflow.runs(f"films_{kind}") if run["state"] == "failed"]
            assert not failed
        except httpx.TimeoutException:
            pass  # on a busy machine Airflow takes its time
        assert time.monotonic() < deadline, f"took more than {A_WHILE} s"
        time.sleep(3)
