"""Scoring killed at random moments: what readers see, and what is there in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from threading import Event, Thread

import pandas as pd
import pytest

from pipelines import score as steps
from pipelines.config import Recommender
from pipelines.errors import TryAgainError
from pipelines.score import score
from pipelines.tables import Tables
from tests.pipelines.conftest import Tiny
from tests.pipelines.scoring.conftest import LAST, Scored

KILLS = 20
DAY = Tiny.day(LAST)


def published(config: Recommender) -> pd.DataFrame:
    frame: pd.DataFrame = Tables(config.storage).read_day("scores", DAY).to_pandas()
    return frame.drop(columns="scored_at")


def started(config: Recommender) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.cli", "score", "--config", str(config.origin.file)]
    command += ["--as-of", DAY.isoformat(), "--model-version", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload,no-any-return]


def wait_for_a_moment(
    process: subprocess.Popen[bytes], config: Recommender, draw: random.Random, whole: float | None
) -> None:
    """Any of the `whole` seconds that a run takes; or just after some of its files came or went, since starting up
    takes most of them."""
    if whole is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(whole * draw.random())
        return
    changes, before = draw.randint(1, 12), staged(config)
    while process.poll() is None and changes:
        found = staged(config)
        changes, before = changes - (found != before), found
        time.sleep(0.002)
    time.sleep(0.02 * draw.random())


def staged(config: Recommender) -> set[Path]:
    return set((Path(config.storage) / "scoring").glob("*/*"))


@contextmanager
def alone_on_its_machine(config: Recommender, ds: date) -> Iterator[Path]:
    """Without the lock, which no other machine sees."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def reading(config: Recommender, allowed: tuple[pd.DataFrame, ...]) -> Iterator[list[int]]:
    """Look at the table all the time; which of the allowed ones it was, each time."""
    ended, seen = Event(), []

    def look() -> None:
        while not ended.is_set():
            found = published(config)
            seen.append(next((n for n, one in enumerate(allowed) if found.equals(one)), -1))
            time.sleep(0.05)

    reader = Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        ended.set()
        reader.join()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment_it_ends_the_same_and_nobody_saw_a_part(scored: Scored, processes: int) -> None:
    draw, kills = random.Random(processes), KILLS // 2
    config = scored(users_per_shard=1)
    score(config, DAY, 1)
    new = published(config)
    old_config = scored(users_per_shard=1, top_n=2)
    score(old_config, DAY, 1)
    old = published(old_config)
    config = scored(users_per_shard=1, processes=processes)
    begun = time.monotonic()
    undisturbed = started(config)
    assert undisturbed.wait() == 0
    whole = time.monotonic() - begun
    assert published(config).equals(new)
    score(scored(users_per_shard=1, top_n=2), DAY, 1)
    config = scored(users_per_shard=1, processes=processes)
    stood = []
    with reading(config, (old, new)) as seen:
        for number in range(kills):
            process = started(config)
            wait_for_a_moment(process, config, draw, whole if number % 2 else None)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            stood.append(len(list((Path(config.storage) / "scoring").glob("*/shard-*"))))
        assert started(config).wait() == 0
    assert published(config).equals(new)
    assert -1 not in seen
    assert {0, 1} <= set(seen)
    assert max(stood) > 0, "every kill came before the first shard or after the last"
    assert {path.name for path in (Path(config.storage) / "scoring").glob("*/*")} == {"published.json"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_machines_one_publishes_and_the_other_says_so(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Airflow tries a task again while the one that it gave up is still at work. With files of the other's, or
    without some, what was seen would come again."""
    config = scored(users_per_shard=1, candidates={"source": "popular"}, exclude_seen=1, checks={"min_coverage": 0})
    score(config, DAY, 1)
    expected, draw, begun = published(config), random.Random(3), time.monotonic()
    score(config, DAY, 1)
    whole = time.monotonic() - begun
    monkeypatch.setattr(steps, "_alone", alone_on_its_machine)

    def one(delay: float) -> bool:
        time.sleep(delay)
        with suppress(TryAgainError):
            return bool(score(config, DAY, 1))
        return False

    for number in range(8):
        with ThreadPoolExecutor(2) as machines:
            won = [*machines.map(one, (0.0, whole * draw.random() / (1 + 4 * (number % 2))))]
        assert any(won)
        assert published(config).equals(expected)
