"""Ingest and prepare killed at random moments: readers never see half a day, and the next run makes it whole.

Half of the moments are spread over the whole of the work, one in each of as many equal parts of its time; the others
lie where it publishes, which is short.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow.fs
import pytest

from pipelines import places
from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from pipelines.tables import TableName, Tables
from tests.pipelines.conftest import Tiny
from tests.pipelines.ingest.deliveries import INGESTED, PREPARED, TABLES, Contents, configured, contents, deliver
from tests.pipelines.ingest.workers import Step, Worker, Workers, hired

ROWS = 150_000
LIVES = 8
"""How often it all starts from nothing; with four steps each, 32 kills."""
EXPORTS = 4
BEFORE, KILLED, AFTER = DAYS = [Tiny.day(number) for number in range(3)]


@dataclass(frozen=True)
class Work:
    """A step on the day that it is killed at, and what its tables hold before and after it."""

    step: Step
    config: Recommender
    before: Contents
    after: Contents
    seconds: float
    publishing: float
    """How many of the seconds lie between its first commit and its last."""

    def moments(self, count: int, draw: random.Random) -> list[float]:
        """Seconds from its start, in random order."""
        return draw.sample([self.seconds * (part + draw.random()) / count for part in range(count)], count)

    def kill(self, workers: Workers, config: Recommender, moment: float) -> str:
        """Run it in a process that is killed then, look at the tables all the while, and run it again.

        Returns what the killed process had published.
        """
        worker = workers.take()
        worker.start(self.step, config, [KILLED])
        killer = threading.Timer(moment, worker.kill)
        killer.start()
        while worker.is_working():
            self.check(seen(self.step, config))
        killer.join()
        return self._mend(worker, config)

    def kill_publishing(self, workers: Workers, config: Recommender, part: float) -> str:
        """The same at a part of the time between its first commit and its last, which is short."""
        tables, first = Tables(config.storage), names_of(self.step)[0]
        worker, version = workers.take(), tables.version(first)
        worker.start(self.step, config, [KILLED])
        while worker.is_working() and tables.version(first) == version:
            time.sleep(0.001)
        time.sleep(part * self.publishing)
        worker.kill()
        return self._mend(worker, config)

    def _mend(self, worker: Worker, config: Recommender) -> str:
        assert worker.join() in (0, -signal.SIGKILL)
        published = self.check(seen(self.step, config))
        self.step(config, KILLED)
        assert seen(self.step, config) == self.after
        return f"{self.step.__name__}: {published}"

    def check(self, found: Contents) -> str:
        """Each day of each table is the old or the new one; if one table has the new one, so have those before it.

        Returns how much of what differs is new.
        """
        assert found.keys() >= self.before.keys()
        assert all(value in (self.before.get(key), self.after.get(key)) for key, value in found.items())
        changed = [(name, ds) for ds in DAYS for name in TABLES if self._changes(name, ds)]
        new = [key for key in changed if found.get(key) == self.after[key]]
        for ds in DAYS:
            of_day = [key in new for key in changed if key[1] == ds]
            assert of_day == sorted(of_day, reverse=True)
        return "all" if new == changed else "a part" if new else "nothing"

    def _changes(self, name: TableName, ds: date) -> bool:
        return self.before.get((name, ds)) != self.after.get((name, ds))


def names_of(step: Step) -> tuple[TableName, ...]:
    """The tables that a step writes."""
    return INGESTED if step is ingest else PREPARED


def seen(step: Step, config: Recommender) -> Contents:
    """What a reader finds in them."""
    return contents(config, [KILLED, AFTER], names_of(step))


def elsewhere(config: Recommender, storage: str, local: str) -> Recommender:
    return config.model_copy(update={"storage": storage, "local": local})


def ingest_days_around(config: Recommender) -> None:
    """What is there before the day that is killed: one before it, and one after it."""
    for ds in (BEFORE, AFTER):
        ingest(config, ds)


def undisturbed(workers: Workers, step: Step, config: Recommender) -> Work:
    """A step in a process that nobody kills."""
    worker, before = workers.take(), seen(step, config)
    worker.start(step, config, [KILLED])
    seconds, tables = worker.seconds(), Tables(config.storage)
    commits = [int(tables.delta(name).history(1)[0]["timestamp"]) for name in names_of(step)]
    return Work(step, config, before, seen(step, config), seconds, (max(commits) - min(commits)) / 1000)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the files of the days lie, and the tables."""
    return str(request.getfixturevalue("s3") if request.param == "s3" else tmp_path / "place")


@pytest.fixture
def configs(tiny: Tiny, place: str) -> list[Recommender]:
    """The same days as they were delivered first, and as they were later corrected."""
    found = []
    for edition in range(2):
        for number, ds in enumerate(DAYS):
            deliver(tiny.folder / f"{edition}", number, ROWS if ds == KILLED else 300, edition)
        system, path = places.file_system(f"{place}/{edition}")
        system.create_dir(path, recursive=True)
        pyarrow.fs.copy_files(
            str(tiny.folder / f"{edition}"),
            path,
            source_filesystem=pyarrow.fs.LocalFileSystem(),
            destination_filesystem=system,
        )
        found.append(configured(tiny, f"{place}/{edition}", bought=False))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments(configs: list[Recommender], place: str, tmp_path: Path) -> None:
    """Half of the kills meet a day that is not there yet, half of them one that is corrected."""
    draw, published = random.Random(0), Counter[str]()
    there = [elsewhere(config, f"{place}/undisturbed", str(tmp_path)) for config in configs]
    ingest_days_around(there[0])
    with hired() as workers:
        works = [undisturbed(workers, step, config) for config in there for step in (ingest, prepare)]
        moments = [work.moments(LIVES // 2, draw) for work in works]
        for life in range(LIVES):
            storage = f"{place}/{life}"
            ingest_days_around(elsewhere(configs[0], storage, str(tmp_path)))
            for work, when in zip(works, moments, strict=True):
                config = elsewhere(work.config, storage, str(tmp_path))
                if life % 2:
                    published[work.kill_publishing(workers, config, draw.random())] += 1
                else:
                    published[work.kill(workers, config, when[life // 2])] += 1
    # For whoever asks pytest with -rP.
    print([(round(work.seconds, 2), work.publishing) for work in works], dict(published))
    assert published["ingest: nothing"] > 0 < published["prepare: nothing"]
    assert published["ingest: a part"] > 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_as_an_export_is_laid_out(tiny: Tiny, tmp_path: Path) -> None:
    for number, ds in enumerate(DAYS):
        deliver(tiny.folder / "export", number, ROWS if ds == KILLED else 300)
    config = configured(tiny, "../export", log="*.csv")
    with hired() as workers:
        work = undisturbed(workers, ingest, config)
        for number, moment in enumerate(work.moments(EXPORTS, random.Random(1))):
            storage = str(tmp_path / f"{number}")
            print(work.kill(workers, elsewhere(config, storage, storage), moment))
