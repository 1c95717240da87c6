"""What preparing a day costs: history by six keys over 30 days, all days one after the other, and then one more.

A made log goes straight into the tables, untimed: a quarter of 200,000 users a day, who like one of ten tabs best and
differ in how much they look at, as 100,000 videos do in how much they are looked at (both log-normal); videos have one
of 30,000 authors and of 200 tags. Then a fresh process prepares day after day; its peak memory is the high-water mark
of its resident set.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import Recommender
from pipelines.prepare import prepare
from pipelines.tables import Tables, snapshots
from recsys_moe.errors import UserError

log = logging.getLogger(__name__)

START = date(2026, 1, 1)
USERS, VIDEOS, AUTHORS, TAGS, TABS = 200_000, 100_000, 30_000, 200, 10
ACTIVE, FAVOURITE = 0.25, 0.6
TASKS = {"click": 0.3, "like": 0.02, "long_view": 0.2}
_BATCH_ROWS = 131_072


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much, and where."""
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows of all days but the last (20,000,000)")
    parser.add_argument("--days", type=int, default=30, help="days before the one that is added (30)")
    parser.add_argument("--folder", type=Path, help="where its files are for a while (the system's temporary folder)")


def run(rows: int = 20_000_000, days: int = 30, folder: Path | None = None) -> dict[str, Any]:
    """Make the log, prepare the days, then one more.

    Raises:
        UserError: there is less than a row a day.
    """
    if not 1 <= days <= rows:
        raise UserError(f"--rows {rows} --days {days}: give at least one day, and a row for each")
    with tempfile.TemporaryDirectory(dir=folder) as storage:
        _fill(recommender(storage), rows // days, days + 1)
        # A process of its own, which has none of the above in its memory.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            seconds, peak = pool.submit(measure, storage, days + 1).result()
    whole = sum(seconds[:-1])
    return {
        "rows": rows // days * days,
        "rows_per_second": rows // days * days / whole,
        "peak_mb": peak,
        "increment_over_share": seconds[-1] / (whole / days),
        "seconds": seconds,
    }


def recommender(storage: str) -> Recommender:
    """The recommender whose days are prepared: six keys, three windows, three tasks."""
    return Recommender.model_validate(
        {
            "name": "prepared",
            "storage": storage,
            "source": {"interactions": {"path": "log/{ds}.csv"}, "items": {"path": "items.csv"}},
            "columns": {"user": "user_id", "item": "video_id", "timestamp": {"name": "time_us", "unit": "us"}},
            "tasks": [{"name": task, "label": f"is_{task}"} for task in TASKS],
            "features": {
                "categorical": ["user_id", "video_id", "author_id", "tag", "tab", "hour"],
                "history": {
                    "keys": ["user_id", "video_id", "author_id", "tag", ["user_id", "tab"], ["video_id", "tab"]],
                    "days": [1, 7, 30],
                },
            },
        }
    )


def measure(storage: str, days: int) -> tuple[list[float], float]:
    """Seconds that each day took to prepare, and this process's peak memory in MB."""
    config, seconds = recommender(storage), []
    for number in range(days):
        start = time.perf_counter()
        prepare(config, START + timedelta(days=number))
        seconds.append(time.perf_counter() - start)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _fill(config: Recommender, rows: int, days: int) -> None:
    tables, draw = Tables(config.storage), np.random.default_rng(0)
    world = World.of(draw)
    snapshots.publish(tables, "items", START, world.items(draw), "video_id")
    for number in range(days):
        ds = START + timedelta(days=number)
        batches = world.day(draw, ds, rows)
        first = next(batches)
        reader = pa.RecordBatchReader.from_batches(first.schema, _chained(first, batches))
        tables.replace_day("interactions", ds, reader)
        log.info("made %s: %d rows", ds, rows)


def _chained(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


@dataclass(frozen=True)
class World:
    """Who looks how much, at which tab, and at what.

    Attributes:
        activity: [USERS] how much a user looks at.
        favourite: [USERS] the tab that a user likes best.
        popularity: [VIDEOS] its share of all that is looked at, and that of those before it.
    """

    activity: NDArray[np.float64]
    favourite: NDArray[np.int64]
    popularity: NDArray[np.float64]

    @classmethod
    def of(cls, draw: np.random.Generator) -> World:
        """One of many."""
        return cls(
            activity=draw.lognormal(0, 1.3, USERS),
            favourite=draw.integers(TABS, size=USERS),
            popularity=_running_share(draw.lognormal(0, 1.7, VIDEOS)),
        )

    def items(self, draw: np.random.Generator) -> pa.Table:
        """Each video, its author and its tag."""
        columns = {"video_id": np.arange(VIDEOS)}
        columns |= {"author_id": draw.integers(AUTHORS, size=VIDEOS), "tag": draw.integers(TAGS, size=VIDEOS)}
        return pa.table({name: _text(name[0], values) for name, values in columns.items()})

    def day(self, draw: np.random.Generator, ds: date, rows: int) -> Iterator[pa.RecordBatch]:
        """A day's log as ingest leaves it, in order of time."""
        users = _running_share(self.activity * (draw.random(USERS) < ACTIVE))
        for first in range(0, rows, _BATCH_ROWS):
            place = np.arange(first, min(first + _BATCH_ROWS, rows))
            yield self._batch(draw, ds, users, place, place / rows)

    def _batch(
        self,
        draw: np.random.Generator,
        ds: date,
        users: NDArray[np.float64],
        place: NDArray[np.int64],
        hours: NDArray[np.float64],
    ) -> pa.RecordBatch:
        count = len(place)
        user = np.searchsorted(users, draw.random(count))
        tab = np.minimum(draw.geometric(0.4, count) - 1, TABS - 1)
        tab = np.where(draw.random(count) < FAVOURITE, self.favourite[user], tab)
        midnight = np.datetime64(ds, "us")
        columns = {
            "user_id": _text("u", user),
            "video_id": _text("v", np.searchsorted(self.popularity, draw.random(count))),
            "tab": _text("t", tab),
            "source_row": pa.array(place),
            "event_time": pa.array(midnight + (hours * 86_400e6).astype("m8[us]"), pa.timestamp("us", "UTC")),
            "event_day": pa.repeat(pa.scalar(ds), count),
        }
        columns |= {f"is_{task}": pa.array((draw.random(count) < rate).astype(float)) for task, rate in TASKS.items()}
        columns["source_file"] = pa.repeat(f"{ds}.csv", count)
        return pa.RecordBatch.from_pydict(columns)


def _running_share(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    running: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    return np.minimum(running, 1.0)


def _text(letter: str, numbers: NDArray[np.int64]) -> pa.Array:
    return pa.array(np.char.add(letter, numbers.astype(str)))


def table(result: Mapping[str, Any]) -> str:
    """The numbers, one a line."""
    return "\n".join(
        [
            f"{result['rows']:,} rows over {len(result['seconds']) - 1} days",
            f"{result['rows_per_second']:,.0f} rows a second",
            f"{result['peak_mb']:,.0f} MB at the peak",
            f"one more day takes {result['increment_over_share']:.2f} times its share",
        ]
    )
