"""Days that come in any order, more than once, and from two processes at once: the tables of days in order, once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from pipelines.config import Recommender
from pipelines.ingest import ingest
from pipelines.prepare import prepare
from tests.pipelines.conftest import Tiny
from tests.pipelines.ingest.deliveries import TABLES, Contents, configured, contents, deliver
from tests.pipelines.ingest.workers import Step, hired

DAYS = [Tiny.day(number) for number in range(Tiny.DAYS)]


@pytest.fixture
def config(tiny: Tiny) -> Recommender:
    for number in range(len(DAYS)):
        deliver(tiny.folder / "delivered", number, rows=300)
    return configured(tiny, "../delivered")


def elsewhere(config: Recommender, storage: str | Path) -> Recommender:
    return config.model_copy(update={"storage": str(storage), "local": config.storage})


def taken(config: Recommender, days: Sequence[date]) -> Contents:
    """What the tables hold where these days are ingested, and then prepared, one after the other."""
    for step in (ingest, prepare):
        for ds in days:
            step(config, ds)
    found = contents(config, days)
    assert set(found) == {(name, ds) for name in TABLES for ds in days}
    return found


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=[pytest.mark.slow, pytest.mark.timeout(240)])])
def test_days_ingested_and_prepared_backwards(config: Recommender, tmp_path: Path, number: int) -> None:
    """Prepared too: a day that is looked back at and was never prepared leaves its history first."""
    first = DAYS[:number]
    assert taken(elsewhere(config, tmp_path / "backwards"), first[::-1]) == taken(config, first)


def race(step: Step, config: Recommender, draw: random.Random) -> None:
    """Two processes do a step for all days, and for two of them again, each in an order of its own."""
    with hired() as workers:
        both = [workers.take(), workers.take()]
        for worker in both:
            days = [*DAYS, *draw.sample(DAYS, 2)]
            worker.start(step, config, draw.sample(days, len(days)))
        for worker in both:
            worker.seconds()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(2))
def test_two_processes_with_orders_of_their_own(config: Recommender, tmp_path: Path, seed: int) -> None:
    draw, raced = random.Random(seed), elsewhere(config, tmp_path / "raced")
    race(ingest, raced, draw)
    race(prepare, raced, draw)
    assert contents(raced, DAYS) == taken(config, DAYS)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_on_s3(config: Recommender, s3: str) -> None:
    raced = elsewhere(config, s3)
    race(ingest, raced, random.Random(0))
    for ds in DAYS:
        ingest(config, ds)
    assert contents(raced, DAYS) == contents(config, DAYS)
