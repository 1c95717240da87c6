"""A week of simulated nights under a real scheduler, with faults on purpose; its tables end as those of a calm week.

docs/reliability.md lists the faults. What goes wrong lies in `week/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.model_files import DIGEST
from pipelines.prepare import prepare
from pipelines.registry import Registry
from pipelines.train import train
from tests.end_to_end.loop import without_pictures
from tests.end_to_end.week import findings
from tests.end_to_end.week.deliveries import HISTORY, NAME, NIGHTS, Deliveries, recommender, simulated
from tests.end_to_end.week.faults import SmallDisk, Steps, small_disk
from tests.end_to_end.week.served import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FIRST, EMPTY, EARLY, LATE, CORRUPT, SIXTH, LAST = NIGHTS
"""The days of the seven nights, by what happens to them: `EARLY` comes before all of its rows are in."""
A_MINUTE, TEN_SECONDS = 60, 10
ALMOST_NOTHING = 16 << 10
LONGEST_NIGHT = 1500


@dataclass
class Week:
    """The services, and how the nights go."""

    served: Served
    steps: Steps
    deliveries: Deliveries
    disk: SmallDisk
    started: float = field(default_factory=time.monotonic)

    def tell(self, what: str) -> None:
        """A line for whoever asks pytest with -s, or sees the test fail."""
        print(f"{time.monotonic() - self.started:6.0f} s  {what}", flush=True)

    def run(self, day: date) -> None:
        """What the cron does each night."""
        self.tell(f"ingest of {day} is due")
        self.served.airflow.run(f"{NAME}_ingest", day)

    def kill(self, step: str, day: date, cpu_seconds: float) -> None:
        """Kill a step at its work."""
        self.steps.kill(step, day, cpu_seconds)
        self.tell(f"{step} of {day} was killed")

    def all_ended(self, day: date, times: int = 1) -> None:
        """Wait until the day is ingested, and what follows from that has ended, well."""
        for what in ("ingest", "train", "score", "monitor"):
            self.served.wait(f"{what} of {day}", lambda what=what: self.served.ended(what, day, times), LONGEST_NIGHT)
            if {run["state"] for run in self.served.runs(what, day)} != {"success"}:
                raise AssertionError(f"{what} of {day} failed\n{self.served.failures()}")
            self.tell(f"{what} of {day} has ended")

    def is_loud(self, day: date, words: str) -> None:
        """Wait until the ingest of a day has failed, for good and with a line that says why."""
        self.served.wait(f"{day} is refused", lambda: self.served.ended("ingest", day), LONGEST_NIGHT)
        assert self.served.states("ingest", day)["ingest"] == "failed"
        said = self.served.said("ingest", day, "ingest")
        assert f"error: {self.served.layout.configs.parent}" in said
        assert words in said
        assert "What to do" in said
        self.tell(f"{day} was refused: {words}")

    def tries(self, what: str, day: date, task: str) -> int:
        """How often a task of a day was tried."""
        return int(self.served.tasks(what, day)[task]["try_number"])


def first_night(week: Week) -> None:
    """A training is killed."""
    week.deliveries.bring(FIRST)
    week.run(FIRST)
    week.kill("train", FIRST, cpu_seconds=7)
    week.all_ended(FIRST)
    assert week.tries("train", FIRST, "train") == 2


def second_night(week: Week) -> None:
    """The day arrives empty; the one before arrives again, as it was, and its ingest is killed."""
    week.deliveries.bring_empty(EMPTY)
    week.run(EMPTY)
    week.is_loud(EMPTY, "is empty")
    assert week.tries("ingest", EMPTY, "ingest") == 1
    week.deliveries.bring(FIRST)
    week.run(FIRST)
    week.kill("ingest", FIRST, cpu_seconds=1.2)
    week.all_ended(FIRST, times=2)
    assert week.tries("ingest", FIRST, "ingest") == 2
    assert week.served.result("train", FIRST, "train")["repeated"]


def third_night(week: Week) -> None:
    """The disk is full as the day is ingested, MLflow goes for a minute while it trains, a promotion is killed."""
    week.deliveries.bring_too_early(EARLY)
    with week.disk.full(but_bytes=ALMOST_NOTHING):
        week.run(EARLY)
        week.served.wait(
            "ingest meets the full disk",
            lambda: week.served.states("ingest", EARLY)["ingest"] in ("up_for_retry", "failed"),
            LONGEST_NIGHT,
        )
        week.tell("the disk was full")
    week.steps.at_work("train", EARLY, cpu_seconds=7)
    week.served.ask("down mlflow")
    time.sleep(A_MINUTE)
    week.served.ask("up mlflow")
    week.tell("MLflow was gone for a minute")
    week.kill("promote", EARLY, cpu_seconds=4.5)
    week.all_ended(EARLY)
    assert week.tries("ingest", EARLY, "ingest") > 1
    assert week.tries("train", EARLY, "promote") == 2


def fourth_night(week: Week) -> None:
    """No file comes. That of two nights ago does; its `prepare` is killed, and the scheduler as it scores."""
    week.run(LATE)
    week.is_loud(LATE, "no such file")
    week.deliveries.bring(EMPTY)
    week.served.clear("ingest", EMPTY)
    week.kill("prepare", EMPTY, cpu_seconds=1.1)
    week.steps.at_work("score-shard", EMPTY, cpu_seconds=2)
    week.served.ask("kill scheduler")
    week.tell("the scheduler was killed, and what it had started lives on")
    week.all_ended(EMPTY)
    assert week.tries("ingest", EMPTY, "prepare") == 2
    assert week.served.states("train", EMPTY)["train"] == "skipped"  # a newer day is ingested


def fifth_night(week: Week) -> None:
    """The file is corrupt. That of two nights ago comes again, whole; the database goes, an evaluation is killed."""
    week.deliveries.bring_corrupt(CORRUPT)
    week.run(CORRUPT)
    week.is_loud(CORRUPT, f"{CORRUPT}.csv.gz")
    week.deliveries.bring(EARLY)
    week.run(EARLY)
    week.steps.at_work("train", EARLY, cpu_seconds=7)
    week.served.ask("down postgres")
    time.sleep(TEN_SECONDS)
    week.served.ask("up postgres")
    week.tell("PostgreSQL was gone for ten seconds")
    week.kill("evaluate", EARLY, cpu_seconds=6)
    week.all_ended(EARLY, times=2)
    assert week.tries("train", EARLY, "evaluate") == 2


def sixth_night(week: Week) -> None:
    """The scheduler is killed with all that it runs, a training among it; then Airflow's process of a shard."""
    week.deliveries.bring(SIXTH)
    week.run(SIXTH)
    week.steps.at_work("train", SIXTH, cpu_seconds=7)
    week.served.ask("down scheduler")
    week.served.ask("up scheduler")
    week.tell("the scheduler was killed, and all below it")
    week.steps.kill_task("score-shard", SIXTH, cpu_seconds=3.5)
    week.tell("the task of a shard was killed")
    week.all_ended(SIXTH)


def seventh_night(week: Week) -> None:
    """A day comes three days late, together with the newest one; publishing that one's scores is killed."""
    week.deliveries.bring(LATE)
    week.deliveries.bring(LAST)
    week.served.clear("ingest", LATE)
    week.run(LAST)
    week.kill("score-publish", LAST, cpu_seconds=3)
    week.all_ended(LAST)
    week.all_ended(LATE)
    assert week.tries("score", LAST, "score") == 2
    assert week.served.states("train", LATE)["train"] == "skipped"


PLAYED: tuple[Callable[[Week], None], ...] = (
    first_night,
    second_night,
    third_night,
    fourth_night,
    fifth_night,
    sixth_night,
    seventh_night,
)


def test_a_week_of_faults_ends_as_a_calm_one(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = simulated(tmp_path / "made", project_root)
    folder = tmp_path / "bad"
    with small_disk(folder / "var" / NAME) as disk:
        deliveries = with_history(made, folder, project_root)
        config = deliveries.config
        reader = findings.Reader(config, config.simulation.users)
        with served(NAME, folder, {"OMP_NUM_THREADS": "1"}) as services:
            services.switch_on()
            week = Week(services, Steps(services.process.pid), deliveries, disk)
            with reader.reading():
                for night in PLAYED:
                    week.tell(f"--- {night.__doc__}")
                    night(week)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", services.mlflow_url)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", services.mlflow_password)
            assert findings.unjustified(config) == []
            check_scores(config, reader)
            assert week.served.states("ingest", CORRUPT)["ingest"] == "failed"
            restarts = services.ask("state")["restarts"]
            week.tell(f"services that ended by themselves, or were killed, were started again: {restarts}")
            ours = digest_of_last(config)
        calm = calm_week(made, tmp_path / "calm", project_root)
        assert findings.differences(config, calm) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with without_pictures():
        train(calm, LAST)
    assert digest_of_last(calm) == ours  # the last training saw what it would have seen after a calm week


def with_history(made: Path, folder: Path, project_root: Path) -> Deliveries:
    """A recommender with the days before the week."""
    recommender(folder, project_root)
    deliveries = Deliveries(made, folder)
    deliveries.bring_users_and_items()
    for day in HISTORY:
        deliveries.bring(day)
        ingest(deliveries.config, day)
        prepare(deliveries.config, day)
    return deliveries


def calm_week(made: Path, folder: Path, project_root: Path) -> Recommender:
    """The same days in order, each whole and once; the corrupt one never comes."""
    deliveries = with_history(made, folder, project_root)
    for day in NIGHTS:
        if day != CORRUPT:
            deliveries.bring(day)
            ingest(deliveries.config, day)
            prepare(deliveries.config, day)
    return deliveries.config


def check_scores(config: Recommender, reader: findings.Reader) -> None:
    """No reader saw a part of a day, or a model that did not serve when it was planned."""
    assert reader.problems == []
    assert reader.looks > 100
    entries = Registry(config).promotions.state().entries
    days = set()
    for version, rows in findings.every_version_of_scores(config):
        assert findings.problems_of_scores(rows, reader.users, config.scoring.top_n) == [], version
        for row in rows.group_by(["ds", "model_version", "scored_at"]).aggregate([]).to_pylist():
            assert findings.who_served(entries, row["scored_at"]) == row["model_version"]
            days.add(row["ds"])
    assert days == set(NIGHTS) - {CORRUPT}


def digest_of_last(config: Recommender) -> str:
    """What tells the files of the newest version of the last day from all others."""
    registry = Registry(config)
    version = registry.trained_for(LAST)
    assert version is not None
    return str(registry.open_run(version.run_id).facts().tags[DIGEST])
